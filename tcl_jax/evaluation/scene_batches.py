"""Batches of one shape in which every scene comes once, over all processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tcl_jax.data.training_examples import Source


def scene_batches(
    source: Source, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of one process, as many on all of them.

    Args:
        source: examples with `image`, uint8 [S, S, 3], and `label`, int32 [S, S].
        batch_size: examples at a time over all processes, a multiple of their number.
        process_index: this process; it gets rows [p b, (p + 1) b) of each global batch.
        process_count: number of processes.

    Yields:
        With b = batch_size / process_count: "image", "label" [b, ...]; "index", int32 [b], position
        in the source; "valid", bool [b]. What fills up the last batch is zero, with index -1.
    """
    share = batch_size // process_count
    first = source[0]
    padding = {name: np.zeros_like(first[name]) for name in ("image", "label")}
    for begin in range(process_index * share, len(source) + process_index * share, batch_size):
        index = np.arange(begin, begin + share, dtype=np.int32)
        valid = index < len(source)
        examples = [source[int(i)] if ok else padding for i, ok in zip(index, valid, strict=True)]
        batch = {name: np.stack([example[name] for example in examples]) for name in padding}
        yield {**batch, "index": np.where(valid, index, np.int32(-1)), "valid": valid}
