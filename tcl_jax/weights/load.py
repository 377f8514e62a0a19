"""Pretrained weights of any format and naming, as parameters of this project's models."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tcl_jax.files import sha256_of
from tcl_jax.models.clip import VARIANTS, CLIPConfig, choose_sizes
from tcl_jax.models.layers import ACTIVATIONS
from tcl_jax.weights.clip import clip_params, infer_clip_config
from tcl_jax.weights.folders import open_model
from tcl_jax.weights.hub import BUILT_IN, CLIP_FILES, OPENAI_SHA256, locate_clip, locate_tcl
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.model_config import read_activation
from tcl_jax.weights.names import Renamed, matches_prefix, to_openai_names
from tcl_jax.weights.tcl import find_tcl, infer_feature_layer, tcl_params
from tcl_jax.weights.tensor_file import TensorFile

Source = str | os.PathLike[str]

OTHER_HEADS = (1280, 1408, 1664)
"""Widths of published vision towers whose attention heads have other than 64 channels."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Parameters read from a file.

    Attributes:
        origin: where they are from: `file`, `sha256`, `format`, `style`, `prefix`.
    """

    config: CLIPConfig
    params: dict[str, Any]
    origin: dict[str, str]


@dataclasses.dataclass(frozen=True)
class FoundClip:
    """A CLIP in a file.

    Attributes:
        tensors: by OpenAI's names; none is read yet.
        style: whose names they had; see `names.to_openai_names`.
        assumed: what is assumed of it, as a sentence; "" if all is known.
    """

    tensors: Renamed
    style: str
    config: CLIPConfig
    assumed: str


def load_clip(
    source: Source,
    *,
    activation: str | None = None,
    prefix: str = "",
    dtype: Any = np.float32,
    usual: str = "quick_gelu",
) -> Pretrained:
    """A pretrained CLIP by path, by name ("ViT-B/16") or `builtin:NAME`.

    What neither the file nor a config beside it says is assumed and warned of.

    Args:
        source: see `hub.locate_clip`; a file or a folder.
        activation: "quick_gelu" or "gelu", for weights of which nothing tells it; None takes what
            the file or a config beside it says, and `usual` where there is neither.
        prefix: see `names.choose_prefix`.
        dtype: of the parameters; None keeps each tensor's own.
        usual: OpenAI's, or what most CLIPs have of the kind that is asked for.

    Raises:
        InputError: if the file is missing, damaged, no CLIP, or of another activation.
    """
    with _open_clip(source, prefix, activation, usual) as (file, clip):
        params = clip_params(clip.tensors, clip.config, dtype)
        return Pretrained(clip.config, params, origin_of(file, clip.style, clip.tensors.prefix))


def sizes_of(model: Mapping[str, Any]) -> CLIPConfig:
    """Sizes of the CLIP of a run's `config.model`; of its weights no tensor is read.

    Raises:
        InputError: if the variant is unknown, the sizes are impossible, or the weights that would
            tell them cannot be used.
    """
    weights, found = model["weights"], None
    if model["variant"] == "auto" and weights:
        found = VARIANTS.get(weights)
        if found is None:
            with _open_clip(weights, *_prefix_and_activation(model)) as (_, clip):
                found = clip.config
    return choose_sizes(model["variant"], model["sizes"], found)


def load_configured(model: Mapping[str, Any]) -> Pretrained:
    """The pretrained CLIP of a run's `config.model`, in float32.

    Raises:
        InputError: if it cannot be read, or is of other sizes than the config says.
    """
    prefix, activation = _prefix_and_activation(model)
    variant, sizes = model["variant"], model["sizes"]
    # A mistake there is told before anything is downloaded.
    config = None if variant == "auto" else choose_sizes(variant, sizes)
    with _open_clip(model["weights"], prefix, activation) as (file, clip):
        check_prefix(prefix, [clip.tensors.prefix])
        config = config or choose_sizes(variant, sizes, clip.config)
        # A variant's is but the usual one of its sizes.
        config = dataclasses.replace(config, activation=clip.config.activation)
        params = clip_params(clip.tensors, config, np.float32)
        return Pretrained(config, params, origin_of(file, clip.style, clip.tensors.prefix))


def _prefix_and_activation(model: Mapping[str, Any]) -> tuple[str, str | None]:
    """Prefix and activation of a config's section `model`."""
    return model.get("prefix", ""), model["sizes"].get("activation") or None


@contextlib.contextmanager
def _open_clip(
    source: Source, prefix: str, activation: str | None, usual: str = "quick_gelu"
) -> Iterator[tuple[TensorFile, FoundClip]]:
    """The file and the CLIP in it; errors of the body name the file."""
    path = locate_clip(os.fspath(source))
    with open_model(path) as file, prepending_path(path):
        clip = find_clip(file, prefix, activation, usual)
        if clip.assumed:
            _warn(f"{file.path}: {clip.assumed}")
        yield file, clip


def find_clip(
    file: TensorFile, prefix: str = "", activation: str | None = None, usual: str = "quick_gelu"
) -> FoundClip:
    """The CLIP in a file, of which no tensor is read.

    Args:
        prefix, activation, usual: as in `load_clip`.

    Raises:
        WeightError: if there is none, several, or one of another kind.
    """
    tensors, style = to_openai_names(file, prefix)
    known = _find_activation(file, style)
    if known and activation not in (None, known):
        raise WeightError(
            f"activation={activation} is asked for, and what is known of these weights, from the "
            f"file or the config beside it, is {known}; leave the activation out, or correct that "
            "config"
        )
    config = infer_clip_config(tensors.specs, known or activation or usual)
    if known is None and config.vision_width in OTHER_HEADS:
        raise WeightError(
            f"its vision tower is {config.vision_width} wide, as OpenCLIP's H, g and bigG are, "
            "of which the attention heads do not have 64 channels; choose a smaller CLIP"
        )
    other = next(name for name in ACTIVATIONS if name != config.activation)
    assumed = (
        "no config file beside it says what tensors do not tell: the kind of GELU, how the towers "
        f"pool, and the width of attention heads. Taken: {config.activation}, and as in OpenAI's "
        "CLIP the class token, the end of the text and 64 channels. Where that is wrong, so are "
        "the masks, without an error: put its config.json or open_clip_config.json beside it, or, "
        f"if only the GELU differs, give --activation={other}, or model.sizes.activation in a "
        "config"
    )
    return FoundClip(tensors, style, config, "" if known else assumed)


@functools.cache
def _warn(message: str) -> None:
    """Once in a process."""
    logging.warning("%s", message)


def _find_activation(file: TensorFile, style: str) -> str | None:
    """The GELU as the file says itself, a config beside it says, or is known; None if none does."""
    if (own := file.scalars.get("activation")) is not None:
        if own not in ACTIVATIONS:
            raise WeightError(f"its activation {own!r} is none of {', '.join(ACTIVATIONS)}")
        return str(own)
    if (known := read_activation(file.path, style)) is not None:
        return known
    # OpenAI's archives alone have the sizes as values beside the tensors.
    if "input_resolution" in file.scalars or file.path in BUILT_IN.values():
        return "quick_gelu"
    published = {*OPENAI_SHA256.values(), *(hub.sha256 for hub in CLIP_FILES.values())}
    return "quick_gelu" if digest_of(file) in published else None


def load_tcl(source: Source, config: CLIPConfig, prefix: str = "") -> tuple[Pretrained, int]:
    """What TCL learned, with the official names (`tcl.pth`) and dtypes, and its feature layer.

    Args:
        source: see `hub.locate_tcl`: "official", a file or a folder.
        config: of the CLIP that it was trained from.
        prefix: see `names.choose_prefix`.

    Raises:
        InputError: if the file is missing, damaged, no TCL, or does not fit that CLIP.
    """
    path = locate_tcl(source)
    with open_model(path) as file, prepending_path(path):
        tensors = find_tcl(file, prefix)
        feature_layer = infer_feature_layer(tensors, config)
        params = tcl_params(tensors, config, feature_layer, None)
        origin = origin_of(file, "tcl", tensors.prefix)
    return Pretrained(config, params, origin), feature_layer


def check_prefix(asked: str, found: Sequence[str]) -> None:
    """Refuses a prefix that none of the models found has, which were alone in their files.

    Raises:
        WeightError: with the prefixes that are there.
    """
    if not any(matches_prefix(prefix, asked) for prefix in found):
        shown = ", ".join({repr(prefix.rstrip(".") or "."): None for prefix in found})
        raise WeightError(
            f"prefix {asked!r} is of no model in the files given, where the prefix is {shown}; "
            "leave it out, since there is nothing to choose from"
        )


def digest_of(file: TensorFile) -> str:
    """SHA-256 of a file, or of those of several files in the order of their names."""
    digests = [sha256_of(path) for path in file.files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def origin_of(file: TensorFile, style: str, prefix: str) -> dict[str, str]:
    """Where the parameters read from a file are from, see `Pretrained.origin`."""
    return {
        "file": file.path.name, "sha256": digest_of(file), "format": file.format, "style": style,
        "prefix": prefix,
    }  # fmt: skip


@contextlib.contextmanager
def prepending_path(path: Path) -> Iterator[None]:
    """Puts the path before what is wrong with the content of the file."""
    try:
        yield
    except WeightError as error:
        if str(path) in str(error):
            raise
        raise WeightError(f"weights {str(path)!r}: {error}") from error
