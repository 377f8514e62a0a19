"""Image-text pairs of one's own: a CLIP, TCL upon it, masks; each command names the next."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.shards import write_photos
from tests.in_process import run_module

SMALL = [
    *(f"--config.model.sizes.{name}=64" for name in ("vision_width", "text_width")),
    *(f"--config.model.sizes.{name}=2" for name in ("vision_layers", "text_layers")),
    "--config.model.sizes.embed_dim=16", "--config.model.sizes.resolution=32",
]  # fmt: skip
QUICK = [
    f"--config.{field}={value}"
    for field, value in {
        "train.global_batch_size": 8, "train.total_steps": 2, "train.backbone_from_step": 9,
        "data.num_workers": 0,
    }.items()
]  # fmt: skip


def said(folder: Path, *words: str) -> str:
    done = run_module(["python", "-m", *words], folder)
    assert done.code == 0, done.said
    return done.said


def next_command(text: str) -> list[str]:
    """Words of the first command that the end of a run names."""
    line = text[text.index("next,") :].splitlines()[1]
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    return words[2:]


@pytest.mark.slow
def test_from_pairs_to_masks(tmp_path: Path) -> None:
    (tmp_path / "my pairs").mkdir()
    write_photos(tmp_path / "my pairs/a.tar", 12)
    shards = "--config.data.shards=('my pairs/*.tar',)"
    clip = ["tcl_jax.main", "--config=configs/pairs_clip.py", "--workdir=clip", shards, *QUICK]
    end = said(tmp_path, *clip, *SMALL)
    assert "clip/clip_3.safetensors" in end

    upon = next_command(end)
    assert "--config=configs/pairs.py" in upon and shards in upon
    end = said(tmp_path, *upon, *QUICK)
    frozen = json.loads((tmp_path / "clip_tcl/config.json").read_text())["frozen"]["clip"]
    assert frozen["weights"] == str(tmp_path / "clip/clip_3.safetensors")
    assert frozen["given"] == "clip"

    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(buffer, "PNG")
    (tmp_path / "photo.jpg").write_bytes(buffer.getvalue())
    # The CLIP goes on, and what was trained upon the earlier one keeps that, also if it goes on.
    assert "the longer schedule" not in end
    longer = ["--config.train.total_steps=4"]
    assert "clip/clip_5.safetensors" in said(tmp_path, *clip, *SMALL, *longer)
    assert "clip_tcl/checkpoints/5" in said(tmp_path, *upon, *QUICK, *longer)
    assert json.loads((tmp_path / "clip_tcl/config.json").read_text())["frozen"]["clip"] == frozen
    said(tmp_path, *next_command(end))
    assert (tmp_path / "out").is_dir()

    wrong = [*clip[:2], "--workdir=other", shards, "--config.model.weights=clip_tcl"]
    done = run_module(["python", "-m", *wrong], tmp_path)
    assert done.code == 2 and "a run's workdir with objective='tcl'" in done.said
    assert not (tmp_path / "other").exists()
