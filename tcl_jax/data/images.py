"""Images of every usual kind as RGB: encoded bytes, files, arrays and Pillow images.

Nothing here holds more than about twice the result's bytes beside it: large images are converted
some rows at a time.
"""

from __future__ import annotations

import dataclasses
import io
import os
import threading
import warnings
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.files import user_path

MAX_PIXELS = 100_000_000
"""Largest image that is read, in pixels; beyond it a file is more likely forged than a photo."""
FORMATS = ("JPEG", "PNG", "WEBP")
"""What `decode` reads, by Pillow's names; of training data nothing else is expected."""
FILE_FORMATS = (*FORMATS, "BMP", "GIF", "TIFF", "PPM")
"""What `read_image` reads."""
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".gif",
    ".bmp", ".tif", ".tiff", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".j2c",
    ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi", ".psd",
))  # fmt: skip
"""Endings, in lower case, of names that folders and shards give to images."""

Rgb: TypeAlias = UInt8[np.ndarray, "h w 3"]

_BAND_PIXELS = 1 << 22
# Rounding in resizing and colour conversions leaves values this little outside of [0, 1].
_FLOAT_SLACK = 1e-3
# Filters of warnings belong to the process; two threads must not restore them in the wrong order.
_WARNINGS_LOCK = threading.Lock()


@runtime_checkable
class SupportsArray(Protocol):
    """What NumPy can make an array of, such as a JAX array."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """The array."""


ImageLike: TypeAlias = np.ndarray | Image.Image | str | os.PathLike[str] | SupportsArray
"""What `as_rgb` takes."""


class ImageDecodeError(InputError):
    """An image that cannot be read: another format, damaged, cut short, too large, not there."""


def decode(data: bytes) -> Rgb:
    """A whole JPEG, PNG or WebP file as RGB, turned upright as its EXIF data says.

    Transparent pixels are laid over white, 16-bit values are scaled to 8 bits, CMYK, grey and
    palette images are converted; of an animation the first frame is taken.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ImageDecodeError: if the bytes are of another format, damaged or cut short, or declare
            more than `MAX_PIXELS`.
    """
    return _upright(open_bytes(data))


def read_image(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Rgb:
    """An image file as RGB: JPEG, PNG, WebP, BMP, GIF, TIFF or PPM, told by its content.

    Converted as `decode` does; grey values stored as floats must be in [0, 1].

    Args:
        path: of the file.
        max_pixels: largest image that is decoded, if less than `MAX_PIXELS`.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ImageDecodeError: if there is no such file, it cannot be opened, is empty, of another
            format, damaged or cut short, or has more pixels than allowed. The message names it.
    """
    path = user_path(path)
    try:
        # A pipe or device could keep the reader waiting for ever.
        if path.exists() and not path.is_file():
            what = "a folder" if path.is_dir() else "no regular file"
            raise ImageDecodeError(f"it is {what}; name an image file")
        with path.open("rb") as file:
            if not file.read(1):
                raise ImageDecodeError("the file is empty")
            file.seek(0)
            with _open(file, FILE_FORMATS, max_pixels) as image:
                return _upright(image)
    except ImageDecodeError as error:
        raise ImageDecodeError(f"{path}: {error}") from error.__cause__
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ImageDecodeError(f"{str(path)!r} cannot be opened: {reason}") from error


def as_rgb(image: ImageLike) -> Rgb:
    """Any image as RGB; the result may share memory with the argument.

    Args:
        image: a path (see `read_image`); a Pillow image of any mode, turned as its EXIF data says;
            or an array [h, w], [h, w, 1], [h, w, 3] or [h, w, 4] (with alpha, laid over white) of
            uint8, uint16, bool, or floats in [0, 1].

    Returns:
        uint8 [h, w, 3].

    Raises:
        ImageDecodeError: if a file or Pillow image cannot be read.
        InputError: if an array has another shape, type or range, or more than `MAX_PIXELS`.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        _check_size(image, MAX_PIXELS)
        return _upright(image)
    if isinstance(image, np.ndarray | SupportsArray):
        return _array_as_rgb(np.asarray(image))
    raise InputError(
        f"image is a {type(image).__name__}; give a path, a Pillow image, or an array [h, w, 3] of "
        "uint8 or of floats in [0, 1]"
    )


# ---------------------------------------------------------------------------------- encoded images


def open_bytes(data: bytes) -> Image.Image:
    """Reads the header of a JPEG, PNG or WebP file.

    Raises:
        ImageDecodeError: as `decode`.
    """
    return _open(io.BytesIO(data), FORMATS)


def load_rgb(image: Image.Image) -> Image.Image:
    """Decodes an opened image to RGB, as stored: not turned.

    Raises:
        ImageDecodeError: if it is damaged.
    """
    _load(image)
    return _to_rgb(image)


@dataclasses.dataclass(frozen=True)
class Turn:
    """How stored pixels become upright: mirror in x, in y, then exchange the axes."""

    mirror_x: bool = False
    mirror_y: bool = False
    swap: bool = False

    def apply(self, pixels: Rgb) -> UInt8[np.ndarray, "H W 3"]:
        """Stored to upright; the same array where nothing is to do."""
        if not (self.mirror_x or self.mirror_y or self.swap):
            return pixels
        pixels = self._mirror(pixels)
        return np.ascontiguousarray(pixels.swapaxes(0, 1) if self.swap else pixels)

    def stored_view(self, upright: Rgb) -> UInt8[np.ndarray, "H W 3"]:
        """View of an upright array whose rows and columns are the stored ones."""
        return self._mirror(upright.swapaxes(0, 1) if self.swap else upright)

    def box_before(
        self, box: tuple[int, int, int, int], *, width: int, height: int
    ) -> tuple[int, int, int, int]:
        """Where an upright box is in the stored image of this size."""
        left, top, right, bottom = box
        if self.swap:
            left, top, right, bottom = top, left, bottom, right
        if self.mirror_x:
            left, right = width - right, width - left
        if self.mirror_y:
            top, bottom = height - bottom, height - top
        return left, top, right, bottom

    def _mirror(self, pixels: Rgb) -> Rgb:
        return pixels[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


# EXIF tag 0x0112, by its value.
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Turn(mirror_x=True),
    3: Turn(mirror_x=True, mirror_y=True),
    4: Turn(mirror_y=True),
    5: Turn(swap=True),
    6: Turn(mirror_y=True, swap=True),
    7: Turn(mirror_x=True, mirror_y=True, swap=True),
    8: Turn(mirror_x=True, swap=True),
}


def exif_turn(image: Image.Image) -> Turn:
    """What the EXIF data asks for; damaged EXIF data must not cost the picture."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1), Turn())
    except Exception:
        return Turn()


def _open(
    file: io.BytesIO | io.BufferedReader, formats: tuple[str, ...], max_pixels: int | None = None
) -> Image.Image:
    try:
        with _WARNINGS_LOCK, warnings.catch_warnings():
            # Pillow warns of less than it is allowed here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:
        raise ImageDecodeError(
            f"the image is too large: {error}; the limit is {MAX_PIXELS} pixels"
        ) from error
    except Exception as error:  # Pillow raises almost any type on damaged headers.
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(0)
        names = [{"WEBP": "WebP"}.get(name, name) for name in formats]
        raise ImageDecodeError(
            f"{size} bytes beginning {file.read(8)!r} are not a readable "
            f"{', '.join(names[:-1])} or {names[-1]} image."
        ) from error
    _check_size(image, MAX_PIXELS if max_pixels is None else min(max_pixels, MAX_PIXELS))
    return image


def _check_size(image: Image.Image, limit: int) -> None:
    if image.width * image.height > limit:
        raise ImageDecodeError(
            f"the image is too large: {image.width} x {image.height} pixels, and the limit is "
            f"{limit}; make it smaller or cut it into parts"
        )
    if not image.width * image.height:
        raise ImageDecodeError(f"the image of {image.width} x {image.height} pixels is empty")


def _load(image: Image.Image) -> None:
    """Decodes, and checks the values of kinds that have no fixed range."""
    try:
        image.load()
        if image.mode in ("I", "F"):
            low, high = image.getextrema()
            limit = 65535 if image.mode == "I" else 1.0
            if low < 0 or high > limit:  # type: ignore[operator]
                raise ValueError(
                    f"grey values from {low:.6g} to {high:.6g}; scale them to [0, {limit:.6g}]"
                )
    except Exception as error:
        raise ImageDecodeError(
            f"the {image.format or 'image'} data of {image.width} x {image.height} pixels cannot "
            f"be decoded: {error}"
        ) from error


def _upright(image: Image.Image) -> Rgb:
    _load(image)
    # Only now: Pillow has turned a TIFF by itself, and a PNG may have its EXIF data at its end.
    turn = exif_turn(image)
    width, height = image.size
    upright = np.empty((*((width, height) if turn.swap else (height, width)), 3), np.uint8)
    stored = turn.stored_view(upright)
    rows = max(_BAND_PIXELS // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        part = image if rows >= height else image.crop((0, top, width, bottom))
        stored[top:bottom] = np.asarray(_to_rgb(part))
    return upright


def _to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image, or some of its rows, as RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    try:
        if image.mode.startswith("I") or image.mode == "F":
            unit = 257 if image.mode.startswith("I") else 1 / 255
            grey = np.rint(np.asarray(image).astype(np.float32) / unit)
            if not np.isfinite(grey).all():
                raise ValueError("it has values that are not finite")
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("LA") if image.mode == "La" else image
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")
    except Exception as error:
        raise ImageDecodeError(
            f"an image of mode {image.mode} cannot be converted to RGB: {error}"
        ) from error


# ------------------------------------------------------------------------------------------ arrays


def _array_as_rgb(array: np.ndarray) -> Rgb:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = "; channels come last: np.moveaxis(image, 0, -1)"
        elif array.ndim == 4:
            hint = "; give one image at a time"
        raise InputError(
            f"image is an array of shape {array.shape}; it must be [h, w, 3], or [h, w], "
            f"[h, w, 1] or [h, w, 4], and not empty{hint}"
        )
    height, width = array.shape[:2]
    if height * width > MAX_PIXELS:
        raise InputError(
            f"image has {width} x {height} pixels, and the limit is {MAX_PIXELS}; make it smaller "
            "or cut it into parts"
        )
    if array.dtype.name == "bfloat16":  # no float for NumPy
        array = array.astype(np.float32)
    _check_values(array)
    if array.dtype == np.uint8 and channels == 3:
        return np.ascontiguousarray(array)
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(_BAND_PIXELS // width, 1)
    for top in range(0, height, rows):
        part = _as_uint8(array[top : top + rows]).reshape(-1, width, channels)
        if channels == 4:
            part = np.asarray(_to_rgb(Image.fromarray(part)))
        rgb[top : top + rows] = part
    return rgb


def _check_values(array: np.ndarray) -> None:
    """Whether type and range of an array are those of an image."""
    if array.dtype in (np.uint8, np.uint16, np.bool_):
        return
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"image is an array of {array.dtype}; give uint8 (0 to 255), uint16, bool, or floats "
            "in [0, 1]: image.astype(np.uint8), if its values are 0 to 255"
        )
    low, high = float(array.min()), float(array.max())
    if low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK:
        return
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("image has values that are not finite; floats must be in [0, 1]")
    hint = "normalise it so that black is 0 and white is 1"
    if low >= 0 and high <= 256:
        hint = "it looks like 0 to 255: divide it by 255, or give it as uint8"
    elif max(-low, high) < 10:
        hint = "if a mean was subtracted, give the image as it was before"
    raise InputError(
        f"image has floats from {low:.6g} to {high:.6g}, and they must be in [0, 1]; {hint}"
    )


def _as_uint8(part: np.ndarray) -> np.ndarray:
    if part.dtype == np.uint8:
        return part
    if part.dtype == np.bool_:
        return part.astype(np.uint8) * np.uint8(255)
    if part.dtype == np.uint16:
        return np.rint(part.astype(np.float32) / 257).astype(np.uint8)
    return np.rint(np.clip(part.astype(np.float32), 0, 1) * 255).astype(np.uint8)
