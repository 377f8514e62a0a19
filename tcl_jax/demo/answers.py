"""What the page is told: photos within limits, soft masks of words, files to download."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tcl_jax.data.images import read_image
from tcl_jax.data.words import check_words
from tcl_jax.errors import InputError
from tcl_jax.files import user_path
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.model import Model
from tcl_jax.inference.segmentation import Segmentation
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.models.method import BY_PAMR
from tcl_jax.pictures.overlays import save_png, shrink

BASELINE = "maskclip"
"""Method that TCL is shown beside, a key of `models.methods.METHODS`."""
MAX_BYTES = 20_000_000
"""Largest file of a photo."""
MAX_PIXELS = 25_000_000
"""Largest photo."""
MAX_WORDS = 50
LONG_SIDE = 1024
"""Long side of a picture on the page, in pixels; larger photos are reduced."""

_CACHE_BYTES = 512 << 20  # of soft masks
_MAX_LETTERS = 200  # of a word
_LONGEST_STEM = 40
_GONE = "The photo is no longer there; upload it again."


@dataclasses.dataclass(frozen=True)
class Question:
    """What decides soft masks, and so whether the model has to run.

    Attributes:
        photo: path of an image file, which names its content: gradio puts every upload into a
            folder that is called by its SHA-256.
        words: what to look for, all different.
        pamr: whether masks are refined.
        methods: keys of `METHODS`, shown side by side.
    """

    photo: str
    words: tuple[str, ...]
    pamr: bool
    methods: tuple[str, ...]


class Answers:
    """Photos and words in, soft masks out; the last ones are kept.

    Questions of several threads are answered one after the other.

    Args:
        model: of any method; beside it MaskCLIP, where it has a CLIP for that.
        tokenizer_file: see `Segmenter`.
        max_bytes: of a photo's file.
        max_pixels: of a photo.
    """

    def __init__(
        self,
        model: Model,
        *,
        tokenizer_file: str | None = None,
        max_bytes: int = MAX_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.max_bytes, self.max_pixels = max_bytes, max_pixels
        self.method = model.method.name
        self.settings = model.settings
        self.origin = model.origin
        self.model_runs = 0
        self.has_baseline = BASELINE in model.methods and self.method != BASELINE
        models = [model, *([model.with_method(BASELINE)] if self.has_baseline else [])]
        self._segmenters = {
            one.method.name: Segmenter(one, tokenizer_file=tokenizer_file) for one in models
        }
        self._masks: OrderedDict[tuple[str, Question], SoftMasks] = OrderedDict()
        self._running = threading.Lock()

    def thresholds(self, pamr: bool) -> dict[str, float]:
        """Score of the background that each method is meant to have."""
        refine = BY_PAMR[pamr]
        return {name: one.background_score(refine) for name, one in self._segmenters.items()}

    # ------------------------------------------------------------------------------- what is given

    def picture(self, path: str | os.PathLike[str]) -> UInt8[np.ndarray, "H W 3"]:
        """A photo whose long side has at most `LONG_SIDE` pixels.

        Raises:
            InputError: if it is no image, or larger than the limits.
        """
        return shrink(self._read(path), LONG_SIDE)

    def read_words(self, text: str) -> tuple[str, ...]:
        """The words of lines; empty lines and words that come again are left out.

        Raises:
            InputError: if there is none, they are more than the limit, one is too long, or two are
                the same to the model.
        """
        words = dict.fromkeys(" ".join(line.split()) for line in text.splitlines())
        words.pop("", None)
        if not words:
            raise InputError("Type at least one word, such as “cat”; one per line.")
        if len(words) > MAX_WORDS:
            raise InputError(f"These are {len(words)} words; at most {MAX_WORDS} fit on the page.")
        if long := [word for word in words if len(word) > _MAX_LETTERS]:
            raise InputError(f"“{long[0][:40]}…” is too long; use at most {_MAX_LETTERS} letters.")
        return tuple(check_words(words, background=True))

    def question(
        self, photo: str | os.PathLike[str] | None, text: str, *, pamr: bool, baseline: bool
    ) -> Question:
        """What a user asks of a file and with a word per line, checked but for the photo's content.

        Raises:
            InputError: if there is no photo, or the words cannot be used.
        """
        if photo is None:
            raise InputError("Choose a photo first, or click one of the examples.")
        methods = (self.method, BASELINE) if baseline and self.has_baseline else (self.method,)
        return Question(os.fspath(photo), self.read_words(text), pamr, methods)

    def _read(self, path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise InputError(_GONE) from error
        if size > self.max_bytes:
            raise InputError(
                f"The file has {size / 1e6:.1f} MB; at most {self.max_bytes / 1e6:g} MB are taken."
            )
        try:
            return read_image(path, max_pixels=self.max_pixels)
        except InputError as error:
            # Without the server's own name of the file.
            reason = str(error).removeprefix(f"{user_path(path)}: ")
            raise InputError(f"This photo cannot be used: {reason}") from error

    # ----------------------------------------------------------------------------- what comes back

    def answer(self, question: Question) -> tuple[UInt8[np.ndarray, "H W 3"], dict[str, SoftMasks]]:
        """The photo as it is shown and soft masks by method; the model runs only for new ones.

        Raises:
            InputError: if the photo or a word cannot be used.
        """
        masks = {method: self._masks_of(question, method) for method in question.methods}
        return self.picture(question.photo), masks

    def segmentation(
        self, question: Question, method: str, threshold: int | float | None
    ) -> Segmentation:
        """The result for the photo in its own size, of the masks that are kept.

        The threshold is the score of the background; None: there is none.

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
        key = method, dataclasses.replace(question, methods=())
        with self._running:
            if key not in self._masks:
                image = self._read(question.photo)
                self.model_runs += 1
                result = self._segmenters[method].segment(image, question.words, pamr=question.pamr)
                self._masks[key] = result.soft_masks
            self._masks.move_to_end(key)
            masks = self._masks[key]
            while sum(kept.grids.nbytes for kept in self._masks.values()) > _CACHE_BYTES:
                self._masks.popitem(last=False)
        return masks
