"""Training on photographs in tar shards: bad samples, other numbers of processes, disagreement."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import skimage.data
from ml_collections import ConfigDict
from PIL import Image

from tcl_jax.checkpoints import store as checkpoint_store
from tcl_jax.data import bad_samples as bad_samples_module
from tcl_jax.data.bad_samples import BadSampleLog
from tcl_jax.errors import InputError, RunError
from tcl_jax.parallel import processes
from tcl_jax.training import loop
from tcl_jax.training.batches import open_batches
from tcl_jax.training.build import build_experiment
from tcl_jax.training.loop import Outcome, train
from tests.data.shards import write_shard
from tests.tiny import tiny_config

PHOTOS = {
    "an astronaut": skimage.data.astronaut,
    "a cat": skimage.data.chelsea,
    "a cup of coffee": skimage.data.coffee,
    "a rocket": skimage.data.rocket,
    "galaxies": skimage.data.hubble_deep_field,
    "an eye": skimage.data.retina,
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Shards 0 and 2 of {0..3}, 24 photographs in all, and one that is cut short."""
    folder = tmp_path_factory.mktemp("photos")
    for shard in (0, 2):
        members = {}
        for i, (text, photo) in enumerate(PHOTOS.items()):
            picture = Image.fromarray(photo()).convert("RGB")
            for size in (200, 120):
                picture.thumbnail((size, size))
                buffer = io.BytesIO()
                picture.save(buffer, ("JPEG", "PNG", "WEBP")[i % 3])
                name = f"{shard}/{i}-{size}"
                members[f"{name}.jpg"] = buffer.getvalue()
                members[f"{name}.txt"] = f"a photo of {text}".encode()
        if shard == 2:
            members["2/broken.jpg"] = members["2/0-200.jpg"][:900]
            members["2/broken.json"] = b'{"caption": "half an astronaut"}'
        write_shard(folder / f"{shard}.tar", members)
    return f"{folder}/{{0..3}}.tar"


@pytest.fixture
def config(tmp_path: Path, photos: str) -> ConfigDict:
    """A tiny run of nine steps of 8 of the 25 pairs, in one phase."""
    config = tiny_config(tmp_path)
    config.train.backbone_from_step = 0
    config.data.update(source="tar", shards=(photos,))
    config.data.rand_augment.operations = 2
    return config


def run(config: ConfigDict, workdir: Path) -> Outcome:
    return train(config, str(workdir), build_experiment(config), {})


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Presses Ctrl-C in the step with this number, from 0."""
    real, count = loop.put_batch, 0

    def put_batch(*args: Any) -> Any:
        nonlocal count
        if count == step:
            os.kill(os.getpid(), signal.SIGINT)
        count += 1
        return real(*args)

    monkeypatch.setattr(loop, "put_batch", put_batch)


@pytest.mark.slow
def test_photographs_and_a_change_of_processes(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(config, tmp_path / "whole")
    assert whole.finished and whole.step == 9
    (bad, *more) = written(tmp_path / "whole/bad_samples.jsonl")
    assert (bad["key"], bad["kind"]) == ("2/broken", "unreadable_image")
    assert 1 <= len(more) <= 4  # once an epoch, perhaps drawn again
    rows = written(tmp_path / "whole/metrics.jsonl")
    assert rows[-1]["train/bad_share"] == pytest.approx((1 + len(more)) / (73 + len(more)))

    # Interrupted as one of two processes, which are at one place, and continued as the only one.
    with monkeypatch.context() as two:
        interrupt_at(5, two)
        two.setattr(checkpoint_store, "gather_texts", lambda text: [text, text])
        assert not run(config, tmp_path / "parts").finished
    rest = run(config, tmp_path / "parts")
    assert rest.finished and rest.step == 9
    jax.tree.map(np.testing.assert_array_equal, rest.params, whole.params)
    again = written(tmp_path / "parts/bad_samples.jsonl")  # batches that come again are in it twice
    assert [line for line in [bad, *more] if line not in again] == []
    assert [line for line in again if line not in [bad, *more]] == []


def test_too_many_bad_samples_stop_the_run(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bad_samples_module, "MIN_SEEN", 20)
    config.data.max_bad_share = 0.01
    with pytest.raises(RunError, match=r"samples are bad .*\d unreadable_image; their keys"):
        run(config, tmp_path / "run")
    config.data.max_bad_share = 1.5
    with pytest.raises(InputError, match="max_bad_share=1.5"):
        run(config, tmp_path / "other")


def test_places_that_differ_are_refused(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as two:
        interrupt_at(1, two)
        two.setattr(checkpoint_store, "gather_texts", lambda text: [text, '{"next_batch": 9}'])
        assert not run(config, tmp_path / "run").finished
    with pytest.raises(InputError, match="another number of processes, which were not at one"):
        run(config, tmp_path / "run")


def test_processes_must_see_the_same_data(
    config: ConfigDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = build_experiment(config)
    open_batches(config, experiment, BadSampleLog())

    gathered = [""]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "gather_texts", lambda ours: [ours, gathered.pop(0)])
    other = {"seed": 0, "examples": 24, "global_batch_size": 8, "data": "x"}
    gathered = ["", json.dumps(other)]
    with pytest.raises(InputError, match="process 1 sees other training data than process 0"):
        open_batches(config, experiment, BadSampleLog())
    gathered = ["1shard 7 is missing"]
    with pytest.raises(InputError, match="process 1 reports: shard 7 is missing"):
        open_batches(config, experiment, BadSampleLog())
    gathered = [""]
    config.data.allow_missing_shards = False
    with pytest.raises(InputError, match=r"2 of 4 are missing: .*1\.tar, .*3\.tar"):
        open_batches(config, experiment, BadSampleLog())


def test_a_vocabulary_of_ones_own_cannot_be_trained(config: ConfigDict) -> None:
    experiment = build_experiment(config)
    model = experiment.objective.model
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, vocab_size=5000))
    objective = dataclasses.replace(experiment.objective, model=other)
    experiment = dataclasses.replace(experiment, objective=objective)
    with pytest.raises(InputError, match="vocabulary of 5000 and not the 49408"):
        open_batches(config, experiment, BadSampleLog())
