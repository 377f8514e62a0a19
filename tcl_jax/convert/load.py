"""Pretrained weights of any format and naming, as parameters of this project's models."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tcl_jax.convert.clip import clip_params, infer_clip_config
from tcl_jax.convert.hub import BUILT_IN, CLIP_FILES, OPENAI_SHA256, locate_clip
from tcl_jax.convert.mapping import WeightError
from tcl_jax.convert.names import read_activation, to_openai_names
from tcl_jax.convert.readers import open_weights
from tcl_jax.convert.tcl import infer_tap_layer, tcl_params
from tcl_jax.convert.tensor_file import TensorFile
from tcl_jax.files import sha256_of, user_path
from tcl_jax.models.clip import CLIPConfig
from tcl_jax.models.layers import ACTIVATIONS

Source = str | os.PathLike[str]

OTHER_HEADS = (1280, 1408, 1664)
"""Widths of published vision towers whose attention heads have other than 64 channels."""


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Parameters read from a file.

    Attributes:
        config: sizes of the CLIP.
        params: nested dict of arrays.
        origin: where they are from: `file`, `sha256`, `format`, `style`.
    """

    config: CLIPConfig
    params: dict[str, Any]
    origin: dict[str, str]


def load_clip(
    source: Source,
    *,
    expected: CLIPConfig | None = None,
    activation: str | None = None,
    dtype: Any = np.float32,
) -> Pretrained:
    """A pretrained CLIP by path, by name ("ViT-B/16") or `builtin:NAME`.

    Args:
        source: see `hub.locate_clip`.
        expected: sizes that it must have; inferred from its tensors if None.
        activation: "quick_gelu" or "gelu"; None takes what a config file beside the weights says,
            and OpenAI's quick GELU where there is none.
        dtype: of the parameters; None keeps each tensor's own.

    Raises:
        InputError: if the file is missing, damaged, no CLIP, or of other sizes.
    """
    path = locate_clip(os.fspath(source))
    with open_weights(path) as file, _naming(path):
        tensors, style = to_openai_names(file)
        origin = _origin(file, style)
        if activation is None:
            told = find_activation(file, style, origin["sha256"])
            activation = told or (expected.activation if expected else "quick_gelu")
            if told is None and expected is None:
                logging.warning(
                    "%s: nothing in it or beside it says which GELU it was trained with; taking "
                    "%s, as OpenAI did. If it is an OpenCLIP model with the exact GELU, say "
                    "activation=gelu",
                    path,
                    activation,
                )
        config = infer_clip_config(tensors.specs, activation)
        if config.vision_width in OTHER_HEADS and read_activation(path, style) is None:
            raise WeightError(
                f"its vision tower is {config.vision_width} wide, as OpenCLIP's H, g and bigG are, "
                "of which the attention heads do not have 64 channels; choose a smaller CLIP"
            )
        if expected is not None:
            config = dataclasses.replace(expected, activation=activation)
        params = clip_params(tensors, config, dtype)
    return Pretrained(config, params, origin)


def find_activation(file: TensorFile, style: str, sha256: str) -> str | None:
    """The GELU of a CLIP: as the file says itself, as a config beside it says, or as is known.

    Args:
        file: its tensors and plain values.
        style: of its names, from `names.to_openai_names`.
        sha256: of the file.

    Returns:
        A key of `models.layers.ACTIVATIONS`, or None if nothing tells.

    Raises:
        WeightError: if it names another activation, or the config is damaged.
    """
    if (own := file.scalars.get("activation")) is not None:
        if own not in ACTIVATIONS:
            raise WeightError(f"its activation {own!r} is none of {', '.join(ACTIVATIONS)}")
        return str(own)
    # OpenAI's archives alone have the sizes as values beside the tensors.
    published = {*OPENAI_SHA256.values(), *(hub.sha256 for hub in CLIP_FILES.values())}
    openai = sha256 in published or "input_resolution" in file.scalars
    told = read_activation(file.path, style)
    return told or ("quick_gelu" if openai or file.path in BUILT_IN.values() else None)


def load_tcl(source: Source, config: CLIPConfig) -> tuple[Pretrained, int]:
    """What TCL learned, with the official names (`tcl.pth`) and dtypes, and its tap layer.

    Args:
        source: path.
        config: of the CLIP that it was trained from.

    Raises:
        InputError: if the file is missing, damaged, no TCL, or does not fit that CLIP.
    """
    path = user_path(source)
    with open_weights(path) as file, _naming(path):
        tap_layer = infer_tap_layer(file, config)
        params = tcl_params(file, config, tap_layer, None)
        origin = _origin(file, "tcl")
    return Pretrained(config, params, origin), tap_layer


def _origin(file: TensorFile, style: str) -> dict[str, str]:
    digest = sha256_of(file.path)
    return {"file": file.path.name, "sha256": digest, "format": file.format, "style": style}


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the path before what is wrong with the content of the file."""
    try:
        yield
    except WeightError as error:
        if str(path) in str(error):
            raise
        raise WeightError(f"weights {str(path)!r}: {error}") from error
