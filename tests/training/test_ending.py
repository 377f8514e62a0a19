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
          "--config.eval.every=9", "--config.train.total_steps=9"],
         ["--config.data.shards=('data/a', 'data/b')", "--config.data.allow_missing_shards=True",
          "--config.data.crop_scale=(0.3, 1.0)", "--config.eval.shards=data/c"]),
        ("shapes", "pass", ["--config.data.num_workers", "3"], ["--config.data.num_workers=3"]),
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
    found = kept_flags(config, f"configs/{name}_clip.py")
    assert sorted(found) == sorted(kept)
    for run, upon in (("run", "run_tcl"), ("run_clip", "run")):
        clip = tmp_path / run / "clip_3.safetensors"
        said = describe_end(config, tmp_path / run, 3, clip, found)
        words = shlex.split(said.splitlines()[-1])
        assert words[3:] == [
            f"--config=configs/{name}.py", f"--workdir={tmp_path / upon}",
            f"--config.model.weights={tmp_path / run}", *found,
        ]  # fmt: skip
    again = read_config(f"configs/{name}.py", found, "main")
    assert again is not None
    assert again.data.to_dict() == config.data.to_dict()
    assert again.eval.shards == config.eval.shards


def test_labelled_images_of_ones_own_are_named_as_the_config_names_them(tmp_path: Path) -> None:
    flags = ["--config.eval.tasks=('mine.toml',)", "--config.eval.names=own words.txt"]
    config = read_config("configs/pairs.py", flags, "main")
    assert config is not None
    evaluate, segment = describe_end(config, Path("run"), 3, None, []).splitlines()[-2:]
    assert {"--benchmark=mine.toml", "--threshold=best"} <= {*shlex.split(evaluate)}
    assert "--texts_file=own words.txt" in shlex.split(segment)
