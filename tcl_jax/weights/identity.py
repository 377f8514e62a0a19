"""Which frozen weights a run was trained on, and whether those that are there now are the same."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

from tcl_jax.checkpoints.leaves import hash_leaves
from tcl_jax.errors import InputError
from tcl_jax.files import user_path
from tcl_jax.weights.backbones import LoadedBackbone, load_backbone
from tcl_jax.weights.folders import trained_clip
from tcl_jax.weights.load import Pretrained, Source, load_clip
from tcl_jax.weights.text_towers import LoadedTexts, load_text_tower

Identity = Mapping[str, str]
"""`weights` (a name, or the whole path, of a run's CLIP that of its file), `given` (the same as the
config has it), `file_sha256` (of the file), `arrays_sha256` (of the parameters as float32, whatever
file they came in), and what decides how they are read and used, such as CLIP's `prefix` and
`activation`."""


def identify(
    weights: Source, params: Any, origin: Mapping[str, str], **options: str
) -> dict[str, str]:
    """What a run records of parameters that were loaded by `weights`, with these options."""
    path = user_path(weights)
    path = trained_clip(path) or path
    return {
        "weights": os.fspath(path.absolute() if path.exists() else weights),
        "given": os.fspath(weights),
        "file_sha256": origin["sha256"],
        "arrays_sha256": hash_leaves(params),
        **options,
    }


def identify_clip(weights: Source, clip: Pretrained) -> dict[str, str]:
    """`identify` of a CLIP, or of the one tower that `params` are of."""
    prefix, activation = clip.origin["prefix"] or ".", clip.config.activation
    return identify(weights, clip.params, clip.origin, prefix=prefix, activation=activation)


def text_tower_of(clip: Pretrained) -> Pretrained:
    """The same with the parameters of the text tower alone."""
    return dataclasses.replace(clip, params=clip.params["text"])


def _load_clip(
    source: str, recorded: Identity, part_of: Callable[[Pretrained], Pretrained] = lambda x: x
) -> Loaded:
    prefix, activation = recorded["prefix"], recorded.get("activation")
    part = part_of(load_clip(source, activation=activation, prefix=prefix, dtype=None))
    return part.params, part.origin, identify_clip(source, part)


def identify_texts(weights: Source, texts: LoadedTexts) -> dict[str, str]:
    """`identify` of a text tower that is no CLIP's."""
    prefix, tower = texts.origin["prefix"] or ".", texts.origin["style"]
    return identify(weights, texts.params, texts.origin, prefix=prefix, tower=tower)


def _load_text(source: str, recorded: Identity) -> Loaded:
    if (texts := load_text_tower(source, recorded["prefix"], None)) is not None:
        return texts.params, texts.origin, identify_texts(source, texts)
    return _load_clip(source, recorded, text_tower_of)


def identify_backbone(weights: Source, backbone: LoadedBackbone) -> dict[str, str]:
    """`identify` of a vision tower."""
    prefix, heads = backbone.origin["prefix"] or ".", backbone.params["blocks_0"]["attn"]
    return identify(
        weights,
        backbone.params,
        backbone.origin,
        prefix=prefix,
        family=backbone.family.name,
        heads=str(heads["in_proj"]["kernel"].shape[-2]),
    )


def _load_backbone(source: str, recorded: Identity) -> Loaded:
    family, heads, prefix = (recorded[name] for name in ("family", "heads", "prefix"))
    loaded = load_backbone(source, family, int(heads), prefix=prefix, dtype=None)
    return loaded.params, loaded.origin, identify_backbone(source, loaded)


Loaded = tuple[dict[str, Any], dict[str, str], Identity]
"""Parameters, where they are from, and their identity."""
LOADERS: dict[str, Callable[[str, Identity], Loaded]] = {
    "clip": _load_clip,
    "text": _load_text,
    "backbone": _load_backbone,
}
"""By the entry of the parameter tree: reads it again as a run recorded it."""


def decisive(identity: Identity) -> dict[str, str]:
    """What identities of the same parameters, wherever they are from, have in common."""
    where = ("weights", "given", "file_sha256", "prefix")
    return {name: value for name, value in identity.items() if name not in where}


def check_frozen(recorded: Mapping[str, Identity], present: Mapping[str, Identity]) -> None:
    """Compares the weights that a run was trained on with those that are there now.

    Args:
        recorded, present: by their entries of the parameter tree.

    Raises:
        InputError: they differ; the message describes both.
    """
    for name, then in recorded.items():
        now = present[name]
        if decisive(then) != decisive(now):
            raise InputError(
                f"the weights of {name!r} are not those that the run was trained on. Then: "
                f"{_describe(then)}. Now: {_describe(now)}. Put the former back in their place, or "
                "start a new run"
            )


def load_frozen(recorded: Mapping[str, Identity]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights that a run was trained on, in the dtypes of their files.

    Returns:
        Parameters, and where they are from, by their entries of the parameter tree.

    Raises:
        InputError: some are not there, cannot be read, or are others.
    """
    params, origins = {}, {}
    for name, record in recorded.items():
        there = user_path(record["weights"]).exists()
        source = record["weights" if there else "given"]
        try:
            params[name], origins[name], present = LOADERS[name](source, record)
        except InputError as error:
            raise InputError(f"{error}. The run was trained on {_describe(record)}") from error
        check_frozen({name: record}, {name: present})
    return params, origins


def _describe(identity: Identity) -> str:
    activation = f", {identity['activation']}" if "activation" in identity else ""
    return (
        f"{identity['weights']} (SHA-256 of the file {identity['file_sha256']}, of its arrays "
        f"{identity['arrays_sha256']}{activation})"
    )
