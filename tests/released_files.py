"""Files of every released model, all of it tiny, under its authors' names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from tcl_jax.data.tokenizer import clip_merges, clip_tokens
from tests.clip_dinoiser_files import write_head
from tests.inference.test_backbone import Tensors, weights_of, write
from tests.inference.test_dino import dino_of
from tests.inference.test_zero_shot import texts_of
from tests.reference import GOLDEN, load
from tests.talk2dino_files import write_talk2dino
from tests.tokenizer_files import train_pieces

Files = dict[str, Path]


def _widen(texts: Tensors, name: str) -> None:
    """Rows of an embedding for all of CLIP's tokens."""
    vocabulary = len(clip_tokens(clip_merges()))
    texts[name] = np.resize(texts[name], (vocabulary, texts[name].shape[1]))


def _clip(folder: Path) -> Files:
    tensors = load("clip_state_dict")
    _widen(tensors, "token_embedding.weight")
    return {"clip": write(folder / "clip.npz", tensors)}


def _tcl(folder: Path) -> Files:
    return {**_clip(folder), "tcl": GOLDEN / "tcl_state_dict.npz"}


def _proxyclip(folder: Path) -> Files:
    return {**_clip(folder), "second": write(folder / "dino.npz", dino_of("proxyclip"))}


def _clip_dinoiser(folder: Path) -> Files:
    return {**_clip(folder), "head": write_head(folder / "last.pt")}


def _tips(folder: Path) -> Files:
    texts, tokens = texts_of("tips"), "token_emb/emb_var"
    texts[tokens] = texts[tokens][: train_pieces(folder / "tokenizer.model")]
    return {
        "backbone": write(folder / "vision.npz", weights_of("tips")),
        "text": write(folder / "text.npz", texts),
    }


def _dinotxt(folder: Path) -> Files:
    texts = texts_of("dinotxt")
    _widen(texts, "text_model.backbone.token_embedding.weight")
    head = {k: texts.pop(k) for k in [*texts] if "visual_model.head" in k}
    return {
        "backbone": write(folder / "vision.npz", weights_of("dinov3")),
        "text": write(folder / "text.npz", texts),
        "head": write(folder / "head.npz", head),
    }


def _talk2dino(folder: Path) -> Files:
    return dict(zip(("projection", "backbone", "clip"), write_talk2dino(folder), strict=True))


WRITERS: dict[str, Callable[[Path], Files]] = {
    "tcl": _tcl,
    "maskclip": _clip,
    "sc_clip": _clip,
    "proxyclip": _proxyclip,
    "clip_dinoiser": _clip_dinoiser,
    "tips": _tips,
    "dinotxt": _dinotxt,
    "talk2dino": _talk2dino,
}
"""What writes the files of a model's parts into a folder, by the model's name."""


def weights_flags(files: Files) -> list[str]:
    """The files as --weights."""
    return [f"--weights={part}={file}" for part, file in files.items()]
