"""From merged cosines or probabilities of texts to classes: the rule of SCLIP's authors and others.

The probabilities of the texts at a pixel are the softmax over all of them of the scaled cosines; a
class has the largest of its texts', and the largest wins (Wang et al., ECCV 2024). Nothing of the
image's size has an axis of all texts: pixels are decided a tile, or some texts, at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float32, Integer, UInt8, UInt16

from tcl_jax.errors import RunError
from tcl_jax.inference.masks import MaskOptions, Synonyms
from tcl_jax.inference.merging import SoftMasks, Tile

Values = Callable[..., Iterable[Float32[np.ndarray, "r c k"]]]
"""Scores in a tile, some texts at a time, in order: of all, or of those of a second argument."""
Refine = Callable[[tuple[int, int]], tuple[Sequence[Tile], Values]]
"""Tiles of an image of some size, and refined scores in one: a `Refiner` of the image's own."""


@dataclasses.dataclass(frozen=True)
class LabelRule:
    """How an image's label map is decided; class 0 is the background, where there is one.

    Attributes:
        classes: of each the indices of its texts, ascending; classes may share a text, which then
            counts for each in the softmax, and shows the first.
        logit_scale: what cosines are multiplied by; None: the scores are probabilities.
        threshold: where no class has at least this probability, class 0 is.
        area_threshold: share of the pixels whose most probable class is not 0 that such a class
            must exceed, or else it is nowhere; None: any.
    """

    classes: Synonyms
    logit_scale: float | None
    threshold: float = 0.0
    area_threshold: float | None = None

    def labels(
        self,
        masks: SoftMasks,
        size: tuple[int, int],
        threads: int = 1,
        refined: tuple[Sequence[Tile], Values] | None = None,
    ) -> UInt16[np.ndarray, "H W"]:
        """The class of every pixel; of equal ones the first.

        Args:
            masks: merged scores of the texts.
            size: rows and columns of the result.
            threads: that compute it.
            refined: tiles and their scores, instead of those of `masks`.

        Raises:
            RunError: if scores are not finite.
        """
        if refined is None and not self.threshold and self.area_threshold is None:
            # As the softmax is monotonous; most texts are left out by what their highest score is.
            return self._class_of[masks.labels(size, threads=threads)]
        labels, largest = self._likeliest(masks, size, threads, refined)
        labels[largest < np.float32(self.threshold)] = 0
        return labels

    def levels(
        self,
        masks: SoftMasks,
        size: tuple[int, int],
        thresholds: Sequence[float],
        refined: tuple[Sequence[Tile], Values] | None = None,
    ) -> tuple[UInt16[np.ndarray, "H W"], UInt8[np.ndarray, "H W"]]:
        """What `labels` is at each of some thresholds instead of the rule's, as
        `SoftMasks.levels`.
        """
        labels, largest = self._likeliest(masks, size, 1, refined)
        limits = np.array(thresholds, np.float32)
        return labels, np.searchsorted(limits, largest, side="right").astype(np.uint8)

    def _likeliest(
        self,
        masks: SoftMasks,
        size: tuple[int, int],
        threads: int,
        refined: tuple[Sequence[Tile], Values] | None,
    ) -> tuple[UInt16[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
        """The class of every pixel whatever the threshold, and its probability."""
        tiles, values = refined or (masks.tiles(size), functools.partial(_merged, masks, size))
        labels, largest = np.empty(size, np.uint16), np.empty(size, np.float32)

        def decide(tile: Tile) -> None:
            place = _place(tile)
            labels[place], largest[place] = self.best(values(tile))

        _each(decide, tiles, threads)
        if self.area_threshold is not None:
            counts = np.bincount(labels.ravel(), minlength=len(self.classes))
            kept = counts > self.area_threshold * counts[1:].sum()
            kept[0] = True
            class_of = self.class_of(kept)

            def decide_again(tile: Tile) -> None:
                place, shown = _place(tile), kept.copy()
                shown[labels[place]] = True
                # Not all texts, as refining takes long.
                some = np.flatnonzero(self.class_of(shown) >= 0)
                found = self.best(values(tile, some), class_of[some], largest[place])
                labels[place], largest[place] = found

            lost = [tile for tile in tiles if not kept[labels[_place(tile)]].all()]
            _each(decide_again, lost, threads)
        return labels, largest

    def best(
        self,
        parts: Iterable[Float32[np.ndarray, "r c _"]],
        class_of: Integer[np.ndarray, " n"] | None = None,
        likeliest: Float32[np.ndarray, "r c"] | None = None,
    ) -> tuple[UInt16[np.ndarray, "r c"], Float32[np.ndarray, "r c"]]:
        """The most probable class of every pixel, and its probability.

        Args:
            parts: scores of the first texts, of the next, and so on.
            class_of: the class of each text, -1 where it may not be; None: the first that has it.
            likeliest: probability of the most probable text of all, if `parts` are of some.

        Raises:
            RunError: if scores are not finite.
        """
        classes = self._class_of if class_of is None else class_of
        scale = None if self.logit_scale is None else np.float32(self.logit_scale)
        # Of the texts so far: the best of those that may be, the best of all, and the sum of all
        # powers, relative to that.
        labels: np.ndarray = np.zeros((), np.uint16)
        largest: np.ndarray = np.full((), -np.inf, np.float32)
        total: np.ndarray = np.zeros((), np.float32)
        top, first = largest, 0
        for scores in parts:
            texts = slice(first, first + scores.shape[-1])
            highest = np.maximum(top, scores.max(axis=-1))
            if not np.isfinite(highest).all() or not np.isfinite(scores.min()):
                raise RunError("masks are not finite; the model's weights may be damaged")
            among = scores if class_of is None else np.where(classes[texts] < 0, -np.inf, scores)
            best = among.max(axis=-1)
            labels = np.where(best > largest, classes[texts][among.argmax(axis=-1)], labels)
            largest = np.maximum(best, largest)
            if scale is not None and likeliest is None:
                powers = scores - highest[..., None]
                np.exp(np.multiply(powers, scale, out=powers), out=powers)
                again = [text - first for text in self._again if first <= text < texts.stop]
                total = total * np.exp(scale * (top - highest)) + powers.sum(axis=-1)
                total += powers[..., again].sum(axis=-1)
            top, first = highest, texts.stop
        if scale is not None:
            largest = np.exp(scale * (largest - top))
            largest = largest / total if likeliest is None else largest * likeliest
        return labels.astype(np.uint16), largest

    def probabilities(
        self, parts: Iterable[Float32[np.ndarray, "r c _"]]
    ) -> Float32[np.ndarray, "r c classes"]:
        """Of every class the largest of its texts' probabilities.

        Args:
            parts: as in `best`.
        """
        scores = np.concatenate([*parts], axis=-1)
        if self.logit_scale is not None:
            scale, top = np.float32(self.logit_scale), scores.max(axis=-1, keepdims=True)
            powers = np.exp(scale * (scores - top))
            total = powers.sum(axis=-1) + powers[..., self._again].sum(axis=-1)
            scores = powers / total[..., None]
        return np.stack([scores[..., [*texts]].max(axis=-1) for texts in self.classes], axis=-1)

    @functools.cached_property
    def _class_of(self) -> UInt16[np.ndarray, " n"]:
        """The first class of each text."""
        return self.class_of(np.ones(len(self.classes), bool)).astype(np.uint16)

    def class_of(self, kept: Bool[np.ndarray, " classes"]) -> Integer[np.ndarray, " n"]:
        """The first class of each text of those that are kept; -1: none."""
        shown = np.full(1 + max(max(texts) for texts in self.classes), -1)
        for number in np.flatnonzero(kept)[::-1]:
            shown[[*self.classes[number]]] = number
        return shown

    @functools.cached_property
    def _again(self) -> list[int]:
        """Texts of a class that another one before it has, too."""
        listed = [text for texts in self.classes for text in texts]
        return [text for i, text in enumerate(listed) if text in listed[:i]]


@dataclasses.dataclass(frozen=True, eq=False)
class Probabilities(SoftMasks):
    """Probabilities of classes as an image's soft masks; kept are the scores of all their texts.

    Attributes:
        rule: says the classes; its thresholds are not used.
        background: whether its first class is the background's, of which there is no mask.
        refine: if given, refines the scores before they are probabilities.
    """

    rule: LabelRule
    background: bool = False
    refine: Refine | None = None

    @classmethod
    def of(
        cls,
        scores: SoftMasks,
        options: MaskOptions,
        classes: Synonyms | None,
        background: bool,
        refine: Refine,
    ) -> Probabilities:
        """By what scores were made with.

        Args:
            scores: of the texts.
            options: with which they were made.
            classes: None: each text is a class.
            background: whether the first is the background's.
            refine: refines the scores, if the options say so.
        """
        each = tuple((i,) for i in range(scores.count))
        scale = options.logit_scale if options.scores == "cosines" else None
        refined = refine if options.refine == "pamr" else None
        return cls(
            scores.sliding, scores.grids, LabelRule(classes or each, scale), background, refined
        )

    @property
    def count(self) -> int:
        """Number of masks."""
        return len(self.rule.classes) - self.background

    def part(
        self, size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
    ) -> Float32[np.ndarray, "r c n"]:
        """Some rows and columns of `at`, from a first one up to another."""
        return self._masks(self._scores(size)[1]((rows, columns)))

    def bands(self, size: tuple[int, int]) -> Iterator[Float32[np.ndarray, "rows W n"]]:
        """The rows of `at`, some at a time, for masks that do not fit in memory."""
        if self.refine is None:
            yield from super().bands(size)
            return
        # No lower than those that are refined together, as each takes what surrounds it.
        tiles, values = self._scores(size)
        for _, some in itertools.groupby(tiles, key=lambda tile: tile[0]):
            yield np.concatenate([self._masks(values(tile)) for tile in some], axis=1)

    def labels(
        self, size: tuple[int, int], threshold: int | float | None = None, threads: int = 1
    ) -> UInt16[np.ndarray, "H W"]:
        """By the rule: the background is where it is most probable, or nothing is probable enough.

        Args:
            size: rows and columns of the result.
            threshold: the least probability of another class; None: there is no background.
            threads: that compute it.

        Raises:
            RunError: if scores are not finite.
        """
        if self.background != (threshold is not None):
            return self.best(size, threshold, threads)[0]
        rule = dataclasses.replace(self.rule, threshold=threshold or 0.0)
        refined, threads = (None, threads) if self.refine is None else (self.refine(size), 1)
        return rule.labels(self._texts, size, threads, refined)

    def best(
        self, size: tuple[int, int], threshold: int | float | None = None, threads: int = 1
    ) -> tuple[UInt16[np.ndarray, "H W"], Float32[np.ndarray, "H W"]]:
        """Index and probability of the best class; 0 is that where the background has more.

        Args:
            size, threshold, threads: as in `labels`.

        Raises:
            RunError: if scores are not finite.
        """
        labels, largest = np.empty(size, np.uint16), np.empty(size, np.float32)
        tiles, values = self._scores(size)
        class_of = self.rule.class_of(np.arange(len(self.rule.classes)) >= self.background)

        def decide(tile: Tile) -> None:
            place, parts = _place(tile), [*values(tile)]
            labels[place], largest[place] = self.rule.best(parts, class_of)
            if self.background:
                largest[place][self.rule.best(parts)[0] == 0] = 0

        _each(decide, tiles, threads if self.refine is None else 1)
        labels -= self.background
        if threshold is not None:
            shown = (largest > 0) & (largest >= np.float32(threshold))
            labels = np.where(shown, labels + 1, 0).astype(np.uint16)
        return labels, largest

    @property
    def _texts(self) -> SoftMasks:
        return SoftMasks(self.sliding, self.grids)

    def _scores(self, size: tuple[int, int]) -> tuple[Sequence[Tile], Values]:
        if self.refine is not None:
            return self.refine(size)
        return self.tiles(size), functools.partial(_merged, self._texts, size)

    def _masks(self, parts: Iterable[Float32[np.ndarray, "r c _"]]) -> Float32[np.ndarray, "r c n"]:
        return self.rule.probabilities(parts)[..., int(self.background) :]


def _place(tile: Tile) -> tuple[slice, slice]:
    return slice(*tile[0]), slice(*tile[1])


def _merged(
    masks: SoftMasks,
    size: tuple[int, int],
    tile: Tile,
    texts: Integer[np.ndarray, " k"] | None = None,
) -> list[Float32[np.ndarray, "r c k"]]:
    """`Values` of merged scores."""
    return [(masks if texts is None else masks.some(texts)).part(size, *tile)]


def _each(function: Callable[[Tile], None], tiles: Iterable[Tile], threads: int) -> None:
    if threads == 1:
        for tile in tiles:
            function(tile)
    else:
        # NumPy computes without holding Python's lock.
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(function, tiles))
