"""Released models by name: "talk2dino:B/14" is a method and the size of its backbone.

A new one is a row of `RELEASES`; commands and the Segmenter take whatever is there.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from tcl_jax.errors import InputError
from tcl_jax.inference.model import Model, model_from_backbone, model_from_torch
from tcl_jax.inference.talk2dino import talk2dino_model
from tcl_jax.models.clip import VARIANTS
from tcl_jax.models.families import FAMILIES
from tcl_jax.weights.hub import CLIP_FILES, OFFICIAL, locate_laion, locate_supplied
from tcl_jax.weights.load import Source

PROJECTIONS = {
    "B/14": ("dinov2-reg:B/14", ("vitb_mlp_infonce.pth",)),
    "L/14": ("dinov2-reg:L/14", ("vitl_mlp_infonce.pth",)),
    "B/16": ("dinov3:B/16", ("dinov3_vitb_mlp_infonce.pth", "dinov3_vitb_mlp_infonce_448.pth")),
}
"""Talk2DINO's backbones, and the names of the file with the projection for each."""

_WHERE = (
    "no licence is stated for it, so it is not downloaded: get it from weights/ of "
    "https://github.com/lorebianchi98/Talk2DINO, or take the whole model, in which it is, at "
    "https://huggingface.co/lorebianchi98"
)


@dataclasses.dataclass(frozen=True)
class Release:
    """A row: what is known by one name.

    Attributes:
        load: makes the model of a size, or of "" where files are given of all that is `sized`;
            parts and options are its keyword arguments.
        sizes: of the backbone.
        parts: what a file may be given of, in place of a download.
        sized: those of them that are looked for by the size.
        options: further keyword arguments.
    """

    load: Callable[..., Model]
    sizes: tuple[str, ...]
    parts: tuple[str, ...]
    sized: tuple[str, ...]
    options: tuple[str, ...] = ()


def load_pretrained(name: str, **given: Any) -> Model:
    """A released model as it is meant to be used, see `model.Model.settings`.

    What is no file that is given comes from the folder weights/, a cache, or is downloaded once.

    Args:
        name: such as "talk2dino:B/14", "tips:L/14", "dinotxt:L/16", "maskclip:ViT-B/16" or "tcl";
            the size may be left out where there is one alone, or its files are given.
        given: files by part, and options, of the name's row of `RELEASES`. A backbone that is given
            has its text tower in the same file, unless that is given, too.

    Raises:
        InputError: if the name, its size, a part or an option is unknown, or a file cannot be used
            or had; says which file to put where.
        RunError: if JAX has no device.
    """
    kind, _, size = name.partition(":")
    row = RELEASES.get(kind)
    if row is None or size not in ("", *row.sizes):
        known = RELEASES if row is None else {kind: row}
        names = [f"{k}:{x}" for k, release in known.items() for x in release.sizes]
        raise InputError(f"model {name!r} is unknown; choose one of {', '.join(names)}")
    if unknown := [x for x in given if x not in row.parts + row.options]:
        raise InputError(
            f"model {name!r} has no {unknown[0]!r}; files are taken of {', '.join(row.parts)}"
        )
    lacking = [part for part in row.sized if part not in given]
    if lacking and len(row.sizes) == 1:
        (size,) = row.sizes
    if lacking and not size:
        raise InputError(
            f"model {name!r} needs a size, as in {kind}:{row.sizes[0]} (of {', '.join(row.sizes)}),"
            f" or a file of {' and '.join(lacking)}"
        )
    model = row.load(size, **given)
    found: Any = getattr(model.method, "config", None)
    own = [
        x for x, y in VARIANTS.items()
        if found and found == dataclasses.replace(y, activation=found.activation)
    ]  # fmt: skip
    if size in VARIANTS and own and size not in own:
        raise InputError(
            f"model {name!r}: {model.origin['clip']['file']} is {found.title}; give another file "
            f"as clip, or leave the size out ({kind})"
        )
    return model


def _clip(method: str, **parts: Source) -> Release:
    """Of a method on CLIP, with the usual source of each further part."""

    def load(size: str, clip: Source = "", **given: Any) -> Model:
        return model_from_torch(clip or size, method=method, **{**parts, **given})

    options = ("activation", "prefix")
    return Release(load, tuple(CLIP_FILES), ("clip", *parts), ("clip",), options)


def _tcl(size: str, clip: Source = "", tcl: Source = OFFICIAL, **options: Any) -> Model:
    return model_from_torch(clip or size, tcl, **options)


def _clip_dinoiser(size: str, clip: Source = "", head: Source = OFFICIAL, **options: Any) -> Model:
    del size  # LAION's comes in one
    return model_from_torch(clip or locate_laion(), method="clip_dinoiser", head=head, **options)


def _zero_shot(family: str, *towers: str) -> Release:
    def load(size: str, backbone: Source = "", **given: Any) -> Model:
        files = [x for tower in towers for x in _listed(given.pop(tower, ()))]
        name = f"{family}:{size}" if size else ""
        return model_from_backbone(backbone or name, text=files, family=family, name=name, **given)

    options = ("heads", "text_heads", "prefix", "own_patches")
    sizes = tuple(FAMILIES[family].sizes)
    return Release(load, sizes, ("backbone", *towers), ("backbone",), options)


def _listed(files: Source | Sequence[Source]) -> list[Source]:
    return [files] if isinstance(files, (str, os.PathLike)) else [*files]


def _talk2dino(
    size: str,
    projection: Source = "",
    backbone: Any = "",
    clip: Source | None = "ViT-B/16",
    **options: Any,
) -> Model:
    name, files = PROJECTIONS.get(size, ("", ()))
    if not projection:
        what = f"the projection of talk2dino:{size}"
        projection = locate_supplied("projection", what, files, _WHERE)
    return talk2dino_model(projection, backbone or name, clip, name=name, **options)


RELEASES: dict[str, Release] = {
    "tcl": Release(_tcl, ("ViT-B/16",), ("clip", "tcl"), ("clip",), ("activation", "prefix")),
    "maskclip": _clip("maskclip"),
    "sclip": _clip("sclip"),
    "naclip": _clip("naclip"),
    "clearclip": _clip("clearclip"),
    "sc_clip": _clip("sc_clip"),
    "proxyclip": _clip("proxyclip", second="dino:B/8"),
    "clip_dinoiser": Release(
        _clip_dinoiser, ("ViT-B/16",), ("clip", "head"), (), ("activation", "prefix")
    ),
    "tips": _zero_shot("tips", "text"),
    "dinotxt": _zero_shot("dinotxt", "text", "head"),
    "dinotxt-v2": _zero_shot("dinotxt-v2", "text", "head"),
    "talk2dino": Release(
        _talk2dino,
        tuple(PROJECTIONS),
        ("projection", "backbone", "clip"),
        ("projection", "backbone"),
        ("resize_dim", "antialias", "prefix"),
    ),
}
"""By the name before the colon."""
