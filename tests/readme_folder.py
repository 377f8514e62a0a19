"""A folder as README's readers have it once they have what it asks for, and all of it tiny."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.io
from PIL import Image

from tcl_jax.bench.photos import make_photo
from tcl_jax.files import sha256_of
from tcl_jax.models.clip import CLIPConfig
from tcl_jax.models.talk2dino import init_projection
from tcl_jax.weights.clip import clip_rules, clip_shapes
from tcl_jax.weights.mapping import to_state_dict
from tcl_jax.weights.talk2dino import projection_state_dict
from tcl_jax.weights.tcl import tcl_rules, tcl_shapes
from tests.bench.official_checkout import make_checkout
from tests.data.shards import picture, write_shard
from tests.reference import GOLDEN, load
from tests.tokenizer_files import train_pieces
from tests.torch_files import save_state_dict, save_torchscript

ROOT = Path(__file__).parent.parent
SIZES = CLIPConfig(
    embed_dim=16, resolution=32, patch_size=8, vision_width=64, vision_layers=4, text_width=64,
    text_layers=1, context_length=40,
)  # fmt: skip
"""Of what is called ViT-B/16 in the folder."""
FEATURE_LAYER = 1
NAME = "ViT-B-16.pt"
ASKED = ".venv/asked"
"""What scripts ask of Python in the folder is noted here, a command a line."""
OUTSIDE = ("gcloud", "gsutil", "sbatch", "srun", "kubectl", "docker", "ssh", "scp")

# Sizes and lengths are all that changes, so that a command finds the fields of the real config.
CONFIG = """
import sys

sys.path.insert(0, {root!r})  # before the folder that this lies in
from configs.{name} import get_config as real

SMALL = {small!r}


def get_config():
    config = real()
    own_sizes = config.model.weights.startswith("builtin:")
    for name, value in SMALL.items():
        part, field = name.split(".")
        if field in config[part] and not (own_sizes and part == "model"):
            config[part][field] = value
    return config
"""
SMALL: dict[str, Any] = {
    "model.variant": "custom",
    "model.sizes": dict(vars(SIZES)),
    "model.feature_layer": FEATURE_LAYER,
    "data.num_examples": 32,
    "data.num_workers": 0,
    "loss.area_group": 8,
    "optim.warmup_steps": 1,
    "train.global_batch_size": 16,
    "train.total_steps": 1,
    "train.backbone_from_step": 0,  # there is one phase, and one step to compile
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "eval.every": 1,
    "eval.num_scenes": 128,
    "eval.batch_size": 64,
}


def make_folder(home: Path) -> tuple[Path, str]:
    """Writes it, and beside it what README looks for in `..`.

    Returns:
        The folder, and the SHA-256 of its ViT-B-16.pt, which it takes for the published one.
    """
    folder = home / "tcl_jax"
    for name in ("configs", "weights", "photos", "masks", "data", "pictures"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(ROOT / "launch", folder / "launch")
    _write_configs(folder / "configs")
    _write_weights(folder)
    _write_photos(folder)
    _write_benchmarks(folder / "data")
    for name in ("data/cc3m/00000.tar", "data/cc12m/00000.tar"):
        (folder / name).parent.mkdir(exist_ok=True)
        members = [
            member
            for i in range(12)
            for member in ((f"{i}.jpg", picture(20 * i)), (f"{i}.txt", b"a photo of a cat"))
        ]
        write_shard(folder / name, members)
    captions = ["file_name,caption"]
    for i in range(24):  # of which two are held out
        (folder / f"pictures/{i}.jpg").write_bytes(picture(10 * i))
        captions.append(f"{i}.jpg,a photo of a cat")
    (folder / "captions.csv").write_text("\n".join(captions))
    _write_official_code(home)
    _write_venv(folder)
    _write_tools(home / "bin")
    # A clone, as launch/tpu_vm.sh brings its commit to other machines.
    identity = ["-c", "user.name=reader", "-c", "user.email=reader@example.org"]
    commit = ["commit", "--quiet", "--message=Clone"]
    for arguments in (["init", "--quiet"], ["add", "setup.py"], commit):
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True)
    return folder, sha256_of(folder / NAME)


def _write_configs(folder: Path) -> None:
    for path in (ROOT / "configs").glob("*.py"):
        text = CONFIG.format(root=str(ROOT), name=path.stem, small=SMALL)
        (folder / path.name).write_text(text)


def _write_weights(folder: Path) -> None:
    clip = to_state_dict(clip_rules(SIZES), _random(clip_shapes(SIZES), np.float16))
    sizes = {"input_resolution": SIZES.resolution, "context_length": SIZES.context_length}
    save_torchscript(folder / NAME, clip, {**sizes, "vocab_size": SIZES.vocab_size})
    shutil.copy(folder / NAME, folder / "weights")
    tcl = to_state_dict(tcl_rules(SIZES, FEATURE_LAYER), _random(tcl_shapes(SIZES, FEATURE_LAYER)))
    save_state_dict(folder / "weights/tcl.pth", {"model": tcl})
    dinov2 = {k.removeprefix("w/"): x for k, x in load("dinov2").items() if k.startswith("w/")}
    save_state_dict(folder / "dinov2_vitb14_reg4_pretrain.pth", dinov2)
    pieces, tokens = train_pieces(folder / "tokenizer.model"), "token_emb/emb_var"
    for golden, tower in (("tips", "vision"), ("tips_text", "text")):
        start = f"{tower}/w/"
        arrays = {k.removeprefix(start): x for k, x in load(golden).items() if start in k}
        arrays |= {tokens: arrays[tokens][:pieces]} if tokens in arrays else {}
        np.savez(folder / f"tips_v2_b14_{tower}.npz", **arrays)
    projection = init_projection(jax.random.key(0), SIZES.embed_dim, 128)
    save_state_dict(folder / "vitb_mlp_infonce.pth", projection_state_dict(projection))


def _random(shapes: Any, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: np.asarray(0.03 * rng.standard_normal(x.shape, np.float32), dtype), shapes
    )


def _write_photos(folder: Path) -> None:
    """Photos, and beside the masks that `segment` makes the true labels, which `evaluate` reads."""
    for i in range(2):
        photo = Image.fromarray(make_photo(i)[0]).resize((80, 60))
        photo.save(folder / f"photos/photo{i}.jpg")
        label = np.asarray(photo.convert("L"))
        Image.fromarray((label > 128).astype(np.uint8)).save(folder / f"masks/photo{i}.png")
    (folder / "names.txt").write_text("a cat\ngrass, lawn\n")


def _write_benchmarks(data: Path) -> None:
    """An image of each for val, and one for train of those that training is judged on.

    Of labels that have to be derived there are the sources.
    """
    shutil.copytree(GOLDEN / "eval/data", data, dirs_exist_ok=True)
    for path in data.rglob("*_000001*"):
        if "VOCdevkit" not in path.parts:
            path.unlink()
    voc = data / "VOCdevkit"
    context = voc / "VOC2010/ImageSets/SegmentationContext/val.txt"
    for split in (context, voc / "VOC2012/ImageSets/Segmentation/val.txt"):
        train, val = split.read_text().split()
        split.write_text(f"{val}\n")
        split.with_name("train.txt").write_text(f"{train}\n")
    val = context.read_text().strip()
    (voc / f"VOC2010/SegmentationClassContext/{val}.png").unlink()
    with Image.open(voc / f"VOC2010/JPEGImages/{val}.jpg") as image:
        values = np.full(image.size[::-1], 2, np.uint16)
    values[: len(values) // 2] = 9
    (voc / "VOC2010/trainval").mkdir()
    scipy.io.savemat(voc / f"VOC2010/trainval/{val}.mat", {"LabelMap": values})
    annotations = data / "coco_stuff164k/annotations/val2017"
    for path in [*annotations.glob("*_instanceTrainIds.png")]:
        raw = np.asarray(Image.open(path)) % 2  # 0 is a person, 1 a bicycle
        key = path.name.removesuffix("_instanceTrainIds.png")
        Image.fromarray(raw.astype(np.uint8)).save(annotations / f"{key}.png")
        path.unlink()


def _write_official_code(home: Path) -> None:
    """../tcl and ../env/bin/python, which answer without computing anything."""
    path, python = make_checkout(home)
    Path(path).rename(home / "tcl")
    (home / "env/bin").mkdir(parents=True)
    Path(python).rename(home / "env/bin/python")


def _write_venv(folder: Path) -> None:
    """A .venv that the scripts take for one they have made: it notes which run they ask for."""
    shutil.copy(ROOT / "setup.py", folder)
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    note = (
        f'case "$*" in "-m tcl_jax."*) echo "$*" >>{ASKED} ;; *) exec "{sys.executable}" "$@" ;; '
    )
    python.write_text(f"#!/bin/sh\n{note}esac\n")
    python.chmod(0o755)
    stamp = ["bash", "-c", 'echo "$(cksum <setup.py) $PWD" >.venv/installed']
    subprocess.run(stamp, cwd=folder, check=True)


def _write_tools(folder: Path) -> None:
    """Programs of clouds and clusters, which no test may start: these fail."""
    folder.mkdir()
    for name in OUTSIDE:
        (folder / name).write_text(f'#!/bin/sh\necho "{name} was started: $*"\nexit 97\n')
        (folder / name).chmod(0o755)
