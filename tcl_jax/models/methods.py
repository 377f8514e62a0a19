"""The methods that segment, by name. A new one is a subclass of `Method` and a row here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcl_jax.errors import InputError
from tcl_jax.models.clip_dinoiser import CLIPDINOiser
from tcl_jax.models.dense import NACLIP, SCLIP, ClearCLIP, MaskCLIP
from tcl_jax.models.dinotxt import DinoTxt
from tcl_jax.models.method import Method
from tcl_jax.models.proxyclip import ProxyCLIP
from tcl_jax.models.sc_clip import SCCLIP
from tcl_jax.models.talk2dino_method import Talk2DINO
from tcl_jax.models.tcl import TCL
from tcl_jax.models.tcl_dino import TCLDINO
from tcl_jax.models.tips import TIPS

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (
        TCL, MaskCLIP, SCLIP, NACLIP, ClearCLIP, SCCLIP, ProxyCLIP, CLIPDINOiser, TIPS, DinoTxt,
        Talk2DINO, TCLDINO,
    )
}  # fmt: skip


def method_of(name: str, field: str) -> type[Method]:
    """A row of `METHODS`.

    Raises:
        InputError: if there is none; it calls the name by its field.
    """
    if name not in METHODS:
        raise InputError(f"{field} {name!r} is unknown; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def describe_method(method: Method) -> dict[str, Any]:
    """A method without its parameters, for JSON: its name as `method`, and its settings."""
    return {"method": method.name, **method.describe()}


def read_method(description: Mapping[str, Any]) -> Method:
    """Inverse of `describe_method`; other entries are passed over.

    Raises:
        InputError: if the method is unknown, or one of its settings is missing or misnamed.
    """
    try:
        kind = method_of(description["method"], "method of its config.json")
        return kind.from_description(description)
    except (KeyError, TypeError) as error:
        raise InputError(f"its config.json lacks or misnames {error}; write it again") from error
