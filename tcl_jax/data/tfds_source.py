"""Image-caption pairs that tensorflow-datasets has prepared as ArrayRecord, without TensorFlow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from tcl_jax.data.bad_samples import BadSampleError
from tcl_jax.data.captions import decode_text
from tcl_jax.errors import InputError, first_cause, raise_machine_fault


class TfdsSource:
    """The examples of one split, with images as they are encoded.

    Args:
        name: of the data set, as `coco_captions` or `image_text_pairs/cc3m:1.0.0`.
        split: of it, as `train` or `train[:10%]`.
        data_dir: folder that holds the prepared data sets; "": where tensorflow-datasets keeps
            them (~/tensorflow_datasets, or TFDS_DATA_DIR).
        image: path of the feature with the image, with slashes, of which a name may have some, too.
        text: path of the one with the caption, or with several in a sequence.
        key: path of the one with a name, for messages; "": the number of the example.

    Raises:
        InputError: the data set is not prepared, or not as ArrayRecord, or has no such split or
            feature.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        data_dir: str = "",
        image: str = "image",
        text: str = "text",
        key: str = "",
    ) -> None:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.read_only_builder import builder_from_files

        self.name, self.split, self.data_dir = name, split, data_dir
        try:
            # From the files alone: the code of most known data sets needs TensorFlow.
            builder = builder_from_files(name, data_dir=data_dir or None)
            features = builder.info.features
            self._image, self._text, self._key = (_find(features, p) for p in (image, text, key))
            decoders: Any = tfds.decode.SkipDecoding()
            for part in reversed(self._image or ()):
                decoders = {part: decoders}
            self._source = builder.as_data_source(split, decoders=decoders)
        except Exception as error:  # it raises many types, also its own
            raise_machine_fault(f"the data set {name!r}", error)
            raise InputError(
                f"the data set {name!r}, split {split!r}, cannot be read from "
                f"{data_dir or 'the default data_dir'}: {first_cause(error)}. Prepare it first, "
                f"as ArrayRecord: tfds.builder({name!r}, data_dir=...).download_and_prepare("
                "file_format='array_record'); python -m tcl_jax.tfds_builder does it for tar "
                "shards"
            ) from error
        if not len(self._source):
            raise InputError(f"the data set {name!r} has no examples in split {split!r}")
        for path, found in ((image, self._image), (text, self._text), (key, self._key)):
            if path and not found:
                raise InputError(
                    f"the data set {name!r} has no feature {path!r}; its features are:\n{features}"
                )

    @property
    def fingerprint(self) -> str:
        """Tells one version and split of a data set from another."""
        content = f"{self._source.dataset_info.full_name} {self.split} {len(self)}"
        return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()

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
        key = _get(example, self._key) if self._key else i
        found: dict[str, Any] = {
            "image": _get(example, self._image),
            "text": [],
            "key": key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key),
            "shard": f"{self.name}/{self.split}",
        }
        try:
            found["text"] = _texts(_get(example, self._text))
        except BadSampleError as error:
            found["problem"] = error
        return found

    def __repr__(self) -> str:
        """The call that makes it, in short."""
        return f"TfdsSource({self.name!r}, {self.split!r}, data_dir={self.data_dir!r})"


def _find(features: Any, path: str) -> tuple[str, ...]:
    """The names that lead to a feature, each of which may hold a slash; none if there is none."""
    words = path.split("/")
    for count in range(len(words), 0, -1):
        name, rest = "/".join(words[:count]), "/".join(words[count:])
        # A sequence gives the features of its elements as its own.
        if hasattr(features, "keys") and name in list(features.keys()):
            deeper = _find(features[name], rest) if rest else ()
            if deeper or not rest:
                return (name, *deeper)
    return ()


def _get(example: Any, names: Sequence[str]) -> Any:
    for name in names:
        example = example[name]
    return example


def _texts(value: Any) -> list[str]:
    """One text or an array of them, as bytes or str, as a list of str.

    Raises:
        BadSampleError: one cannot be decoded.
    """
    return [
        decode_text(text) if isinstance(text, bytes) else str(text)
        for text in np.asarray(value, object).reshape(-1)
    ]
