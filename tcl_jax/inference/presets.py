"""Named protocols: how the authors of a method evaluate it, in general and on each benchmark.

Each is a TOML file in assets/protocols. At its top it has fields of `settings.InferenceSettings`
and of `ClassWords`, and under `benchmarks` the same for single ones that differ. A window of 0 is
the whole image. `words.toml` beside them has the lists of words that they name.
"""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcl_jax.errors import InputError

PROTOCOLS = (
    "tcl", "sclip", "naclip", "clearclip", "sc_clip", "proxyclip", "clip_dinoiser", "talk2dino",
    "tips", "dinotxt",
)  # fmt: skip
"""Their names; each is a TOML file in assets/protocols."""

_FOLDER = Path(__file__).parent.parent / "assets" / "protocols"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassWords:
    """The words that stand for a benchmark's classes.

    Attributes:
        background: those of the background; empty: it is what no class has a score beyond the
            threshold of.
        names: in place of the class of a name, any of which shows it.
        joined: whether spaces inside of words are removed.
        cleaning: whether a method that finds the background by itself does so (`Method.cleans`).
    """

    background: tuple[str, ...] = ()
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    joined: bool = False
    cleaning: bool = False


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named protocol.

    Attributes:
        fields: those that it says, of `InferenceSettings` and `ClassWords`, by name.
        benchmarks: what else it says of single benchmarks, by theirs.
    """

    fields: Mapping[str, Any]
    benchmarks: Mapping[str, Mapping[str, Any]]

    @property
    def background(self) -> tuple[str, ...]:
        """Words of the background, see `ClassWords`."""
        return self.fields.get("background", ())


@functools.cache
def load_preset(name: str) -> Preset:
    """A protocol by name.

    Raises:
        InputError: if it is none of `PROTOCOLS`.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol {name!r} is unknown; choose one of own, {', '.join(PROTOCOLS)}")
    table = _read(name)
    benchmarks = table.pop("benchmarks", {})
    return Preset(_fields(table), {key: _fields(one) for key, one in benchmarks.items()})


def _fields(table: Mapping[str, Any]) -> dict[str, Any]:
    """The same with lists of words in place of their names."""
    lists, fields = _read("words"), dict(table)
    if "background" in table:
        fields["background"] = tuple(lists["background"][table["background"]])
    if "names" in table:
        tables = [lists["names"][name] for name in table["names"]]
        fields["names"] = {key: tuple(words) for one in tables for key, words in one.items()}
    if "pamr_dilations" in table:
        fields["pamr_dilations"] = tuple(table["pamr_dilations"])
    return fields


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
