"""Where image-text pairs come from, by the name that a config gives."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from tcl_jax.data.pipeline import Source
from tcl_jax.data.shapes import ShapesSource
from tcl_jax.data.tar_source import TarSource
from tcl_jax.data.transforms import Chain, HorizontalFlip, RandomResizedCrop, Transform
from tcl_jax.errors import InputError, as_input_error


def _shapes(data: ConfigDict, image_size: int) -> Source:
    return ShapesSource(
        "train",
        num_examples=data.num_examples,
        image_size=image_size,
        max_objects=data.max_objects,
    )


def _tar(data: ConfigDict, image_size: int) -> Source:
    del image_size
    return TarSource(tuple(data.shards))


SOURCES: dict[str, Callable[[ConfigDict, int], Source]] = {"shapes": _shapes, "tar": _tar}


def make_source(data: ConfigDict, image_size: int) -> Source:
    """The training pairs that `config.data` describes.

    Args:
        data: `source` (a key of `SOURCES`) and the fields that this source reads.
        image_size: side of the model's images in pixels, for sources that draw theirs.

    Raises:
        InputError: if the source is unknown, or cannot be read.
    """
    if data.source not in SOURCES:
        raise InputError(
            f"data.source={data.source!r} is unknown; choose one of {', '.join(SOURCES)}"
        )
    with as_input_error(f"data.source={data.source!r}"):
        return SOURCES[data.source](data, image_size)


def make_transform(data: ConfigDict, image_size: int) -> Transform:
    """The random crop and flip that `config.data` describes; drawn images are taken as they are.

    Raises:
        InputError: if a range is impossible.
    """
    if data.source == "shapes":
        return Chain(())
    with as_input_error("data.crop_scale, data.crop_ratio or data.flip"):
        crop = RandomResizedCrop(image_size, tuple(data.crop_scale), tuple(data.crop_ratio))
        return Chain((crop, HorizontalFlip(data.flip)))
