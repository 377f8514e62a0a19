"""Images of every usual kind as RGB: encoded bytes, files, arrays and Pillow images."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from tcl_jax.data.exif import exif_turn
from tcl_jax.errors import InputError, machine_fault, raise_machine_fault
from tcl_jax.files import user_path

MAX_PIXELS = 100_000_000
"""Largest image that is read, in pixels; beyond it a file is more likely forged than a photo."""
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "QOI", "PSD",
)  # fmt: skip
"""Pillow's names of the formats that are read, in the order in which they are tried.

HEIF takes pillow-heif; readers that would start other programs (EPS) are not among them.
"""

Rgb: TypeAlias = UInt8[np.ndarray, "h w 3"]
_File: TypeAlias = io.BytesIO | io.BufferedReader

# Rounding in resizing and colour conversions leaves floats this little outside of [0, 1].
_FLOAT_SLACK = 1e-3
# Of text and colour profiles in a PNG: some programs write more than Pillow reads by itself.
_PNG_TEXT_BYTES = 1 << 26
# Tags of a TIFF: bits of each sample, and whether the samples of a pixel lie together.
_TIFF_BITS, _TIFF_PLANES, _APART = 258, 284, 2


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
    """A whole image file of one of `FORMATS` as RGB, turned upright as its EXIF data says.

    Transparent pixels are laid over white, 16-bit values are scaled to 8 bits, CMYK, grey and
    palette images are converted; floats must be in [0, 1]. Of an animation the first frame is
    taken, of several pages the first.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ImageDecodeError: if the bytes are of another format, damaged or cut short, or declare
            more than `MAX_PIXELS`.
    """
    return _upright(open_bytes(data))


def read_image(path: str | os.PathLike[str], *, max_pixels: int | None = None) -> Rgb:
    """An image file as RGB, as `decode` gives it; its format is told by its content.

    Args:
        max_pixels: largest image that is decoded, if less than `MAX_PIXELS`.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ImageDecodeError: if there is no such file, it cannot be opened, is empty, of another
            format, damaged or cut short, or has more pixels than allowed. The message names it.
        RunError: if the machine fails, for which the image is not to blame.
    """
    with open_file(path, max_pixels=max_pixels) as image:
        return _upright(image)


@contextlib.contextmanager
def open_file(
    path: str | os.PathLike[str], *, max_pixels: int | None = None
) -> Iterator[Image.Image]:
    """An image file of which the header was read; errors of the body name the file, too.

    Raises:
        ImageDecodeError, RunError: as `read_image`.
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
            with _open(file, max_pixels) as image:
                yield image
    except ImageDecodeError as error:
        raise ImageDecodeError(f"{path}: {error}") from error.__cause__
    except (OSError, ValueError, MemoryError) as error:
        raise_machine_fault(str(path), error)
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
        check_size(*image.size, MAX_PIXELS)
        return _upright(image)
    if isinstance(image, np.ndarray | SupportsArray):
        return _array_as_rgb(np.asarray(image))
    raise InputError(
        f"image is a {type(image).__name__}; give a path, a Pillow image, or an array [h, w, 3] of "
        "uint8 or of floats in [0, 1]"
    )


# ---------------------------------------------------------------------------------- encoded images


def open_bytes(data: bytes) -> Image.Image:
    """Reads the header of an image file.

    Raises:
        ImageDecodeError: as `decode`.
    """
    return _open(io.BytesIO(data))


def load_rgb(image: Image.Image) -> Image.Image:
    """Decodes an opened image to RGB, as stored: not turned.

    Raises:
        ImageDecodeError: if it is damaged.
    """
    _load(image)
    return _to_rgb(image)


@functools.cache
def _readers() -> dict[str, tuple[Callable[..., Image.Image], Callable[[bytes], bool | str]]]:
    """What opens an image of each of `FORMATS`, and what tells it by its first bytes."""
    Image.init()
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _PNG_TEXT_BYTES
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return {name: Image.OPEN[name] for name in FORMATS if name in Image.OPEN}  # type: ignore[misc]


def _open(file: _File, max_pixels: int | None = None) -> Image.Image:
    """Reads a header; unlike `Image.open`, it tells why the format's own reader refuses it."""
    limit = MAX_PIXELS if max_pixels is None else min(max_pixels, MAX_PIXELS)
    head = file.read(16)
    reason, cause = "", None
    for name, (reader, accepts) in _readers().items():
        if accepts(head) is not True:
            continue
        file.seek(0)
        try:
            image = reader(file, "")
        except Exception as error:  # Pillow raises almost any type on damaged headers.
            # Memory does not run out here but for lengths that a damaged header says.
            if isinstance(error, OSError) and machine_fault(error):
                raise
            reason, cause = f"its {name} header cannot be read: {error}", error
            continue  # AVIF and HEIC begin alike
        check_size(image.width, image.height, limit)
        return image
    size, known = file.seek(0, os.SEEK_END), ", ".join(FORMATS)
    raise ImageDecodeError(
        reason
        or f"{size} bytes beginning {head[:8]!r} are no image of a known format: {known} (HEIF, as "
        "of HEIC files, once pillow-heif is installed)"
    ) from cause


def check_size(width: int, height: int, limit: int) -> None:
    """Refuses images with more pixels than a limit, or none, by an ImageDecodeError."""
    if width * height > limit:
        raise ImageDecodeError(
            f"the image is too large: {width} x {height} pixels, and the limit is {limit}; make it "
            "smaller or cut it into parts"
        )
    if not width * height:
        raise ImageDecodeError(f"the image of {width} x {height} pixels is empty")


def _load(image: Image.Image) -> None:
    """Decodes the pixels of an opened image."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_TIFF_BITS, (1,))
    if tags.get(_TIFF_PLANES) == _APART and len(bits) > 1 and max(bits) > 8:
        raise ImageDecodeError(  # Pillow would give wrong pixels
            "a TIFF with its planes stored apart and more than 8 bits a sample, which is not read; "
            "save it with its samples pixel by pixel (PlanarConfiguration 1)"
        )
    try:
        image.load()
    except Exception as error:
        if machine_fault(error):
            raise
        raise ImageDecodeError(
            f"the {image.format or 'image'} data of {image.width} x {image.height} pixels cannot "
            f"be decoded: {error}"
        ) from error


def _upright(image: Image.Image) -> Rgb:
    _load(image)
    # Only now: Pillow has turned a TIFF by itself, and a PNG may have its EXIF data at its end.
    return exif_turn(image).apply(np.array(_to_rgb(image)))


def _to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image as RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    try:
        if image.mode.startswith("I") or image.mode == "F":
            grey = np.asarray(image)
            if image.mode == "I" and not 0 <= grey.min() <= grey.max() <= 65535:
                raise ValueError(f"grey values from {grey.min()} to {grey.max()}, not 0 to 65535")
            grey = _as_uint8(grey if image.mode == "F" else grey.astype(np.uint16))
            return Image.fromarray(grey).convert("RGB")
        if image.has_transparency_data:
            image = image.convert("LA") if image.mode == "La" else image
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, image).convert("RGB")
        return image.convert("RGB")
    except Exception as error:
        if machine_fault(error):
            raise
        raise ImageDecodeError(
            f"an image of mode {image.mode} cannot be converted to RGB: {error}"
        ) from error


# ------------------------------------------------------------------------------------------ arrays


def _array_as_rgb(array: np.ndarray) -> Rgb:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise InputError(
            f"image is an array of shape {array.shape}; it must be one image [h, w, 3], or [h, w], "
            "[h, w, 1] or [h, w, 4], and not empty; channels come last (np.moveaxis(image, 0, -1))"
        )
    height, width = array.shape[:2]
    check_size(width, height, MAX_PIXELS)
    values = _as_uint8(array).reshape(height, width, channels)
    if channels == 4:
        return np.array(_to_rgb(Image.fromarray(values)))
    return np.ascontiguousarray(np.broadcast_to(values, (height, width, 3)))


def _as_uint8(array: np.ndarray) -> np.ndarray:
    """Values from black 0 to white 255, of an array of a type and range that images have."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return np.rint(array.astype(np.float32) / 257).astype(np.uint8)
    # bfloat16 is no float for NumPy
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        raise InputError(
            f"image is an array of {array.dtype}; give uint8 (0 to 255), uint16, bool, or floats "
            "in [0, 1]: image.astype(np.uint8), if its values are 0 to 255"
        )
    floats = array.astype(np.float32)
    low, high = float(floats.min()), float(floats.max())
    if not (low >= -_FLOAT_SLACK and high <= 1 + _FLOAT_SLACK):  # so that NaN is refused, too
        raise InputError(
            f"image has floats from {low:.6g} to {high:.6g}, and they must be in [0, 1]: divide "
            "values of 0 to 255 by 255, and give an image as it was before a mean was subtracted"
        )
    return np.rint(np.clip(floats, 0, 1) * 255).astype(np.uint8)
