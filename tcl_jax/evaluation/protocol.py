"""How a model is evaluated, and the fingerprint that says whether two results are comparable."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import PIL
from jaxtyping import Float32

from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.examples import DatasetIndex
from tcl_jax.files import sha256_of, short_hash, user_path
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.model import Model
from tcl_jax.inference.settings import (
    MAX_LONG_SIDE,
    THRESHOLDS,
    WINDOW,
    InferenceSettings,
    fit_windows,
)
from tcl_jax.inference.texts import embed_class_names
from tcl_jax.inference.windows import SlidingWindow, working_size
from tcl_jax.models.layers import compute_dtype
from tcl_jax.models.method import Method
from tcl_jax.models.methods import METHODS

Field = tuple[str, ...]
"""Where a value stands in a fingerprint; one of a single benchmark is ("benchmarks", name, ...)."""

PRESETS: dict[str, Mapping[str, Any]] = {
    "own": {},
    "tcl": {
        "window": WINDOW,
        "stride": WINDOW // 2,
        "short_side": WINDOW,
        "resize": "opencv",
        "templates": "custom",
    },
}
"""Named protocols: fields of `InferenceSettings` that are not the model's own. What is not among
them stays: the score of the background, for one, is of a method's masks alone."""

_RESIZES = {
    "opencv": f"OpenCV {cv2.__version__}, bilinear",
    "pillow": f"Pillow {PIL.__version__}, bicubic",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol(InferenceSettings):
    """Everything but the model, the data and the class names that moves a score.

    Attributes:
        method: a key of `models.methods.METHODS`.
        short_side: pixels that an image's short side is resized to.
        threshold: score of the background class, in [0, 1].
        dtype: what the network computes in, a key of `COMPUTE_DTYPES`.
        max_long_side: most pixels of a resized image's long side.

    Raises:
        InputError: if a value is out of its range.
    """

    method: str
    short_side: int
    threshold: float
    dtype: str = "float32"
    max_long_side: int = MAX_LONG_SIDE

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        compute_dtype(self.dtype)

    @property
    def title(self) -> str:
        """The method's name for tables."""
        return METHODS[self.method].title + (" + PAMR" if self.pamr else "")

    def options_of(self, benchmark: Benchmark) -> MaskOptions:
        """Post-processing of a benchmark's masks."""
        cleaning = benchmark.cleaning and METHODS[self.method].cleans
        return MaskOptions(self.pamr, self.kp_weight, cleaning)

    def background_of(self, benchmark: Benchmark) -> float | None:
        """Score of a benchmark's background class; None if it has none."""
        if not benchmark.background:
            return None
        return self.threshold if benchmark.threshold is None else benchmark.threshold

    def sliding_window(
        self, benchmark: Benchmark, size: tuple[int, int], patch_size: int
    ) -> SlidingWindow:
        """The windows of an image of `size` rows and columns."""
        short_side, window, stride = self.sizes(benchmark)
        resized = working_size(*size, short_side, self.max_long_side, self.resize)
        return SlidingWindow.over(resized, window, stride, patch_size)

    def sizes(self, benchmark: Benchmark) -> tuple[int, int, int]:
        """Short side, window and stride for a benchmark, which may override them.

        Raises:
            InputError: if windows would leave gaps.
        """
        short_side = benchmark.short_side or self.short_side
        window = benchmark.window or benchmark.short_side or self.window
        usual = self.stride if window == self.window else max(window // 2, 1)
        stride = benchmark.stride or usual
        if stride > window:
            raise InputError(
                f"benchmark {benchmark.name!r}: windows of {window} pixels at a stride of {stride} "
                "leave gaps; make the stride at most the window"
            )
        return short_side, window, stride


def preset_of(protocol: str | None) -> Mapping[str, Any]:
    """A row of `PRESETS`; None: "own".

    Raises:
        InputError: if there is no such protocol.
    """
    if (protocol := protocol or "own") not in PRESETS:
        raise InputError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[protocol]


def make_protocol(model: Model, protocol: str | None = None, **choices: Any) -> Protocol:
    """The model's own settings, but for what is chosen.

    Args:
        model: the one that is evaluated, already of its method.
        protocol: a key of `PRESETS`; None: "own". Choices go before it.
        choices: fields of `Protocol`; None leaves the model's own. A short side alone scales
            the windows, and other windows have half their side as stride.

    Raises:
        InputError: if a value is out of its range, or there is no such protocol.
    """
    settings = model.settings
    if preset := preset_of(protocol):
        settings = fit_windows(dataclasses.replace(settings, **preset), model.method)
    given = {name: value for name, value in choices.items() if value is not None}
    short_side = settings.short_side or settings.window
    fields = {**dataclasses.asdict(settings), "short_side": short_side, **given}
    if "window" not in given and "short_side" in given:
        fields["window"] = max(settings.window * given["short_side"] // short_side, 1)
    if "stride" not in given and fields["window"] != settings.window:
        fields["stride"] = max(fields["window"] // 2, 1)
    if fields["threshold"] is None:
        fields["threshold"] = THRESHOLDS[fields["pamr"]]
    if not model.method.mixes_clip:
        fields["kp_weight"] = 0.0
    return Protocol(method=model.method.name, **fields)


def embed_texts(
    protocol: Protocol,
    method: Method,
    params: Any,
    benchmark: Benchmark,
    *,
    tokenizer_file: str | None = None,
    progress: bool = False,
) -> Float32[np.ndarray, "n d"]:
    """Embeddings of `benchmark.texts` in the protocol's templates, by the method's text encoder.

    Raises:
        InputError: as `inference.texts.embed_class_names`.
    """
    return embed_class_names(
        method.text_encoder,
        method.text_params(params),
        benchmark.texts,
        protocol.templates,
        tokenizer=method.text_encoder.tokenizer(tokenizer_file),
        progress=progress,
    )


def fingerprint(
    protocol: Protocol,
    model: Model,
    weights: str,
    indices: Sequence[DatasetIndex],
    *,
    tokenizer_file: str | None = None,
    text_embeddings: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """What two results must have in common to be compared, as a nested dict for JSON.

    Args:
        protocol: of the evaluation.
        model: what is evaluated.
        weights: `checkpoints.leaves.hash_leaves` of its parameters.
        indices: the benchmarks and their images.
        tokenizer_file: if class names are tokenised by one.
        text_embeddings: those that were given instead of being made, by name of the benchmark.
    """
    given = text_embeddings or {}
    fields: dict[str, Any] = {
        **dataclasses.asdict(protocol),
        "weights": weights,
        "architecture": short_hash(list(model.method.describe().values())),
        "resize": _RESIZES[protocol.resize],
        "benchmarks": {
            index.benchmark.name: _describe(
                index, protocol.options_of(index.benchmark), given.get(index.benchmark.name)
            )
            for index in indices
        },
    }
    if tokenizer_file is not None:
        fields["tokenizer"] = sha256_of(user_path(tokenizer_file))[:16]
    return {"hash": short_hash(fields), **fields}


def _describe(
    index: DatasetIndex, options: MaskOptions, texts: np.ndarray | None
) -> dict[str, Any]:
    benchmark = index.benchmark
    overrides: dict[str, Any] = {
        name: getattr(benchmark, name) for name in ("short_side", "window", "stride", "threshold")
    }
    if options.cleaning:
        overrides["cleaning"] = True
    if texts is not None:
        array = np.ascontiguousarray(texts, np.float32)
        overrides["text_embeddings"] = hashlib.sha256(array.tobytes()).hexdigest()[:16]
    labels: list[Any] = [benchmark.background, benchmark.reduce_zero_label, *benchmark.ignore]
    labels += [benchmark.values] if benchmark.values is not None else []
    if benchmark.exif == "ignore":
        overrides["exif"] = benchmark.exif
    return {
        "classes": benchmark.classes_hash,
        "labels": short_hash(labels),
        "split": benchmark.split,
        "images": len(index.examples),
        "image_list": short_hash([example.key for example in index.examples]),
        **{name: value for name, value in overrides.items() if value is not None},
    }


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[Field, tuple[Any, Any]]:
    """Fields of two fingerprints that differ, with both values; None where one has no such field.

    The hash is left out, which says nothing that the others do not.
    """
    first, second = _flatten(a), _flatten(b)
    pairs = {field: (first.get(field), second.get(field)) for field in {**first, **second}}
    return {
        field: pair for field, pair in pairs.items() if pair[0] != pair[1] and field != ("hash",)
    }


def _flatten(value: Any, field: Field = ()) -> dict[Field, Any]:
    """The values of nested dicts by where they stand."""
    if not isinstance(value, Mapping):
        return {field: value}
    flat: dict[Field, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, (*field, key))
    return flat
