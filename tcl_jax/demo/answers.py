"""What the page is told: photos within limits, soft masks of words, files to take away."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tcl_jax.data.images import MAX_PIXELS, read_image
from tcl_jax.data.words import check_words
from tcl_jax.demo.cache import ByteCache
from tcl_jax.demo.shown import for_screen
from tcl_jax.errors import InputError
from tcl_jax.files import sha256_of, user_path
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.model import Model
from tcl_jax.inference.segmentation import Segmentation
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.inference.settings import THRESHOLDS
from tcl_jax.models.methods import METHODS
from tcl_jax.pictures.overlays import save_png
from tcl_jax.pictures.palette import DISTINCT

BASELINE = "maskclip"
"""Method that TCL is shown beside, a key of `models.methods.METHODS`."""
TITLES = {name: kind.title for name, kind in METHODS.items()}

_CACHE_BYTES = 512 << 20
_MAX_LETTERS = 200  # of a word
_LONGEST_STEM = 40
_GONE = "The photo is no longer there; upload it again."


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the page takes.

    Attributes:
        max_megabytes: size of a file, in 10^6 bytes.
        max_megapixels: size of a photo, in 10^6 pixels.
        max_words: number of words.

    Raises:
        InputError: if a limit is out of range.
    """

    max_megabytes: int | float = 20
    max_megapixels: int | float = 25
    max_words: int = 50

    def __post_init__(self) -> None:
        """Checks the ranges."""
        if not 0 < self.max_megabytes * 1e6 < math.inf:
            raise InputError(f"max_megabytes={self.max_megabytes} must be above 0 and finite")
        if not 0 < self.max_megapixels <= MAX_PIXELS / 1e6:
            raise InputError(
                f"max_megapixels={self.max_megapixels} must be above 0 and at most "
                f"{MAX_PIXELS / 1e6:g}"
            )
        if not 1 <= self.max_words <= DISTINCT:
            raise InputError(f"max_words={self.max_words} must be from 1 to {DISTINCT}")

    @property
    def max_bytes(self) -> int:
        """Size of a file in bytes."""
        return int(self.max_megabytes * 1e6)


@dataclasses.dataclass(frozen=True)
class Question:
    """What decides soft masks, and so whether the model has to run.

    Attributes:
        photo: path of an image file.
        digest: SHA-256 of its bytes.
        words: what to look for, all different.
        pamr: whether masks are refined.
        methods: keys of `TITLES`, shown side by side.
    """

    photo: str
    digest: str
    words: tuple[str, ...]
    pamr: bool
    methods: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """Photo as it is shown, uint8 [H, W, 3], and for every method soft masks of the words."""

    question: Question
    picture: UInt8[np.ndarray, "H W 3"]
    masks: dict[str, SoftMasks]


class Answers:
    """Photos and words in, soft masks out; those of the same photo and words are kept.

    Questions of several threads are answered one after the other.

    Args:
        model: TCL, or CLIP alone.
        limits: of photos and words.
        tokenizer_file: see `Segmenter`.
        cache_bytes: soft masks and pictures that are kept, together.
    """

    def __init__(
        self,
        model: Model,
        *,
        limits: Limits | None = None,
        tokenizer_file: str | None = None,
        cache_bytes: int = _CACHE_BYTES,
    ) -> None:
        self.limits = limits or Limits()
        self.method = model.method.name
        self.settings = model.settings
        self.origin = model.origin
        self.model_runs = 0
        self.has_baseline = BASELINE in model.methods and self.method != BASELINE
        self._segmenters = {model.method.name: Segmenter(model, tokenizer_file=tokenizer_file)}
        if self.has_baseline:
            baseline = model.with_method(BASELINE)
            self._segmenters[BASELINE] = Segmenter(baseline, tokenizer_file=tokenizer_file)
        self._masks = ByteCache[tuple[str, Question], SoftMasks](cache_bytes // 2)
        self._pictures = ByteCache[str, np.ndarray](cache_bytes // 2)
        self._running = threading.Lock()

    def threshold(self, method: str, pamr: bool) -> float:
        """Score of the background that a method is meant to have."""
        own = self._segmenters[method].settings.threshold
        return THRESHOLDS[pamr] if own is None else own

    # ------------------------------------------------------------------------------- what is given

    def picture(self, path: str | os.PathLike[str]) -> UInt8[np.ndarray, "H W 3"]:
        """A photo in a size for the screen, see `for_screen`.

        Raises:
            InputError: if it is no image, or larger than the limits.
        """
        return self._picture(path, self._check_file(path))

    def _picture(self, path: str | os.PathLike[str], digest: str) -> UInt8[np.ndarray, "H W 3"]:
        if (picture := self._pictures.get(digest)) is None:
            picture = for_screen(self._read(path))
            self._pictures.put(digest, picture, picture.nbytes)
        return picture

    def read_words(self, text: str) -> tuple[str, ...]:
        """The words of lines; empty lines and words that come again are left out.

        Raises:
            InputError: if there is none, they are more than the limit, one is too long, or CLIP
                cannot tell two apart.
        """
        words = dict.fromkeys(" ".join(line.split()) for line in text.splitlines())
        words.pop("", None)
        most = self.limits.max_words
        if not words:
            raise InputError("Type at least one word, such as “cat”; one per line.")
        if len(words) > most:
            raise InputError(f"These are {len(words)} words; at most {most} fit on the page.")
        if long := [word for word in words if len(word) > _MAX_LETTERS]:
            raise InputError(f"“{long[0][:40]}…” is too long; use at most {_MAX_LETTERS} letters.")
        return tuple(check_words(words, background=True))

    def question(
        self, photo: str | os.PathLike[str] | None, text: str, *, pamr: bool, baseline: bool
    ) -> Question:
        """What a user asks, checked but for the photo's content.

        Args:
            photo: path of the file; None if there is none yet.
            text: a word per line.
            pamr: whether masks are refined.
            baseline: whether MaskCLIP is shown, too.

        Raises:
            InputError: if something is missing or exceeds the limits.
        """
        if photo is None:
            raise InputError("Choose a photo first, or click one of the examples.")
        digest = self._check_file(photo)
        words = self.read_words(text)
        methods = (self.method, BASELINE) if baseline and self.has_baseline else (self.method,)
        return Question(os.fspath(photo), digest, words, bool(pamr), methods)

    def _check_file(self, path: str | os.PathLike[str]) -> str:
        """SHA-256 of a file that is not too large."""
        try:
            size = os.stat(path).st_size
            if size > self.limits.max_bytes:
                raise InputError(
                    f"The file has {size / 1e6:.1f} MB; at most "
                    f"{self.limits.max_megabytes:g} MB are taken."
                )
            return sha256_of(path)
        except OSError as error:
            raise InputError(_GONE) from error

    def _read(self, path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
        try:
            return read_image(path, max_pixels=int(self.limits.max_megapixels * 1e6))
        except InputError as error:
            if not os.access(path, os.R_OK):
                raise InputError(_GONE) from error
            # Without the server's own name of the file.
            reason = str(error).removeprefix(f"{user_path(path)}: ")
            raise InputError(f"This photo cannot be used: {reason}") from error

    # ----------------------------------------------------------------------------- what comes back

    def answer(self, question: Question) -> Answer:
        """Soft masks of the words; the model runs only for what was not asked before.

        Raises:
            InputError: if the photo or a word cannot be used.
        """
        picture = self._picture(question.photo, question.digest)
        masks = {method: self._masks_of(question, method) for method in question.methods}
        return Answer(question, picture, masks)

    def segmentation(
        self, question: Question, method: str, threshold: int | float | None
    ) -> Segmentation:
        """The result for the photo in its own size, of the masks that are kept.

        Args:
            question: as it was answered.
            method: one of its methods.
            threshold: score of the background; None: none.

        Raises:
            InputError: if the photo is no longer there.
        """
        masks, image = self._masks_of(question, method), self._read(question.photo)
        threshold = None if threshold is None else float(threshold)
        return Segmentation(image, question.words, masks, threshold)

    def pack(
        self,
        question: Question,
        folder: str | os.PathLike[str],
        thresholds: Mapping[str, int | float] | None,
        opacity: int | float,
    ) -> Path:
        """A zip file of what `Segmentation.save` writes and of the overlay without a legend.

        Args:
            question: as it was answered.
            folder: where to put it.
            thresholds: score of the background by method; None: no background.
            opacity: of the overlay, in [0, 1].

        Returns:
            Path of the file, named after the photo.
        """
        stem = Path(question.photo).stem[:_LONGEST_STEM] or "photo"
        with tempfile.TemporaryDirectory(dir=folder) as made:
            for method in question.methods:
                threshold = None if thresholds is None else thresholds[method]
                result = self.segmentation(question, method, threshold)
                extra = {"method": method, "pamr": question.pamr, "opacity": float(opacity)}
                name = stem if len(question.methods) == 1 else f"{stem}_{method}"
                result.save(made, name, extra=extra)
                save_png(Path(made) / f"{name}_tinted.png", result.overlay(float(opacity)))
            target = Path(tempfile.mkdtemp(dir=folder)) / f"{stem}_masks.zip"
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for path in sorted(Path(made).iterdir()):
                    archive.write(path, path.name)
        return target

    def _masks_of(self, question: Question, method: str) -> SoftMasks:
        key = method, dataclasses.replace(question, photo="", methods=())
        with self._running:
            if (masks := self._masks.get(key)) is None:
                image = self._read(question.photo)
                self.model_runs += 1
                result = self._segmenters[method].segment(
                    image, question.words, background=False, pamr=question.pamr
                )
                masks = result.soft_masks
                self._masks.put(key, masks, masks.grids.nbytes)
        return masks
