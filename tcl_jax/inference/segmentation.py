"""The result of segmenting one image: labels, areas, pictures and files."""

from __future__ import annotations

import functools
import io
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image

from tcl_jax.data.words import BACKGROUND_NAME, check_words
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.files import user_path, whole_file, write_json
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.parallel.cores import available_cores
from tcl_jax.pictures.legend import LegendEntry, for_display, legend_page
from tcl_jax.pictures.overlays import overlay, save_png
from tcl_jax.pictures.palette import class_palette

FORMAT_VERSION = 1
"""Of the files that `Segmentation.save` writes."""
AUTO_MASK_BYTES = 64 << 20
"""Most bytes of an image's soft masks that are saved unless more are asked for."""

_MAX_THREADS = 8
_PART = 1 << 22  # pixels
_PALETTE_COLORS = 256
_MASKS = ("auto", "full", "working", "none")


class Segmentation:
    """What every pixel of an image shows, out of some texts.

    Soft masks are kept as the model made them and brought to the image's size (bilinear,
    `align_corners=False`) when asked for, so an image of 100 megapixels and a hundred texts fit in
    memory.

    >>> import numpy as np
    >>> scores = np.zeros((2, 2, 2), np.float32)
    >>> scores[0, :, 0], scores[1, 0, 1] = 0.9, 0.6
    >>> image = np.zeros((4, 4, 3), np.uint8)
    >>> result = Segmentation(image=image, texts=("sky", "sea"), scores=scores, threshold=0.5)
    >>> result
    Segmentation(4 x 4 pixels, background from 0.5: sky 50.0 %, background 43.8 %, sea 6.2 %)
    >>> result.labels[:, 0].tolist()
    [1, 1, 0, 2]

    Args:
        image: uint8 [H, W, 3], the image as it was given.
        texts: the n names that were looked for, all different for CLIP (`data.words.check_words`).
        scores: soft masks in [0, 1]: float32 [h, w, n], or what is merged to them.
        threshold: score of the background, the class of pixels where no text has more; None: every
            pixel shows one of the texts. `label_rule.Probabilities` have more to say of it.
        palette: uint8 [labels, 3], a colour per label; None: `palette.class_palette`.

    Raises:
        InputError: if the parts do not fit each other, or as `check_words` of the texts.
    """

    def __init__(
        self,
        image: UInt8[np.ndarray, "H W 3"],
        texts: tuple[str, ...],
        scores: Float32[np.ndarray, "h w n"] | SoftMasks,
        threshold: int | float | None = None,
        palette: UInt8[np.ndarray, "labels 3"] | None = None,
    ) -> None:
        self.image, self.texts, self.threshold, self.palette = image, texts, threshold, palette
        self.soft_masks = scores if isinstance(scores, SoftMasks) else SoftMasks.of_array(scores)
        grids, problem = self.soft_masks.grids, None
        if len(texts) != (count := self.soft_masks.count) or not texts:
            problem = f"{len(texts)} texts and {count} scores per pixel"
        elif not (image.size and grids.size):
            problem = f"an image of shape {image.shape}, scores of {grids.shape[1:]}"
        elif len(self.names) > 1 << 16:
            problem = f"{len(texts)} texts, and at most 65535 fit in a label map"
        elif not np.isfinite(grids.min()) or not np.isfinite(grids.max()):
            problem = "scores that are not finite; the model's weights or the image may be damaged"
        elif palette is not None and len(palette) != len(self.names):
            problem = f"{len(palette)} colours for {len(self.names)} labels"
        if problem is not None:
            raise InputError(f"the result of a segmentation cannot have {problem}")
        with as_input_error("the texts of a segmentation"):
            check_words(texts, background=threshold is not None)

    # ------------------------------------------------------------------------------------- content

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every label: the texts, after "background" if there is one."""
        return self.texts if self.threshold is None else (BACKGROUND_NAME, *self.texts)

    @property
    def colors(self) -> UInt8[np.ndarray, "k 3"]:
        """Colour of every label, uint8 RGB."""
        if self.palette is not None:
            return self.palette
        return class_palette(len(self.texts), self.threshold is not None)

    @functools.cached_property
    def labels(self) -> UInt16[np.ndarray, "H W"]:
        """Index into `names` per pixel, uint16 [H, W]; the first of equal scores."""
        threads = min(available_cores(), _MAX_THREADS)
        return self.soft_masks.labels(self._size, self.threshold, threads)

    @functools.cached_property
    def scores(self) -> Float32[np.ndarray, "h w n"]:
        """Soft masks of the texts at the resolution at which the model saw the image."""
        return self.soft_masks.at(self.soft_masks.size)

    @property
    def masks(self) -> Float32[np.ndarray, "H W n"]:
        """Soft masks of the texts at the image's size, float32 [H, W, n] in [0, 1].

        Computed anew each time; 4 n bytes per pixel of the image.
        """
        return self.soft_masks.at(self._size)

    @functools.cached_property
    def fractions(self) -> dict[str, float]:
        """Share of the image's area that has each label, by name; together 1."""
        counts = np.zeros(len(self.names), np.int64)
        flat = self.labels.ravel()
        for start in range(0, flat.size, _PART):
            counts += np.bincount(flat[start : start + _PART], minlength=len(counts))
        return dict(zip(self.names, (counts / flat.size).tolist(), strict=True))

    @property
    def _size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    # ------------------------------------------------------------------------------------ pictures

    def overlay(self, opacity: int | float = 0.6) -> UInt8[np.ndarray, "H W 3"]:
        """The image with every text's pixels tinted in its colour; the background is left alone.

        Args:
            opacity: of the tint, in [0, 1].

        Raises:
            InputError: if the opacity is out of range.
        """
        if not 0 <= opacity <= 1:
            raise InputError(f"opacity={opacity} must be between 0 (nothing is tinted) and 1")
        untouched = None if self.threshold is None else 0
        return overlay(self.image, self.labels, self.colors, opacity, untouched=untouched)

    def legend_overlay(self, opacity: int | float = 0.6) -> UInt8[np.ndarray, "height width 3"]:
        """`overlay` on a page of readable size, with names, colours and areas beneath.

        Tiny images are enlarged and those above 2000 pixels reduced; the largest area comes first.

        Args:
            opacity: see `overlay`.
        """
        names = sorted(self.names, key=lambda name: -self.fractions[name])
        color = dict(zip(self.names, self.colors.tolist(), strict=True))
        if self.threshold is not None:
            color[BACKGROUND_NAME] = None
        entries = [
            LegendEntry(name, color[name] and tuple(color[name]), self.fractions[name])
            for name in names
            if self.fractions[name]
        ]
        absent = [name for name in self.texts if not self.fractions[name]]
        return legend_page(for_display(self.overlay(opacity)), entries, absent)

    def _repr_png_(self) -> bytes:
        """Shown by notebooks."""
        buffer = io.BytesIO()
        Image.fromarray(self.legend_overlay()).save(buffer, "PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        """Size, threshold and the largest areas."""
        height, width = self._size
        named = sorted(self.fractions.items(), key=lambda item: -item[1])
        shown = [f"{_short(name)} {100 * share:.1f} %" for name, share in named if share][:6]
        more = len(self.names) - len(shown)
        background = "" if self.threshold is None else f", background from {self.threshold:g}"
        return (
            f"Segmentation({height} x {width} pixels{background}: {', '.join(shown)}"
            f"{f', {more} more' if more else ''})"
        )

    # --------------------------------------------------------------------------------------- files

    def save(
        self,
        directory: str | os.PathLike[str],
        stem: str = "image",
        *,
        masks: Literal["auto", "full", "working", "none"] = "auto",
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Path]:
        """Writes the result for people and programs.

        STEM_overlay.png is `legend_overlay`. STEM_labels.png has the labels as pixel values, with
        `colors` as its palette; 16-bit grey if there are more than 256. STEM_masks.npz holds
        `masks` (float16 [H, W, n]) and `texts`. STEM.json tells texts, names, colours, threshold,
        sizes, area fractions and `extra`; it is written last, so where it is, all is. Each file is
        whole or absent, and earlier ones of the same names are replaced.

        Args:
            directory: made if it is not there.
            stem: begins the files' names.
            masks: size of the soft masks (2 n bytes per pixel): "full", the image's; "working",
                that of the scores; "auto", see `mask_size`; or "none".
            extra: further entries of the JSON file, such as settings.

        Returns:
            Path of each file by what it is: overlay, labels, masks (unless "none"), json.

        Raises:
            InputError: if the files cannot be written, the stem is no file name, `masks` is
                unknown, or `extra` cannot be written as JSON or has a key of the file's own.
            RunError: if the machine fails, as when its disk is full.
        """
        size = self.mask_size(masks)
        if Path(stem).name != stem or stem in ("", "..") or "\0" in stem:
            raise InputError(f"stem={stem!r} must be a file name without folders")
        kept = size and {"height": size[0], "width": size[1]}
        record = {**self._record(), "masks": masks, "mask_size": kept}
        extra = {} if extra is None else dict(extra)
        if both := sorted(set(extra) & set(record)):
            raise InputError(f"extra has {', '.join(both)}, which the file has of its own")
        try:
            json.dumps(extra)
        except (TypeError, ValueError) as error:
            raise InputError(f"extra cannot be written as JSON: {error}") from error
        folder = user_path(directory)
        paths = {
            "overlay": folder / f"{stem}_overlay.png",
            "labels": folder / f"{stem}_labels.png",
            "masks": folder / f"{stem}_masks.npz",
            "json": folder / f"{stem}.json",
        }
        with as_input_error(f"the results cannot be written to {str(folder)!r}"):
            folder.mkdir(parents=True, exist_ok=True)
            # From here on what an earlier call wrote is incomplete.
            paths["json"].unlink(missing_ok=True)
            save_png(paths["overlay"], self.legend_overlay())
            self._save_labels(paths["labels"])
            if size is None:
                paths.pop("masks").unlink(missing_ok=True)
            else:
                self._save_masks(paths["masks"], size)
            write_json(paths["json"], {**record, **extra})
        return paths

    def mask_size(self, masks: str = "auto") -> tuple[int, int] | None:
        """Rows and columns of the soft masks that `save` writes; None: of none.

        "auto" is the image's size where that takes at most `AUTO_MASK_BYTES`, else that of the
        scores, and where even that takes more, the largest of their aspect that does not.

        Raises:
            InputError: if `masks` is unknown.
        """
        if masks not in _MASKS:
            raise InputError(f"masks={masks!r} is unknown; choose one of {', '.join(_MASKS)}")
        height, width = self.soft_masks.size
        fitting = AUTO_MASK_BYTES / (2 * len(self.texts))  # pixels
        if masks == "none":
            return None
        if masks == "full" or (masks == "auto" and math.prod(self._size) <= fitting):
            return self._size
        scale = min(math.sqrt(fitting / (height * width)), 1.0) if masks == "auto" else 1.0
        return max(int(height * scale), 1), max(int(width * scale), 1)

    def _record(self) -> dict[str, Any]:
        sizes = {"size": self._size, "working_size": self.soft_masks.size}
        return {
            "format_version": FORMAT_VERSION,
            "texts": list(self.texts),
            "names": list(self.names),
            "colors": ["#{:02x}{:02x}{:02x}".format(*color) for color in self.colors.tolist()],
            "threshold": self.threshold,
            **{name: {"height": height, "width": width} for name, (height, width) in sizes.items()},
            "fractions": self.fractions,
        }

    def _save_labels(self, path: Path) -> None:
        if len(self.names) > _PALETTE_COLORS:
            picture = Image.fromarray(self.labels)
        else:
            picture = Image.fromarray(self.labels.astype(np.uint8))
            picture.putpalette(self.colors.tobytes())
        with whole_file(path) as temporary:
            picture.save(temporary, format="PNG")

    def _save_masks(self, path: Path, size: tuple[int, int]) -> None:
        """What `np.savez` would write, without ever holding the masks in memory.

        Compression would save a tenth and take most of the time.
        """
        header = {"descr": "<f2", "fortran_order": False, "shape": (*size, len(self.texts))}
        with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("texts.npy", "w") as file:
                np.lib.format.write_array(file, np.array(self.texts), allow_pickle=False)
            with archive.open("masks.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for band in self.soft_masks.bands(size):
                    file.write(band.astype("<f2").data.cast("B"))


def _short(name: str) -> str:
    """A name that can be printed in a list of them."""
    name = name if len(name) <= 40 else f"{name[:39]}…"
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
