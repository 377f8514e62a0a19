"""The command that the end of a run names."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tcl_jax.config_flags import kept_flags, read_config
from tcl_jax.training.ending import describe_end, family_of


@pytest.mark.parametrize(
    ("name", "own", "flags", "kept"),
    [
        ("pairs", "c.data.shards = ('its own/a.tar',)\n    c.data.caption_field = 'alt'", [],
         ["--config.data.shards=('its own/a.tar',)", "--config.data.caption_field=alt"]),
        ("pairs", "c.data.shards = ('data/a', 'data/b')\n    c.eval.shards = ('data/c',)",
         ["--config.data.crop_scale", "(0.3, 1.0)", "--config.data.allow_missing_shards",
          "--config.eval.every=9", "--config.eval.background=0.9", "--config.eval.pamr",
          "--config.eval.kp_weight=0.5", "--config.train.total_steps=9",
          "--config.train.global_batch_size=16"],
         ["--config.data.shards=('data/a', 'data/b')", "--config.data.allow_missing_shards=True",
          "--config.data.crop_scale=(0.3, 1.0)", "--config.eval.shards=data/c",
          "--config.train.global_batch_size=16"]),
        ("shapes", "c.train.global_batch_size = 64  # more than configs/shapes.py has",
         ["--config.data.num_workers", "3"], ["--config.data.num_workers=3"]),
    ],
)  # fmt: skip
def test_the_next_run_has_the_data_of_this_one(
    name: str, own: str, flags: list[str], kept: list[str], tmp_path: Path
) -> None:
    """Whether fields are flags, with their values in words of their own, or a config file's."""
    file = tmp_path / "own.py"
    file.write_text(
        f"from configs.{name}_clip import get_config as base\n\ndef get_config():\n"
        f"    c = base()\n    {own}\n    return c\n"
    )
    config = read_config(str(file), flags, "main")
    assert config is not None and family_of(config) == name
    found = kept_flags(config, name)
    assert sorted(found) == sorted(kept)
    for run, upon in (("run", "run_tcl"), ("run_clip", "run")):
        clip = tmp_path / run / "clip_3.safetensors"
        said = describe_end(config, tmp_path / run, 3, clip, found)
        words = shlex.split(said.splitlines()[-1])
        assert words[3:] == [
            f"--config=configs/{name}.py", f"--workdir={tmp_path / upon}",
            f"--config.model.weights={tmp_path / run}", *found,
        ]  # fmt: skip
        assert "rates for large ones" not in said
    config.model.weights = "ViT-B/16"
    assert "rates for large ones" in describe_end(config, tmp_path / "run", 3, clip, found)
    again = read_config(f"configs/{name}.py", found, "main")
    assert again is not None
    assert again.data.to_dict() == config.data.to_dict()
    assert again.eval.shards == config.eval.shards


def test_a_mixture_is_of_a_config_file() -> None:
    """No flag adds its fields to a config that has none."""
    config = read_config("configs/pairs_clip.py", ["--config.data.source=mixture"], "main")
    assert config is not None
    said = describe_end(config, Path("run_clip"), 3, Path("run_clip/clip_3.safetensors"), [])
    assert "data.mixture, which flags cannot give" in said and "python -m" not in said
    assert "--workdir=run --config.model.weights=run_clip" in said


@pytest.mark.parametrize(
    ("tasks", "backgrounds", "judged"),
    [
        ("('voc20', 'mine.TOML', 'b.toml')", [False, False, True],
         ["--benchmark=mine.TOML", "--benchmark=b.toml", "--threshold=best"]),
        ("('voc', 'mine.toml')", [True, False], ["--benchmark=mine.toml"]),
        ("()", [], ["--images=photos", "--labels=masks", "--classes=own words.txt", "--background",
                    "--threshold=best"]),
    ],
)  # fmt: skip
def test_labelled_images_of_ones_own_are_named_as_the_config_names_them(
    tasks: str, backgrounds: list[bool], judged: list[str]
) -> None:
    """With a threshold to choose where one of them has a background."""
    flags = [f"--config.eval.tasks={tasks}", "--config.eval.names=own words.txt"]
    config = read_config("configs/pairs.py", flags, "main")
    assert config is not None
    said = describe_end(config, Path("run"), 3, None, [], backgrounds)
    evaluate, segment = said.splitlines()[-2:]
    assert shlex.split(evaluate)[3:] == ["--checkpoint=run", *judged, "--output=run_scores"]
    assert ("without --background" in said) == (tasks == "()")
    assert "--texts_file=own words.txt" in shlex.split(segment)
