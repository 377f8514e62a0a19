"""Image-text pairs of tar shards as a data set of tensorflow-datasets, without TensorFlow."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from tcl_jax.data.tar_source import TarSource
from tcl_jax.errors import InputError, as_input_error, shorten


def _make_builder(source: TarSource, *, name: str, data_dir: str) -> Any:
    """A tfds.core.DatasetBuilder of `image_text_pairs/NAME` with `image`, `text` and `key`."""
    # Not at import: it takes seconds, and is needed by those alone who prepare data.
    import tensorflow_datasets as tfds

    version = tfds.core.Version("1.0.0")

    # Not registered, so that the prepared files speak for themselves when they are read.
    class ImageTextPairs(  # type: ignore[call-arg]
        tfds.core.ShardBasedBuilder, skip_registration=True
    ):
        VERSION = version
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=name, version=version),)

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(),
                "text": tfds.features.Sequence(tfds.features.Text()),
                "key": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="Images with captions, from webdataset tar shards.",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(pairs=source.fingerprint),
            )

        def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Any]]:
            del dl_manager
            shards = [functools.partial(_examples, source, part) for part in source.ranges]
            return {"train": shards}

    return ImageTextPairs(data_dir=data_dir, config=name, file_format="array_record")


def _examples(source: TarSource, part: range) -> Iterator[tuple[int, dict[str, Any]]]:
    for i in part:
        pair = source[i]
        yield i, {"image": _Once(pair["image"]), "text": pair["text"], "key": pair["key"]}


class _Once:
    """An image file that can be read once: the writer keeps what it is given to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        """All bytes, which are forgotten here."""
        data, self._data = self._data, b""
        return data


def prepare(
    patterns: Sequence[str],
    *,
    name: str,
    data_dir: str,
    allow_missing: bool = False,
    index_dir: str | None = None,
    caption_field: str = "",
) -> str:
    """Writes the data set `image_text_pairs/NAME`; does nothing if it is there already.

    Args:
        patterns, allow_missing, index_dir, caption_field: as in `TarSource`.

    Returns:
        The folder with its files.

    Raises:
        InputError: shards are missing or cannot be read, the name is none, or there is a data set
            of that name with other pairs.
    """
    if not name.isidentifier():
        raise InputError(
            f"--name={name!r}: tensorflow-datasets takes letters, digits and _ only, as in cc3m"
        )
    with as_input_error("--shards"):
        source = TarSource(
            patterns, allow_missing=allow_missing, index_dir=index_dir, caption_field=caption_field
        )
    builder = _make_builder(source, name=name, data_dir=data_dir)
    if builder.is_prepared():
        pairs = builder.info.splits["train"].num_examples
        if (pairs, builder.info.metadata["pairs"]) != (len(source), source.fingerprint):
            raise InputError(
                f"{builder.data_dir} holds a data set of other shards, of {pairs} pairs, where "
                f"these have {len(source)}; give another --name, or remove that folder first"
            )
        logging.info("%s is there already", builder.data_dir)
    else:
        logging.info("writing %d pairs of %s", len(source), shorten(source.patterns))
        builder.download_and_prepare()
    return str(builder.data_dir)
