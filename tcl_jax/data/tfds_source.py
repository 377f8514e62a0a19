"""Image-caption pairs that tensorflow-datasets has prepared as ArrayRecord, without TensorFlow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from tcl_jax.errors import InputError, first_cause


class TfdsSource:
    """The examples of one split, with images as they are encoded.

    Args:
        name: of the data set, as `coco_captions` or `image_text_pairs/cc3m:1.0.0`.
        split: of it, as `train` or `train[:10%]`.
        data_dir: folder that holds the prepared data sets; None: where tensorflow-datasets keeps
            them (~/tensorflow_datasets, or TFDS_DATA_DIR).
        image: path of the feature with the image, with slashes.
        text: path of the one with the caption, or with several in a sequence.
        key: path of the one with a name, for messages; None: the number of the example.

    Raises:
        InputError: the data set is not prepared, or not as ArrayRecord, or has no such split or
            feature.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        data_dir: str | None = None,
        image: str = "image",
        text: str = "text",
        key: str | None = None,
    ) -> None:
        import tensorflow_datasets as tfds

        self.name, self.split, self.data_dir = name, split, data_dir
        self._image, self._text, self._key = image, text, key
        try:
            self._source = tfds.data_source(
                name,
                split=split,
                data_dir=data_dir,
                download=False,
                decoders=_nest(image, tfds.decode.SkipDecoding()),
            )
        except Exception as error:  # it raises many types, also its own
            raise InputError(
                f"the data set {name!r}, split {split!r}, cannot be read from "
                f"{data_dir or 'the default data_dir'}: {first_cause(error)}. Prepare it first, "
                f"as ArrayRecord: tfds.builder({name!r}, data_dir=...).download_and_prepare("
                "file_format='array_record'); python -m tcl_jax.data.tfds_builder does it for tar "
                "shards"
            ) from error
        if not len(self._source):
            raise InputError(f"the data set {name!r} has no examples in split {split!r}")
        features = self._source.dataset_info.features
        for path in (image, text, *([key] if key else [])):
            if not _has(features, path):
                raise InputError(
                    f"the data set {name!r} has no feature {path!r}; its features are:\n{features}"
                )
        self._told = f"{self._source.dataset_info.full_name} {split} {len(self._source)}"

    @property
    def fingerprint(self) -> str:
        """Tells one version and split of a data set from another."""
        return hashlib.blake2b(self._told.encode(), digest_size=8).hexdigest()

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Example `index`: `image` (bytes, or uint8 [h, w, c] if it is stored so), `text` (list of
        captions) and `key`.

        Raises:
            IndexError: outside of 0 to len - 1.
        """
        i = index.__index__()
        if not 0 <= i < len(self):
            raise IndexError(f"example {i}: there are {len(self)}.")
        example = self._source[i]
        key = _get(example, self._key) if self._key else str(i)
        return {
            "image": _get(example, self._image),
            "text": _texts(_get(example, self._text)),
            "key": _texts(key)[0],
            "shard": f"{self.name}/{self.split}",
        }

    def __repr__(self) -> str:
        """The call that makes it, in short."""
        return f"TfdsSource({self.name!r}, {self.split!r}, data_dir={self.data_dir!r})"


def _nest(path: str, value: Any) -> dict[str, Any]:
    """`a/b` to {"a": {"b": value}}."""
    for name in reversed(path.split("/")):
        value = {name: value}
    return value


def _get(example: Any, path: str) -> Any:
    for name in path.split("/"):
        example = example[name]
    return example


def _has(features: Any, path: str) -> bool:
    for name in path.split("/"):
        # A sequence gives the features of its elements as its own.
        if not hasattr(features, "keys") or name not in list(features.keys()):
            return False
        features = features[name]
    return True


def _texts(value: Any) -> Sequence[str]:
    """One text or an array of them, as bytes or str, as a list of str."""
    return [
        text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        for text in np.asarray(value, object).reshape(-1)
    ]
