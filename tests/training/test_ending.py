"""The command that the end of a run names."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tcl_jax.config_flags import read_config
from tcl_jax.training.ending import describe_end


@pytest.mark.parametrize(
    ("name", "flags", "shown"),
    [
        ("pairs", [], ["--config.data.shards=('its own/a.tar',)"]),
        (
            "pairs",
            ["--config.data.shards", "data/b", "--noconfig.data.allow_missing_shards"],
            ["--config.data.shards=('data/b',)", "--config.data.allow_missing_shards=False"],
        ),
        ("shapes", ["--config.data.num_workers", "1"], ["--config.data.num_workers=1"]),
    ],
)  # fmt: skip
def test_the_next_run_has_the_data_of_this_one(
    name: str, flags: list[str], shown: list[str], tmp_path: Path
) -> None:
    """Whether a flag has its value in a word of its own, and what a config file names itself."""
    own = tmp_path / "own.py"
    own.write_text(
        f"from configs.{name}_clip import get_config as base\n\ndef get_config():\n"
        "    c = base()\n    c.data.shards = ('its own/a.tar',)\n    return c\n"
    )
    config = read_config(str(own), flags, "main")
    assert config is not None
    said = describe_end(config, tmp_path / "run", 3, tmp_path / "run/clip_3.safetensors", flags)
    words = shlex.split(said.splitlines()[-1])
    assert words[3:] == [
        f"--config=configs/{name}.py", f"--workdir={tmp_path / 'run'}_tcl",
        f"--config.model.weights={tmp_path / 'run'}", *shown,
    ]  # fmt: skip
    again = read_config(
        f"configs/{name}.py", [word for word in words[5:] if ".data." in word], "main"
    )
    assert again is not None
    assert name == "shapes" or again.data.shards == config.data.shards
