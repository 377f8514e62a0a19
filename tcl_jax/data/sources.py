"""Where image-text pairs come from, by the name that a config gives."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from tcl_jax.data.features import FeatureSource
from tcl_jax.data.mixture import Mixture
from tcl_jax.data.rand_augment import RandAugment
from tcl_jax.data.random_erasing import RandomErasing
from tcl_jax.data.remote import is_remote
from tcl_jax.data.tar_source import TarSource, require_shards
from tcl_jax.data.tfds_source import TfdsSource
from tcl_jax.data.training_examples import Source
from tcl_jax.data.transforms import (
    CenterCrop,
    Compose,
    HorizontalFlip,
    RandomResizedCrop,
    Transform,
)
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.shapes.source import ShapesSource

OF_A_SOURCE = ("source", "shards", "allow_missing_shards", "index_dir", "caption_field", "tfds")
"""Fields of `config.data` that each part of a mixture may have, beside its weight."""


def check_shards(data: ConfigDict) -> None:
    """Refuses local tar shards that are not there, before anything is built or downloaded.

    Raises:
        InputError: as `make_source`.
    """
    shards = (data.shards,) if isinstance(data.shards, str) else data.shards
    with as_input_error(f"data.source={data.source!r}"):
        if data.source == "mixture":
            for name, fields in _parts_of(data).items():
                with as_input_error(f"data.mixture.{name}"):
                    check_shards(fields)
        elif data.source == "tar" and not any(map(is_remote, shards)):
            require_shards(shards, data.allow_missing_shards)


def make_source(
    data: ConfigDict,
    image_size: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
    text_tower: str | None = None,
    towers: str | None = None,
) -> Source:
    """The training pairs that `config.data` describes.

    Args:
        data: `source` ("tar", "tfds", "mixture" or "shapes") and the fields that this one reads.
        image_size: side of the model's images in pixels, for sources that draw theirs.
        process_index, process_count: which of several processes this is; all get the same source,
            and share what work there is before.
        text_tower: the one whose embeddings of the captions come with the pairs, see
            `caption_cache`; None: no embeddings.
        towers: those whose features in `data.features` take the place of the pairs, see `features`;
            None: the pairs themselves.

    Raises:
        InputError: if the source is unknown, cannot be read, or has no such embeddings or features.
    """
    shared: dict[str, Any] = {"process_index": process_index, "process_count": process_count}
    if towers is not None and data.source != "mixture":
        return FeatureSource(make_source(data, image_size, **shared), data.features, towers)
    if text_tower is not None and data.source not in ("tar", "mixture"):
        raise InputError(
            f"data.caption_cache=True, but data.source={data.source!r}: embeddings of captions are "
            "kept for tar shards alone (source='tar', or a mixture of such); set it to False"
        )
    shared["text_tower"] = text_tower
    with as_input_error(f"data.source={data.source!r}"):
        match data.source:
            case "tar":
                return TarSource(
                    data.shards,
                    allow_missing=data.allow_missing_shards,
                    index_dir=data.index_dir or None,
                    caption_field=data.caption_field,
                    **shared,
                )
            case "tfds":
                return TfdsSource(**data.tfds)
            case "mixture":
                return _mixture(data, image_size, **shared, towers=towers)
            case "shapes":
                drawn = {"num_examples": data.num_examples, "max_objects": data.max_objects}
                return ShapesSource("train", image_size=image_size, **drawn)
    raise InputError(
        f"data.source={data.source!r} is unknown; choose one of mixture, shapes, tar, tfds"
    )


def _mixture(data: ConfigDict, image_size: int, **shared: Any) -> Source:
    sources, weights = {}, {}
    for name, fields in _parts_of(data).items():
        with as_input_error(f"data.mixture.{name}"):
            sources[name] = make_source(fields, image_size, **shared)
        if "weight" in (part := data.mixture[name]):
            if not isinstance(part.weight, int | float):
                raise InputError(f"data.mixture.{name}.weight={part.weight!r} must be a number")
            weights[name] = part.weight
    return Mixture(sources, weights or None)


def _parts_of(data: ConfigDict) -> dict[str, ConfigDict]:
    """`data.mixture` has the fields of each source by a name, and `weight`; others are `data`'s."""
    if not data.mixture:
        raise InputError(
            'data.mixture is empty; name the sources in it, as in config.data.mixture.cc3m = {"sour'
            'ce": "tar", "shards": ("data/cc3m/*.tar",), "weight": 1.0}, all or none with a weight'
        )
    parts = {x: _fields_of(part, data, f"data.mixture.{x}") for x, part in data.mixture.items()}
    for name, fields in parts.items():
        if fields.source in ("mixture", "shapes"):
            raise InputError(
                f"data.mixture.{name}.source={fields.source!r}: mixtures do not nest, and their "
                "images are cropped and flipped, which would make the captions of drawn scenes "
                "wrong; use 'tar' or 'tfds'"
            )
    return parts


def _fields_of(part: Any, data: ConfigDict, name: str) -> ConfigDict:
    """The fields of a mixture's source: its own, of `OF_A_SOURCE`, and for the rest `data`'s."""
    if not isinstance(part, ConfigDict):
        raise InputError(
            f"{name}={part!r} is no source; give its fields, as in "
            '{"source": "tar", "shards": ("data/cc3m/*.tar",)}'
        )
    fields = ConfigDict(data.to_dict(), type_safe=False).lock()
    own = {field: value for field, value in part.to_dict().items() if field != "weight"}
    try:
        fields.update(own)
    except (KeyError, AttributeError) as error:  # the latter where a value should be fields
        raise InputError(
            f"{name}={own} does not have the fields of config.data: {error.args[0]}"
        ) from error
    if wrong := [field for field in own if field not in OF_A_SOURCE]:
        raise InputError(
            f"{name}.{wrong[0]}={own[wrong[0]]!r}: a part of a mixture has no {wrong[0]} of its "
            f"own; give it as config.data.{wrong[0]}, for all of them"
        )
    return fields


def make_transform(data: ConfigDict, image_size: int) -> Transform:
    """What `config.data` does to an image: random crop, flip, RandAugment.

    Drawn images are neither cropped nor flipped, as that would make their captions wrong. Features
    are of the middle of an image, as it is.

    Raises:
        InputError: if a range is impossible.
    """
    if data.features:
        return Compose((CenterCrop(image_size),))
    steps: list[Transform] = []
    if data.source != "shapes":
        for name in ("crop_scale", "crop_ratio"):
            if len(data[name]) != 2:
                raise InputError(f"data.{name}={data[name]!r} must be two numbers, (low, high)")
        with as_input_error("data.crop_scale or data.crop_ratio"):
            steps.append(
                RandomResizedCrop(image_size, tuple(data.crop_scale), tuple(data.crop_ratio))
            )
        with as_input_error("data.flip"):
            steps.append(HorizontalFlip(data.flip))
    if data.rand_augment.operations:
        with as_input_error("data.rand_augment"):
            steps.append(RandAugment(**data.rand_augment))
    return Compose(tuple(steps))


def make_erasing(data: ConfigDict) -> RandomErasing | None:
    """The rectangles that `config.data` has erased from images; None where there are none.

    Raises:
        InputError: if the probability is impossible.
    """
    if not data.random_erasing:
        return None
    with as_input_error("data.random_erasing"):
        return RandomErasing(data.random_erasing)
