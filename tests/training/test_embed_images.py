"""Features of frozen towers embedded by the command, and Talk2DINO's training on them."""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tcl_jax import embed_images as command
from tcl_jax.data import features
from tcl_jax.data.sources import make_source, make_transform
from tcl_jax.errors import InputError, RunError
from tcl_jax.evaluation.tasks import find_tasks, make_evaluators
from tcl_jax.inference.model import load_model
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.ops.images import normalize
from tcl_jax.plan.plan import make_plan
from tcl_jax.training import embed_images, loop
from tcl_jax.training.batches import feature_towers
from tcl_jax.training.build import build_experiment
from tcl_jax.training.embed_images import embed
from tcl_jax.training.loop import Outcome, train
from tests.data.shards import picture, write_shard
from tests.data.test_tfds_source import CocoCaptions
from tests.devices import run_on_eight_devices
from tests.talk2dino_files import tiny_talk2dino, write_golden


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With features of the first 40 drawn scenes."""
    folder = tmp_path_factory.mktemp("towers")
    assert "embedded 40 images and 40 captions in 1 files" in embed(tiny_talk2dino(folder))
    return folder


@pytest.fixture
def config(folder: Path) -> ConfigDict:
    return tiny_talk2dino(folder)


def run(config: ConfigDict, workdir: Path, evaluators: Any = None) -> Outcome:
    return train(config, str(workdir), build_experiment(config), evaluators or {})


def written(config: ConfigDict) -> list[Path]:
    return sorted(Path(config.data.features).glob("*/*"))


# ----------------------------------------------------------------------------------- the features


@pytest.fixture
def mixed(config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    """Twelve images of a data set with 0 to 3 captions each, and five of a shard, of which one has
    no caption and one no image, in files of four images.
    """
    CocoCaptions(data_dir=str(tmp_path / "tfds")).download_and_prepare(file_format="array_record")
    members = {f"{i}.jpg": picture(50 * i, side=30 + i) for i in range(5)}
    members |= {f"{i}.json": json.dumps({"caption": [f"a {i}", " ", "b"]}).encode() for i in (0, 2)}
    members |= {"1.json": b"{}", "3.txt": b"three", "3.jpg": b"none", "4.txt": b"four"}
    monkeypatch.setattr(features, "BLOCK", 4)
    config.data.update(features=str(tmp_path / "features"), source="mixture", max_bad_share=0.5)
    tfds = {"name": "coco_captions", "data_dir": str(tmp_path / "tfds")}
    config.data.mixture.coco = {"source": "tfds", "tfds": tfds}
    shard = write_shard(tmp_path / "0.tar", members)
    config.data.mixture.tar = {"source": "tar", "shards": (shard,)}
    return config


def test_every_caption_is_a_sample_of_any_source(mixed: ConfigDict) -> None:
    # Of the data set three images have no caption: numbers 0, 4 and 8.
    assert "embedded 12 images and 23 captions in 5 files" in embed(mixed)
    experiment = build_experiment(mixed)
    method: Any = experiment.method
    pairs = make_source(mixed.data, method.resolution)
    towers = feature_towers(mixed, experiment)
    found = make_source(mixed.data, method.resolution, towers=towers)
    encoder, transform = experiment.objective.text_encoder, make_transform(mixed.data, 70)
    expected = []
    for i in range(len(pairs)):
        example = pairs[i]
        if example["key"] != "tar/3":
            captions = [text for text in example["text"] if text.strip()]
            expected += [(example["image"], caption) for caption in captions]
    assert len(found) == len(expected) == 23
    rng = np.random.default_rng(0)
    images = np.stack([transform(image, rng) for image, _ in expected])
    tokens = jnp.asarray(encoder.tokenizer()([caption for _, caption in expected]))
    pixels = normalize(jnp.asarray(images), method.pixel_statistics)
    heads = jax.jit(method.head_features)(experiment.frozen, pixels).disentangled
    heads = heads / jnp.linalg.norm(heads, axis=-1, keepdims=True)
    texts = encoder.embed_texts(experiment.frozen, tokens)
    for i, (image, text) in enumerate(zip(np.asarray(heads), np.asarray(texts), strict=True)):
        assert found[i]["heads"].dtype == np.float16
        np.testing.assert_allclose(found[i]["heads"], image, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(found[i]["text_embedding"], text, atol=1e-5)
    mixed.train.total_steps = 2
    assert run(mixed, Path(mixed.data.features).parent / "run").step == 3


def test_interrupted_and_shared_work(
    mixed: ConfigDict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files are whole or not there; the second of two processes begins with its own share."""
    real, names = embed_images.write_block, []

    def write(path: Path, *arguments: Any) -> int:
        if len(written(mixed)) == 2:
            raise KeyboardInterrupt
        names.append(path.name)
        return real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(embed_images, "write_block", write)
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(jax, "process_index", lambda: 1)
        patch.setattr(embed_images, "raise_on_all_processes", lambda function: function())
        with pytest.raises(KeyboardInterrupt):
            embed(mixed)
    assert names == ["000001.features", "000000.features"]
    assert sorted(path.name for path in written(mixed)) == sorted(names)
    with pytest.raises(InputError, match="lacks 2 of 3 files .*000000.*embed_images"):
        run(mixed, Path(mixed.data.features).parent / "run")
    times = {path: path.stat().st_mtime_ns for path in written(mixed)}
    assert "in 3 files" in embed(mixed) and "in 0 files" in embed(mixed)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    # Of few pairs all are looked at before it is told.
    mixed.data.update(max_bad_share=0.1, features=mixed.data.features + "2")
    with pytest.raises(RunError, match="5 of 17 pairs .*max_bad_share=0.1"):
        embed(mixed)


def test_more_files_than_a_process_may_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "BLOCK", 1)
    count = 2 * features._MAPPED
    pairs = [{"image": bytes([i % 256]), "text": "a", "key": str(i)} for i in range(count)]
    folder = features.feature_folder(str(tmp_path), pairs, "towers")
    for i, (path, _) in enumerate(features.blocks_of(folder, count)):
        heads = np.full((1, 2, 4), i, np.float16)
        features.write_block(path, [1], heads, np.full((1, 3), i, np.float32))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = features._MAPPED + 10 + max(int(name) for name in os.listdir("/proc/self/fd"))
    features._mapped.cache_clear()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        found = features.FeatureSource(pairs, str(tmp_path), "towers")
        read = [found[i] for i in range(count)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        features._mapped.cache_clear()
    assert [int(one["heads"][0, 0]) for one in read] == list(range(count))
    assert [int(one["text_embedding"][0]) for one in read] == list(range(count))


# -------------------------------------------------------------------------------------- refusals


REFUSED: list[tuple[str, Callable[[ConfigDict], Any]]] = [
    ("by other towers", lambda c: c.model.update(dtype="bfloat16")),
    ("of other data", lambda c: c.data.update(num_examples=41)),
    ("lacks 1 of 1 files", lambda c: c.data.update(features="elsewhere")),
    ("data.features is ''", lambda c: c.data.update(features="")),
    ("data.caption_cache=True", lambda c: c.data.update(caption_cache=True)),
    ("objective='tcl' learns from pixels", lambda c: setattr(c, "objective", "tcl")),
    ("nowhere.pth", lambda c: c.model.update(backbone="nowhere.pth")),
    ("model.backbone=''", lambda c: c.model.update(backbone="")),
]


@pytest.mark.parametrize(("message", "change"), REFUSED, ids=[m for m, _ in REFUSED])
def test_other_features_are_refused(
    config: ConfigDict, tmp_path: Path, message: str, change: Callable[[ConfigDict], Any]
) -> None:
    change(config)
    with pytest.raises(InputError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


def test_another_backbone_in_its_place_is_refused(config: ConfigDict, tmp_path: Path) -> None:
    own = tiny_talk2dino(tmp_path)
    own.data.features = config.data.features
    run(own, tmp_path / "run")
    write_golden(Path(own.model.backbone), "dinov2", **{"norm.bias": np.ones(128, np.float16)})
    with pytest.raises(InputError, match="by other towers"):
        run(own, tmp_path / "run")
    with pytest.raises(InputError, match="weights of 'backbone' are not those"):
        load_model(tmp_path / "run")


@pytest.mark.parametrize("place", [0, 200, -1, None], ids=["header", "image", "text", "short"])
def test_damaged_features_are_named(config: ConfigDict, tmp_path: Path, place: int | None) -> None:
    config.data.features = str(tmp_path / "features")
    embed(config)
    (path,) = written(config)
    content = bytearray(path.read_bytes())
    if place is None:
        content = content[:-100]
    else:
        content[place if place <= 0 else 700] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name} cannot be read .*embed_images"):
        run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is needed"),
        (["--config=configs/talk2dino.py", "--batch_size=0"], "--batch_size=0"),
        (["--config=configs/talk2dino.py", "--config.data.features="], "data.features"),
        (["--config=configs/shapes.py", "--config.data.features=x"], "objective='tcl'"),
    ],
)
def test_what_cannot_be_embedded(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        command.run(flags)


# --------------------------------------------------------------------------------------- the run


def test_a_whole_run_interrupted_and_used(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.eval.tasks = ("shapes",)
    experiment = build_experiment(config)
    evaluators = make_evaluators(config, experiment, find_tasks(config))
    whole = train(config, str(tmp_path / "whole"), experiment, evaluators)
    assert whole.finished and whole.step == 9
    rows = [json.loads(x) for x in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    losses = [row["train/contrastive"] for row in rows if "train/contrastive" in row]
    assert losses[-1] < losses[0] and "shapes/miou" in rows[-1]

    real, begun = loop.put_batch, itertools.count(1)

    def interrupting(*arguments: Any) -> Any:
        if next(begun) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(loop, "put_batch", interrupting)
    stopped = train(config, str(tmp_path / "parts"), experiment, evaluators)
    assert not stopped.finished and stopped.step == 5
    parts = train(config, str(tmp_path / "parts"), experiment, evaluators)
    assert parts.finished
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((parts.params, whole.params)))

    model = load_model(tmp_path / "parts")
    trained = jax.device_get(whole.params)["projection"]
    jax.tree.map(np.testing.assert_array_equal, model.params["projection"], trained)
    found = Segmenter(model).segment(np.zeros((70, 80, 3), np.uint8), ["a red thing", "grass"])
    assert found.labels.shape == (70, 80)


@pytest.mark.parametrize(
    ("family", "prefix"), [("dinov3", "w/visual_model.backbone."), ("tips", "vision/w/")]
)
def test_other_backbones(tmp_path: Path, family: str, prefix: str) -> None:
    """One without learned positions, and one with two class tokens."""
    config = tiny_talk2dino(tmp_path)
    file = write_golden(tmp_path / "other.safetensors", family, prefix)
    config.model.update(backbone=str(file), backbone_heads=2)
    config.data.num_examples = 8
    config.train.total_steps = 2
    embed(config, batch_size=4)
    outcome = run(config, tmp_path / "run")
    model: Any = load_model(tmp_path / "run")
    assert model.method.family == family and model.method.head_shape == (2, 96)
    learned = jax.device_get(outcome.params)["projection"]
    jax.tree.map(np.testing.assert_array_equal, model.params["projection"], learned)


@pytest.mark.slow
def test_eight_devices_find_the_same(config: ConfigDict, tmp_path: Path) -> None:
    alone = run(config, tmp_path / "alone")
    config_file = tmp_path / "tiny_run.py"
    config_file.write_text(
        "from pathlib import Path\nfrom tests.talk2dino_files import tiny_talk2dino\n\n\n"
        f"def get_config():\n    return tiny_talk2dino(Path({str(tmp_path)!r}))\n"
    )
    shared = f"'--config={config_file}', '--config.data.features={config.data.features}'"
    run_on_eight_devices(
        "from tcl_jax import embed_images, main\n"
        f"embed_images.run(['--config={config_file}'])\n"
        f"main.run([{shared}, '--workdir={tmp_path}/eight'])\n"
    )
    (ours,), (theirs,) = (
        [features._mapped(str(path)) for path in Path(root).glob("*/*")]
        for root in (tmp_path / "features", config.data.features)
    )
    np.testing.assert_allclose(ours[1]["values"], theirs[1]["values"], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(ours[2]["values"], theirs[2]["values"], atol=1e-5)
    eight = load_model(tmp_path / "eight").params["projection"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        eight, jax.device_get(alone.params)["projection"],
    )  # fmt: skip


def test_it_is_planned(config: ConfigDict) -> None:
    (step,) = make_plan(config, "local").steps
    assert step.executed == pytest.approx(step.method_flops, rel=0.02)
    config.model.backbone = "dinov2-reg:L/14"
    (large,) = make_plan(config, "local").steps
    assert large.parts["heads"] == 2 * 16 * 1024
