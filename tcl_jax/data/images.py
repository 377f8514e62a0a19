"""Images of every usual kind as RGB: encoded bytes, files, arrays and Pillow images."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from tcl_jax.data.exif import exif_turn
from tcl_jax.errors import InputError, machine_fault, raise_machine_fault
from tcl_jax.files import user_path

MAX_PIXELS = 100_000_000
"""Largest image that is read, in pixels; beyond it a file is more likely forged than a photo."""
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "JPEG2000", "PPM", "QOI", "PSD",
)  # fmt: skip
"""What is read, by Pillow's names and in order of trial: pictures that their first bytes tell.

HEIF takes pillow-heif or pi-heif; readers that would start other programs (EPS) are not among them.
"""

Rgb: TypeAlias = UInt8[np.ndarray, "h w 3"]
_File: TypeAlias = io.BytesIO | io.BufferedReader

# Rounding in resizing and colour conversions leaves floats this little outside of [0, 1].
_FLOAT_SLACK = 1e-3
# All of a PNG that makes the picture. Pillow reads the rest, too, and refuses much text in it.
_PICTURE_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
# In the brands of HEIC; MP4 and MOV begin alike, with others.
_HEIC_BRANDS = (b"hei", b"hev", b"mif1", b"msf1")
# Tags of a TIFF: width and height, and how its samples lie.
_TIFF_SIZE = (256, 257)
_TIFF_BITS, _TIFF_SAMPLES, _TIFF_PLANES = 258, 277, 284


@runtime_checkable
class SupportsArray(Protocol):
    """What NumPy can make an array of, such as a JAX array."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """The array."""


ImageLike: TypeAlias = np.ndarray | Image.Image | str | os.PathLike[str] | SupportsArray
"""What `as_rgb` takes."""


class ImageDecodeError(InputError):
    """An image that cannot be read: another format, damaged, cut short, too large, not there."""


class ImageTooLargeError(ImageDecodeError):
    """An image of more pixels than are read."""


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
        path: of the file.
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
        raise type(error)(f"{path}: {error}") from error.__cause__
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
        _check_size(*image.size, MAX_PIXELS)
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
    with contextlib.suppress(ImportError):
        import pi_heif

        pi_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return {name: Image.OPEN[name] for name in FORMATS if name in Image.OPEN}  # type: ignore[misc]


def _open(file: _File, max_pixels: int | None = None) -> Image.Image:
    """Reads a header; unlike `Image.open`, it tells why the format's own reader refuses it."""
    limit = MAX_PIXELS if max_pixels is None else min(max_pixels, MAX_PIXELS)
    head = file.read(64)
    reason, cause = "", None
    for name, (reader, accepts) in _readers().items():
        if (answer := accepts(head[:16])) is not True:
            reason = f"it is {name}: {answer}" if answer else reason  # why there is no support here
            continue
        file.seek(0)
        image: Image.Image | None
        try:
            image = reader(_picture_chunks(file) if name == "PNG" else file, "")
        except Exception as error:  # Pillow raises almost any type on damaged headers.
            # Memory does not run out here but for lengths that a damaged header says.
            if isinstance(error, OSError) and machine_fault(error):
                raise
            image = _open_deep_tiff(file, head, limit) if name == "TIFF" else None
            if image is None:
                reason, cause = f"its {name} header cannot be read: {error}", error
                continue  # AVIF and HEIC begin alike
        _check_size(image.width, image.height, limit)
        return image
    is_heic = head[4:8] == b"ftyp" and any(brand in head for brand in _HEIC_BRANDS)
    if "HEIF" not in _readers() and is_heic and b"avi" not in head:
        reason = "it looks like HEIC; install pillow-heif to have it read, or save it as JPEG"
    elif not reason:
        size, known = file.seek(0, os.SEEK_END), ", ".join(FORMATS)
        reason = f"{size} bytes beginning {head[:8]!r} are no image of a known format: {known}"
    raise ImageDecodeError(reason) from cause


def _picture_chunks(file: _File) -> io.BytesIO:
    """A PNG without the chunks that Pillow would read for nothing."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    kept, at = [file.read(8)], 8
    while at < size:
        file.seek(at)
        head = file.read(8)
        end = at + 12 + int.from_bytes(head[:4], "big")
        if head[4:] in _PICTURE_CHUNKS:
            kept += [head, file.read(min(end, size) - at - 8)]
        at = end
    return io.BytesIO(b"".join(kept))


def _open_deep_tiff(file: _File, head: bytes, limit: int) -> Image.Image | None:
    """A TIFF for whose samples Pillow has no mode, such as RGB of floats, by OpenCV.

    Returns:
        Its pixels; None if not even its size can be read.

    Raises:
        ImageDecodeError: if it is too large or damaged, or its values are out of range.
    """
    import cv2

    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if head[2] == 43 else 8])
        file.seek(tags.next)
        tags.load(file)
        width, height = (int(tags[tag]) for tag in _TIFF_SIZE)
    except Exception:
        return None
    _check_size(width, height, limit)
    _check_planes(tags)
    file.seek(0)
    try:
        array = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_UNCHANGED)
        if array is None:
            raise ValueError("its data are damaged, or of a kind that OpenCV does not read either")
        if array.ndim == 3:  # OpenCV's order is blue, green, red, alpha
            array = array[..., [2, 1, 0, 3][: array.shape[2]]]
        return Image.fromarray(_array_as_rgb(array))
    except (ValueError, cv2.error) as error:
        raise ImageDecodeError(f"a TIFF of {width} x {height} pixels: {error}") from error


def _check_size(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise ImageTooLargeError(
            f"the image is too large: {width} x {height} pixels, and the limit is {limit}; make it "
            "smaller or cut it into parts"
        )
    if not width * height:
        raise ImageDecodeError(f"the image of {width} x {height} pixels is empty")


def _check_planes(tags: Mapping[int, Any]) -> None:
    """Refuses what Pillow and OpenCV give without an error, but wrong."""
    apart = tags.get(_TIFF_PLANES) == 2 and tags.get(_TIFF_SAMPLES, 1) > 1
    if apart and max(tags.get(_TIFF_BITS, (1,))) > 8:
        raise ImageDecodeError(
            "a TIFF with its planes stored apart and more than 8 bits a sample, which is not read; "
            "save it with its samples pixel by pixel (PlanarConfiguration 1)"
        )


def _load(image: Image.Image) -> None:
    """Decodes the pixels of an opened image."""
    _check_planes(getattr(image, "tag_v2", {}))
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
    _check_size(width, height, MAX_PIXELS)
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
    if not np.isfinite([low, high]).all():
        raise InputError("image has values that are not finite, and they must be in [0, 1]")
    if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
        raise InputError(
            f"image has floats from {low:.6g} to {high:.6g}, and they must be in [0, 1]: divide "
            "values of 0 to 255 by 255, and give an image as it was before a mean was subtracted"
        )
    return np.rint(np.clip(floats, 0, 1) * 255).astype(np.uint8)
