"""Label maps of benchmarks: read as they are, then as classes."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Integer
from PIL import Image

from tcl_jax.data.images import MAX_PIXELS
from tcl_jax.errors import InputError, raise_machine_fault
from tcl_jax.evaluation.benchmark import Benchmark, spans
from tcl_jax.evaluation.benchmark_schema import MAX_LABEL

IGNORE = -1
"""Class of pixels that do not count."""

_WRONG = -2
# JPEG only to say why it will not do.
_FORMATS = ("PNG", "TIFF", "BMP", "JPEG")


class LabelError(InputError):
    """A label map that cannot be used; the message does not repeat its path."""


def read_label(path: str | os.PathLike[str]) -> Integer[np.ndarray, "h w"]:
    """Label values of a single-channel image file; of a palette image its indices.

    Returns:
        uint8, uint16 or int32 [h, w].

    Raises:
        LabelError: if the file cannot be read, is damaged, lossy, or has colours or fractions.
        RunError: if the machine fails, for which the file is not to blame.
    """
    try:
        with Path(path).open("rb") as file:
            header = file.read(26)
            file.seek(0)
            with Image.open(file, formats=_FORMATS) as image:
                _check_kind(image, header)
                image.load()
                values = np.asarray(image)
    except LabelError:
        raise
    except Exception as error:  # Pillow raises almost any type on damaged files.
        raise_machine_fault(str(path), error)
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise LabelError(f"the label cannot be read, or is damaged: {reason}") from error
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def to_classes(raw: Integer[np.ndarray, "h w"], benchmark: Benchmark) -> Int32[np.ndarray, "h w"]:
    """Index into `benchmark.names` of every pixel, `IGNORE` where none counts.

    Args:
        raw: what `read_label` gives.
        benchmark: says which values are classes and which are ignored.

    Raises:
        LabelError: if there are other values; it lists them.
    """
    table = _table(benchmark.label_values, benchmark.ignored_values)
    if raw.dtype in (np.uint8, np.uint16):
        classes = table[raw]
    else:  # beyond both ends is the table's last entry
        classes = table[np.clip(raw.astype(np.int64), -1, MAX_LABEL + 1)]
    if (classes == _WRONG).any():
        wrong, ignored = raw[classes == _WRONG], spans(benchmark.ignored_values) or "none"
        values = np.unique(wrong).tolist()
        raise LabelError(
            f"{wrong.size} pixels have the label values {spans(values)}; "
            f"{benchmark.name} has {spans(benchmark.label_values)}, and {ignored} to be ignored "
            f"({_advice(values, benchmark)})"
        )
    return classes


def _advice(wrong: list[int], benchmark: Benchmark) -> str:
    """What to change where labels have these values that the benchmark has not."""
    if benchmark.background or benchmark.reduce_zero_label:
        zero_lacks = False
    elif benchmark.values is None:  # one value too many: the classes may count on from 1
        zero_lacks = wrong == [len(benchmark.classes)]
    else:
        zero_lacks = wrong == [0]
    if zero_lacks:
        return (
            f"if label 0 is none of the {len(benchmark.classes)} classes, give --background "
            "(background = true); if it is to be ignored, --reduce_zero_label"
        )
    return "--background, --reduce_zero_label, --ignore and values of --classes change that"


@functools.lru_cache
def _table(values: tuple[int, ...], ignored: tuple[int, ...]) -> Int32[np.ndarray, " n"]:
    """Class of every raw value; the last entry is for all that no label may have."""
    table = np.full(MAX_LABEL + 2, _WRONG, np.int32)
    table[list(ignored)] = IGNORE
    table[list(values)] = np.arange(len(values))
    return table


def _check_kind(image: Image.Image, header: bytes) -> None:
    """Refuses what has no whole number a pixel, or one that some programs stretch to 0 to 255."""
    small_grey = image.format == "PNG" and header[25] == 0 and header[24] < 8
    whole = image.mode in ("L", "P", "I") or image.mode.startswith("I;16")
    if image.format == "JPEG" or small_grey or not whole:
        raise LabelError(
            f"a {image.format} of mode {image.mode}{', less than 8 bits a pixel' * small_grey}; a "
            "label has one whole number a pixel, the class: save a PNG of 8 or 16 bits, or one "
            "with a palette"
        )
    if image.width * image.height > MAX_PIXELS:
        raise LabelError(
            f"{image.width} x {image.height} pixels, and the limit is {MAX_PIXELS}; cut image and "
            "label into parts"
        )
