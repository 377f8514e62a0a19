"""Captions embedded by the command, and a training that reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tcl_jax import embed_captions as command
from tcl_jax.config_flags import read_config
from tcl_jax.data.sources import make_source
from tcl_jax.data.tokenizer import ClipTokenizer
from tcl_jax.errors import InputError
from tcl_jax.inference.texts import text_tower_id
from tcl_jax.models.flops import text_tower
from tcl_jax.parallel.mesh import data_mesh
from tcl_jax.plan.traced_flops import traced_flops
from tcl_jax.plan.training_program import trace_step
from tcl_jax.training import embed_captions
from tcl_jax.training.batches import caption_tower
from tcl_jax.training.build import abstract_experiment, build_experiment
from tcl_jax.training.embed_captions import embed
from tcl_jax.training.loop import Outcome, train
from tests.data.shards import picture, write_shard
from tests.tiny import tiny_config

CONFIG = """
from tests.tiny import tiny_settings

def get_config():
    config = tiny_settings({weights!r}).unlock()
    config.data.update(source="tar", shards=({shards!r},))
    return config
"""


def members(begin: int, end: int) -> dict[str, bytes]:
    """Pictures with captions of several lengths; of number 3 there is none, that of 4 is empty."""
    found = {}
    for i in range(begin, end):
        found[f"{i}.jpg"] = picture(i)
        text = " " if i == 4 else f"picture {i} " + "of a thing " * (i % 9)
        content = {"url": "x"} if i == 3 else {"caption": text}
        found[f"{i}.json"] = json.dumps(content).encode()
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a tiny CLIP."""
    return str(tiny_config(tmp_path_factory.mktemp("weights")).model.weights)


@pytest.fixture
def config_file(tmp_path: Path, weights: str) -> str:
    """Three shards of 12 pairs, and a config that trains on them."""
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", members(12 * shard, 12 * shard + 12))
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "c.py"
    path.write_text(CONFIG.format(weights=weights, shards=f"{tmp_path}/*.tar"))
    return str(path)


def read(config_file: str, *overrides: str) -> ConfigDict:
    config = read_config(config_file, overrides, "main")
    assert config is not None
    return config


def written(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if ".captions" in p.name)


def test_once_and_not_again(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--config={config_file}", "--batch_size=5"]
    command.run(flags)
    assert "embedded 35 captions of 3 tar shards" in capsys.readouterr().out
    assert len(written(tmp_path)) == 3
    times = [(tmp_path / name).stat().st_mtime_ns for name in written(tmp_path)]
    command.run(flags)
    assert "embedded 0 captions of 0 tar shards (0 GB); 3 shards had" in capsys.readouterr().out
    assert times == [(tmp_path / name).stat().st_mtime_ns for name in written(tmp_path)]
    # Another text tower has files of its own.
    flags.append("--config.model.dtype=bfloat16")
    command.run(flags)
    sizes = [(tmp_path / name).stat().st_size for name in written(tmp_path)]
    header = 192
    assert sorted(sizes) == [header + 12 * (2 * 16 + 4)] * 3 + [header + 12 * (4 * 16 + 4)] * 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config is needed"),
        (["--config=configs/tcl.py", "--batch_size=0"], "--batch_size=0"),
        (["--config=configs/shapes_clip.py"], "objective='clip'"),
        (["--config=configs/shapes.py"], "ShapesSource"),
        (["--config=configs/tcl.py", "--config.train.total_steps=0"], "total_steps=0"),
    ],
)
def test_what_cannot_be_embedded(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        command.run(flags)


def test_mixtures_and_remote_shards(config_file: str, tmp_path: Path) -> None:
    """Their files lie in `data.index_dir`; a part without shards is refused."""
    config = read(config_file).unlock()
    config.data.update(source="mixture", index_dir=str(tmp_path / "indexes"))
    config.data.mixture.near = {"source": "tar", "shards": (f"{tmp_path}/0.tar",)}
    config.data.mixture.far = {"source": "tar", "shards": (f"file://{tmp_path}/{{1..2}}.tar",)}
    assert "of 3 tar shards" in embed(config)
    assert len(written(tmp_path / "indexes")) == 3 and not written(tmp_path)
    experiment = build_experiment(config)
    encoder, params = caption_tower(config, experiment)
    tower = text_tower_id(encoder, params)
    source = make_source(config.data, 32, text_tower=tower)
    tokens = jnp.asarray(ClipTokenizer(40)([source[i]["text"][0] for i in (0, 23, 35)]))
    texts = np.asarray(encoder.embed_texts(params, tokens))
    for i, text in zip((0, 23, 35), texts, strict=True):
        np.testing.assert_allclose(source[i]["text_embedding"], text[None], atol=1e-5)
    assert source[27]["text"] == [] and source[27]["text_embedding"].shape == (0, 16)
    config.data.mixture.drawn = {"source": "shapes"}
    with pytest.raises(InputError, match="data.mixture.drawn.source"):
        embed(config)


# ------------------------------------------------------------------------- interrupted, and shared


def test_interrupted_work_is_kept(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = read(config_file), embed_captions.write_caption_file

    def write(*arguments: Any) -> int:
        if len(written(tmp_path)) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(embed_captions, "write_caption_file", write)
        with pytest.raises(KeyboardInterrupt):
            embed(config)
    assert [name[:5] for name in written(tmp_path)] == ["0.tar", "1.tar"]
    with pytest.raises(InputError, match=r"1 of 3 tar shards have no embeddings .*2\.tar"):
        run(cached(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "12 captions of 1 tar shards" in embed(config)


def test_processes_begin_with_their_own_share(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What others write meanwhile is not made again, and what they do not is."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(embed_captions, "raise_on_all_processes", lambda function: function())
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    names: list[str] = []
    real = embed_captions.write_caption_file

    def write(index: Any, *arguments: Any) -> int:
        names.append(Path(index.path).name[:5])
        return real(index, *arguments)

    monkeypatch.setattr(embed_captions, "write_caption_file", write)
    assert "of 3 tar shards" in embed(read(config_file))
    assert names == ["1.tar", "2.tar", "0.tar"]  # its own; then the other's, the last one first
    for name in written(tmp_path)[1:]:
        (tmp_path / name).unlink()
    assert "24 captions of 2 tar shards" in embed(read(config_file))


# ----------------------------------------------------------------------------------- in training


def cached(config: ConfigDict) -> ConfigDict:
    config = config.copy_and_resolve_references()
    config.data.caption_cache = True
    return config.lock()


def run(config: ConfigDict, workdir: Path) -> Outcome:
    return train(config, str(workdir), build_experiment(config), {})


def losses(workdir: Path) -> dict[str, np.ndarray]:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/total" in row]
    names = ("total", "tclf", "tcli", "area", "neg_area", "tv_img", "tv_mask", "grad_norm")
    return {name: np.array([row[f"train/{name}"] for row in rows]) for name in names}


def step_flops(config: ConfigDict) -> float:
    experiment = abstract_experiment(config)
    return traced_flops(trace_step(config, experiment, data_mesh(), phase=2).jaxpr)


@pytest.mark.slow
def test_same_losses_without_the_text_tower(config_file: str, tmp_path: Path) -> None:
    config = read(config_file)
    config.train.update(backbone_from_step=0, total_steps=5, checkpoint_every=5)
    config.eval.update(tasks=(), best_metric="")
    plain = run(config, tmp_path / "plain")
    embed(config)
    ours = run(cached(config), tmp_path / "cached")
    for name, expected in losses(tmp_path / "plain").items():
        np.testing.assert_allclose(
            losses(tmp_path / "cached")[name], expected, rtol=1e-5, atol=1e-6, err_msg=name
        )
    # Adam makes of a rounding difference in a tiny gradient a part of a step.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours.params, plain.params
    )
    bad = [(tmp_path / run / "bad_samples.jsonl").read_text() for run in ("plain", "cached")]
    assert bad[0] == bad[1] and "no_caption" in bad[0] and "empty_caption" in bad[0]

    texts = config.train.global_batch_size * text_tower(abstract_experiment(config).method.config)
    assert step_flops(config) - step_flops(cached(config)) == pytest.approx(texts, rel=0.02)


def test_other_weights_are_refused(config_file: str, tmp_path: Path) -> None:
    config = read(config_file)
    embed(config)
    config.model.dtype = "bfloat16"
    with pytest.raises(InputError, match="3 of 3 .* no embeddings .*weights"):
        run(cached(config), tmp_path / "run")
    with config.unlocked():
        config.data.source = "shapes"
    with pytest.raises(InputError, match="data.source='shapes': embeddings of captions are kept"):
        run(cached(config), tmp_path / "run")
