"""How a model is evaluated, and the fingerprint that says whether two results are comparable."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import PIL
from absl import logging
from jaxtyping import Float32

from tcl_jax.data.words import background_words
from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import BENCHMARKS, Benchmark
from tcl_jax.evaluation.examples import DatasetIndex
from tcl_jax.evaluation.results import best_thresholds
from tcl_jax.evaluation.thresholds import BEST, MADE_WITH, TRIED
from tcl_jax.files import sha256_of, short_hash, user_path
from tcl_jax.inference.label_rule import LabelRule
from tcl_jax.inference.masks import MaskOptions, Synonyms
from tcl_jax.inference.model import Model
from tcl_jax.inference.presets import ClassWords, load_preset
from tcl_jax.inference.settings import (
    MAX_LONG_SIDE,
    InferenceSettings,
    scale_sizes,
    settings_of,
)
from tcl_jax.inference.texts import embed_class_names, text_encoder_of
from tcl_jax.inference.windows import SlidingWindow, working_size
from tcl_jax.models.clip import CLIP
from tcl_jax.models.layers import compute_dtype
from tcl_jax.models.method import Method, choose_refinement
from tcl_jax.models.methods import METHODS

Field = tuple[str, ...]
"""Where a value stands in a fingerprint; one of a single benchmark is ("benchmarks", name, ...)."""

_RESIZES = {
    "opencv": f"OpenCV {cv2.__version__}, bilinear",
    "pillow": f"Pillow {PIL.__version__}, bicubic",
}


_REFINED = {"none": "", "pamr": " + PAMR", "affinity": " + affinity"}
_SIZES = ("short_side", "window", "stride")
_RULE_ONLY = ("logit_scale", "area_threshold", "pamr_dilations", "pamr_iterations")
"""Fields that masks are decided without."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol(InferenceSettings, ClassWords):
    """Everything but the model and the data that moves a score.

    Attributes:
        protocol: its name, one of `inference.presets.PROTOCOLS`.
        method: a key of `models.methods.METHODS`.
        short_side: pixels that an image's short side is resized to.
        threshold: score of the background class, in [0, 1].
        dtype: what the network computes in, a key of `COMPUTE_DTYPES`.
        max_long_side: most pixels of a resized image's long side.
        search: whether many thresholds are counted, to find the best.
        found: thresholds of benchmarks that were found so, by their names; before all others.
        benchmarks: fields that differ on a benchmark, by its name; see `of`.

    Raises:
        InputError: if a value is out of its range.
    """

    protocol: str
    method: str
    short_side: int
    threshold: float
    dtype: str = "float32"
    max_long_side: int = MAX_LONG_SIDE
    search: bool = False
    found: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    benchmarks: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=dict, hash=False
    )

    def __post_init__(self) -> None:
        """Checks the ranges."""
        super().__post_init__()
        compute_dtype(self.dtype)

    @property
    def title(self) -> str:
        """The method's name for tables."""
        return METHODS[self.method].title + _REFINED[self.refine]

    def of(self, benchmark: Benchmark) -> Protocol:
        """The same for a benchmark: with what the protocol says of it, and before that its file.

        Raises:
            InputError: if windows would leave gaps.
        """
        names = (*_SIZES, "threshold", "cleaning")
        own = {name: x for name in names if (x := getattr(benchmark, name)) is not None}
        if "short_side" in own and "window" not in own and self.window:
            own["window"] = max(self.window * own["short_side"] // self.short_side, 1)
        if "stride" not in own and own.get("window", self.window) != self.window:
            own["stride"] = max(own["window"] // 2, 1)
        fields = {**self.benchmarks.get(benchmark.name, {}), **own}
        if benchmark.name in self.found:
            fields["threshold"] = self.found[benchmark.name]
        window, stride = fields.get("window", self.window), fields.get("stride", self.stride)
        if window and stride > window:
            raise InputError(
                f"benchmark {benchmark.name!r}: windows of {window} pixels at a stride of {stride} "
                "leave gaps; make the stride at most the window"
            )
        return dataclasses.replace(self, **fields)

    def options_of(self, benchmark: Benchmark) -> MaskOptions:
        """What the method makes of a benchmark's windows."""
        mine = self.of(benchmark)
        # Of other scores the first text has to be the background's.
        cleaning = mine.cleaning and (self.scores == "masks" or benchmark.background)
        return mine.options_for(METHODS[self.method], cleaning=cleaning)

    def tried_on(self, benchmark: Benchmark) -> tuple[float, ...]:
        """The thresholds that are counted on a benchmark, ascending; empty where none is chosen."""
        if not (self.search and benchmark.background):
            return ()
        return tuple(sorted({*TRIED, self.of(benchmark).threshold}))

    def background_of(self, benchmark: Benchmark) -> float | None:
        """Score of a benchmark's background among masks; None if it has none."""
        return self.of(benchmark).threshold if benchmark.background else None

    def rule_of(self, benchmark: Benchmark) -> LabelRule | None:
        """How classes are decided of other scores than masks."""
        if self.scores == "masks":
            return None
        mine = self.of(benchmark)
        return LabelRule(
            self.synonyms_of(benchmark),
            mine.logit_scale if self.scores == "cosines" else None,
            mine.threshold if benchmark.background else 0.0,
            mine.area_threshold if benchmark.background else None,
        )

    def words_of(self, benchmark: Benchmark) -> tuple[tuple[str, ...], ...]:
        """Words of every class, of which any shows it; the background's are the first, if any."""
        mine = self.of(benchmark)
        classes = [mine.names.get(words[0], words) for words in benchmark.classes]
        if mine.joined:
            classes = [tuple("".join(word.split()) for word in words) for words in classes]
        if benchmark.background and self.scores != "masks":
            own = () if benchmark.name in BENCHMARKS else classes
            classes.insert(0, background_words(mine.background, own))
        return tuple(classes)

    def texts_of(self, benchmark: Benchmark) -> tuple[str, ...]:
        """All words of the classes, each once."""
        words = self.words_of(benchmark)
        return tuple(dict.fromkeys(word for synonyms in words for word in synonyms))

    def synonyms_of(self, benchmark: Benchmark) -> Synonyms:
        """Indices into `texts_of` of the words of every class."""
        place = {word: i for i, word in enumerate(self.texts_of(benchmark))}
        return tuple(
            tuple(place[word] for word in synonyms) for synonyms in self.words_of(benchmark)
        )

    def sliding_window(
        self, benchmark: Benchmark, size: tuple[int, int], patch_size: int
    ) -> SlidingWindow:
        """The windows of an image of `size` rows and columns."""
        mine = self.of(benchmark)
        resized = working_size(*size, mine.short_side, self.max_long_side, self.resize)
        return SlidingWindow.over(resized, mine.window or max(resized), mine.stride, patch_size)


def make_protocol(model: Model, protocol: str | None = None, **choices: Any) -> Protocol:
    """The model's own settings, or those of a named protocol, but for what is chosen.

    Args:
        model: the one that is evaluated, already of its method.
        protocol: one of `inference.presets.PROTOCOLS`; None or "own": the method's. Choices go
            before it, also on single benchmarks.
        choices: fields of `Protocol`, and `pamr`, see `choose_refinement`; None leaves the
            protocol's. A short side alone scales the windows, and other windows have half their
            side as stride. The threshold may be "best" or "best:DIR", see
            `evaluation.thresholds.BEST`.

    Raises:
        InputError: if a value is out of its range, or there is no such protocol.
    """
    method, own = model.method, protocol in (None, "own")
    name = method.protocol if protocol is None or own else protocol
    preset = load_preset(name)
    settings = model.settings
    if not own:
        kept = ("threshold", "refine", "kp_weight") if settings.scores == "masks" else ()
        base = InferenceSettings(**{key: getattr(settings, key) for key in kept})
        settings = settings_of(name, method, base)
    given = {name: value for name, value in choices.items() if value is not None}
    how = given.pop("threshold") if isinstance(given.get("threshold"), str) else None
    masks = (scores := given.get("scores", settings.scores)) == "masks"
    refine = choose_refinement(
        method, settings.refine, given.pop("refine", None), given.pop("pamr", None), scores
    )
    if masks and (wrong := [x for x in _RULE_ONLY if x in given]):
        raise InputError(
            f"{wrong[0]} is of protocols that compare cosines, as sclip does, and not of {name}"
        )
    words = {field.name for field in dataclasses.fields(ClassWords)}
    known = [field.name for field in dataclasses.fields(InferenceSettings)]
    short_side = settings.short_side or settings.window
    fields = {
        **{key: value for key, value in preset.fields.items() if key in words},
        **{name: getattr(settings, name) for name in known},
        "short_side": short_side,
        "refine": refine,
        **given,
    }
    if "window" not in given and "short_side" in given and settings.window:
        fields["window"] = max(settings.window * given["short_side"] // short_side, 1)
    if "stride" not in given and fields["window"] not in (0, settings.window):
        fields["stride"] = max(fields["window"] // 2, 1)
    if "threshold" not in given and (own or "threshold" not in preset.fields):
        fields["threshold"] = settings.background_score(method, refine)
    if not (method.mixes_clip and masks):
        fields["kp_weight"] = 0.0
        if given.get("kp_weight"):
            logging.warning(
                "kp_weight=%s changes nothing: %s by protocol %s has no masks of CLIP mixed in, as "
                "those of TCL have", given["kp_weight"], method.title, name,
            )  # fmt: skip
    fields["pixels"] = (fields["pixels"] or method.own_pixels) if method.own_pixels else None
    if not isinstance(encoder := method.text_encoder, CLIP):
        fields["normalize_sentences"] = encoder.normalizes_sentences
    for field in ("pixels", "normalize_sentences"):
        if field in given and fields[field] != given[field]:
            logging.warning("%s=%s changes nothing for %s", field, given[field], method.title)
    # What is chosen holds for every benchmark, and sizes belong together.
    chosen = {*given, *(_SIZES if "short_side" in given else ())}
    chosen |= {"stride"} if "window" in given else set()
    tables = {}
    for benchmark, table in preset.benchmarks.items():
        sizes = scale_sizes(table, settings.window, preset.fields["window"])
        rest = {k: x for k, x in {**table, **sizes}.items() if k not in chosen}
        if table.get("window") == 0 and "window" not in given:  # the whole image stays that
            rest["window"] = 0
        tables[benchmark] = rest
    made = Protocol(protocol=name, method=method.name, benchmarks=tables, **fields)
    step = model.origin.get("run", {}).get("step")
    return made if how is None else _with_best(made, how, step)


def _with_best(protocol: Protocol, how: str, step: int | None) -> Protocol:
    """The same that looks for the best thresholds, or has those that were found."""
    if how == BEST:
        return dataclasses.replace(protocol, search=True)
    names = [*MADE_WITH]
    if protocol.scores != "masks":
        names += ["protocol", "logit_scale"]
    used = {name: getattr(protocol, name) for name in names}
    folder = how.removeprefix(f"{BEST}:")
    best, found = best_thresholds(folder, protocol.method, step, **used)
    tables = {
        name: {key: x for key, x in table.items() if key != "threshold"}
        for name, table in protocol.benchmarks.items()
    }
    return dataclasses.replace(protocol, threshold=best, found=found, benchmarks=tables)


def embed_texts(
    protocol: Protocol,
    method: Method,
    params: Any,
    benchmark: Benchmark,
    *,
    tokenizer_file: str | None = None,
    progress: bool = False,
) -> Float32[np.ndarray, "n d"]:
    """Embeddings of `Protocol.texts_of` in the protocol's templates, by the method's text encoder.

    Raises:
        InputError: as `inference.texts.embed_class_names`.
    """
    encoder = text_encoder_of(method, protocol)
    return embed_class_names(
        encoder,
        method.text_params(params),
        protocol.texts_of(benchmark),
        protocol.templates,
        tokenizer=encoder.tokenizer(tokenizer_file),
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
    general = _fields_of(protocol)
    fields: dict[str, Any] = {
        **general,
        "weights": weights,
        "architecture": short_hash(list(model.method.describe().values())),
        "resize": _RESIZES[protocol.resize],
        "benchmarks": {
            index.benchmark.name: _describe(
                index, protocol, general, given.get(index.benchmark.name)
            )
            for index in indices
        },
    }
    if tokenizer_file is not None:
        fields["tokenizer"] = sha256_of(user_path(tokenizer_file))[:16]
    return {"hash": short_hash(fields), **fields}


def _fields_of(protocol: Protocol) -> dict[str, Any]:
    """Fields by name but for the tables of benchmarks, with words as text."""
    names = {"protocol": protocol.protocol, "method": protocol.method}  # are read first
    fields = {**names, **dataclasses.asdict(protocol)}
    for name in ("benchmarks", "search", "found"):
        del fields[name]
    if protocol.search:
        fields["threshold"] = f"the best of {TRIED[0]} to {TRIED[-1]}, and the method's own"
    fields["background"] = ", ".join(protocol.background) or None
    fields["names"] = {name: ", ".join(words) for name, words in protocol.names.items()} or None
    fields["cleaning"] = protocol.cleaning and METHODS[protocol.method].cleans
    fields["pamr_dilations"] = [*protocol.pamr_dilations]
    if not isinstance(protocol.templates, str):
        fields["templates"] = [*protocol.templates]
    unread = (*_RULE_ONLY, "background") if protocol.scores == "masks" else ()
    return {name: value for name, value in fields.items() if name not in unread}


def _describe(
    index: DatasetIndex, protocol: Protocol, general: dict[str, Any], texts: np.ndarray | None
) -> dict[str, Any]:
    """What is of one benchmark alone: its data, and fields of the protocol that differ there."""
    benchmark = index.benchmark
    mine = _fields_of(protocol.of(benchmark))
    overrides = {name: value for name, value in mine.items() if value != general[name]}
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
