"""Image-text pairs of one's own, from an empty folder to masks; each command names the next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from tcl_jax.shapes.source import ShapesSource, class_names
from tests.in_process import run_module

QUICK = [
    f"--config.{field}={value}"
    for field, value in {
        "train.global_batch_size": 8, "train.total_steps": 2, "train.backbone_from_step": 9,
        "eval.every": 2,
    }.items()
]  # fmt: skip
SMALL = [
    *(f"--config.model.sizes.{name}=64" for name in ("vision_width", "text_width")),
    *(f"--config.model.sizes.{name}=2" for name in ("vision_layers", "text_layers")),
    "--config.model.sizes.embed_dim=16", "--config.model.sizes.resolution=32",
    "--config.data.num_workers=0", "--config.eval.names=names.txt",
]  # fmt: skip
LABELLED = 3


def write_data(folder: Path) -> None:
    """Photographs with a drawn object: pictures with captions, and others with label maps."""
    for name in ("pictures", "photos", "masks"):
        (folder / name).mkdir()
    backgrounds = [getattr(skimage.data, name)() for name in ("astronaut", "chelsea", "coffee")]
    scenes = ShapesSource("validation", num_examples=30, image_size=48, max_objects=1)
    captions = ["file_name,caption"]
    for i in range(len(scenes)):
        label = scenes[i]["label"]
        ground = backgrounds[i % 3][5 * i :, 5 * i :][:48, :48]
        picture = Image.fromarray(np.where(label[..., None] > 0, scenes[i]["image"], ground))
        picture.save(folder / f"{'photos' if i < LABELLED else 'pictures'}/{i}.png")
        if i < LABELLED:
            Image.fromarray(label).save(folder / f"masks/{i}.png")
        else:
            captions.append(f"{i}.png,a photo of something {class_names()[label.max() - 1]}")
    (folder / "captions.csv").write_text("\n".join(captions))
    (folder / "names.txt").write_text("\n".join(class_names()))


def said(folder: Path, *words: str) -> str:
    done = run_module(["python", "-m", *words], folder)
    assert done.code == 0, done.said
    return done.said


def next_commands(text: str) -> list[list[str]]:
    """Words of the commands that the end of another names."""
    lines = text[text.rindex("next, ") :].splitlines()
    words = [shlex.split(line) for line in lines if line.startswith("  ")]
    assert words and all(command[:2] == ["python", "-m"] for command in words)
    return [command[2:] for command in words]


@pytest.mark.slow
def test_from_pairs_to_masks(tmp_path: Path) -> None:
    write_data(tmp_path)
    pack = "tcl_jax.pack pictures --captions=captions.csv data/own --held_out=6"
    (clip,) = next_commands(said(tmp_path, *pack.split()))
    assert "--workdir=runs/pairs_clip" in clip
    end = said(tmp_path, *clip, *SMALL, *QUICK)
    assert "runs/pairs_clip/clip_3.safetensors" in end

    (upon,) = next_commands(end)
    assert {
        "--config=configs/pairs.py", "--workdir=runs/pairs",
        "--config.model.weights=runs/pairs_clip", "--config.data.shards=data/own/train",
        "--config.eval.shards=data/own/held_out", "--config.eval.names=names.txt",
    } <= {*upon}  # fmt: skip
    end = said(tmp_path, *upon, *QUICK)
    frozen = json.loads((tmp_path / "runs/pairs/config.json").read_text())["frozen"]["clip"]
    assert frozen["weights"] == str(tmp_path / "runs/pairs_clip/clip_3.safetensors")
    assert frozen["given"] == "runs/pairs_clip"
    assert {*json.loads((tmp_path / "runs/pairs/pairs.json").read_text())["scores"]["tcl"]} >= {
        "image_to_text_at_1", "naming_at_1",
    }  # fmt: skip

    evaluate, segment = next_commands(end)
    assert "--texts_file=names.txt" in segment
    (segment,) = next_commands(said(tmp_path, *evaluate))
    results = json.loads((tmp_path / "runs/pairs_scores/results.json").read_text())
    said(tmp_path, *segment)
    (record,) = (tmp_path / "out").glob("*.json")
    options = json.loads(record.read_text())["options"]
    assert options["threshold"] == results["best_threshold"]

    wrong = [*clip[:2], "--workdir=other", *clip[3:], "--config.model.weights=runs/pairs"]
    done = run_module(["python", "-m", *wrong], tmp_path)
    assert done.code == 2 and "a run's workdir with objective='tcl'" in done.said
    assert not (tmp_path / "other").exists()
