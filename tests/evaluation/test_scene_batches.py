"""Every scene once over all processes, in batches of one shape."""

from __future__ import annotations

import numpy as np
import pytest

from tcl_jax.evaluation.scene_batches import scene_batches

SIDE = 4


class NumberSource:
    """Example i is a picture and a label full of i."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):
        image = np.full((SIDE, SIDE, 3), index, np.uint8)
        return {"image": image, "label": np.full((SIDE, SIDE), index, np.int32), "text": "x"}


@pytest.mark.parametrize(("length", "process_count"), [(12, 1), (13, 1), (13, 2), (12, 3), (1, 2)])
def test_each_example_comes_once(length: int, process_count: int) -> None:
    parts = [
        list(scene_batches(NumberSource(length), 6, process_index=p, process_count=process_count))
        for p in range(process_count)
    ]
    assert {len(part) for part in parts} == {-(-length // 6)}
    seen: list[int] = []
    rows = 6 // process_count
    for step in zip(*parts, strict=True):
        for batch in step:
            assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
                "image": ((rows, SIDE, SIDE, 3), np.uint8),
                "label": ((rows, SIDE, SIDE), np.int32),
                "index": ((rows,), np.int32),
                "valid": ((rows,), bool),
            }
            kept = batch["valid"]
            np.testing.assert_array_equal(batch["index"] == -1, ~kept)
            np.testing.assert_array_equal(batch["label"][kept, 0, 0], batch["index"][kept])
            np.testing.assert_array_equal(batch["image"][kept, 0, 0, 0], batch["index"][kept])
            assert not batch["image"][~kept].any()
            seen += batch["index"][kept].tolist()
    assert seen == list(range(length))
