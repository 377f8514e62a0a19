"""Images of every kind as RGB, and damaged files, which must never end in another error."""

from __future__ import annotations

import errno
import inspect
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from tcl_jax.data import images
from tcl_jax.data.images import ImageDecodeError, as_rgb, decode, read_image
from tcl_jax.errors import InputError, RunError
from tests.data.shards import encode

FORMATS = {
    "JPEG": {"quality": 90}, "PNG": {}, "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"}, "BMP": {}, "GIF": {}, "AVIF": {"quality": 90},
    "JPEG2000": {}, "PPM": {}, "QOI": {},
}  # fmt: skip
MARKER = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]], [[9, 9, 9], [99, 99, 99], [200] * 3]])


def picture(height: int = 24, width: int = 31) -> np.ndarray:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR))


def assert_near(actual: np.ndarray, expected: np.ndarray, tolerance: int) -> None:
    assert actual.dtype == np.uint8 and actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected.astype(int)).max() <= tolerance


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "file_format", "options", "tolerance"),
    [
        ("a.jpg", "JPEG", {"quality": 95, "subsampling": 0}, 16),
        ("a.png", "PNG", {}, 0),
        ("a.webp", "WEBP", {"lossless": True}, 0),
        ("a.bmp", "BMP", {}, 0),
        ("a.tif", "TIFF", {"compression": "tiff_deflate"}, 0),
        ("a.ppm", "PPM", {}, 0),
        ("phone.MPO", "MPO", {"quality": 95, "subsampling": 0}, 16),
        ("a.avif", "AVIF", {"quality": 100, "subsampling": "4:4:4"}, 8),
        ("a.jp2", "JPEG2000", {"irreversible": False}, 0),
        ("a.qoi", "QOI", {}, 0),
        ("no suffix", "PNG", {}, 0),
        ("a wrong one.jpg", "TIFF", {}, 0),
    ],
)
def test_read_image(tmp_path: Path, name, file_format, options, tolerance) -> None:
    image = picture()
    path = tmp_path / name
    path.write_bytes(encode(image, file_format, **options))
    assert_near(read_image(path), image, tolerance)
    np.testing.assert_array_equal(as_rgb(str(path)), read_image(path))
    np.testing.assert_array_equal(decode(path.read_bytes()), read_image(path))


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (9, 5), (255, 0, 0)), Image.new("RGB", (9, 5), (0, 0, 255))
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        red.save(tmp_path / name, save_all=True, append_images=[blue], lossless=True)
        np.testing.assert_array_equal(read_image(tmp_path / name), np.asarray(red))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 77])
def test_orientation(tmp_path: Path, orientation: int, file_format: str) -> None:
    # How the stored pixels of each value came from the upright ones, by the EXIF standard.
    stored = {
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1], 5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: lambda x: np.rot90(x, -1),
        77: lambda x: x,  # damaged, which must not cost the picture
    }[orientation]  # fmt: skip
    upright = MARKER.astype(np.uint8).repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image"
    options = {"quality": 95, "subsampling": 0} if file_format == "JPEG" else {}
    pixels = np.ascontiguousarray(stored(upright))
    path.write_bytes(encode(pixels, file_format, exif=exif, **options))
    assert_near(read_image(path), upright, 4 if file_format == "JPEG" else 0)
    with Image.open(path) as opened:
        assert_near(as_rgb(opened), upright, 4 if file_format == "JPEG" else 0)


def test_deep_grey_files(tmp_path: Path) -> None:
    expected = np.array([[0, 1, 128, 255]], np.uint8)
    deep = np.array([[0, 257, 32768, 65535]])
    for name, pixels in {
        "a.png": deep.astype(np.uint16),
        "a.tif": deep.astype(np.uint16),
        "b.tif": deep.astype(np.int32),
        "a.pgm": deep.astype(np.uint16),
        "c.tif": (deep / 65535).astype(np.float32),
    }.items():
        Image.fromarray(pixels).save(tmp_path / name, format="PPM" if name == "a.pgm" else None)
        np.testing.assert_array_equal(read_image(tmp_path / name)[..., 1], expected)
    bad = {
        "0 to 255": np.array([[0, 255]], np.float32),
        "to 70000": np.array([[0, 70000]], np.int32),
        "nan": np.array([[0, np.nan, 1]], np.float32),
    }
    for message, pixels in bad.items():
        Image.fromarray(pixels).save(tmp_path / "bad.tif")
        with pytest.raises(ImageDecodeError, match=rf"bad\.tif.*{message}"):
            read_image(tmp_path / "bad.tif")


def test_png_with_more_text_than_pillow_reads(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.fromarray(picture()).save(tmp_path / "a.png", pnginfo=text, icc_profile=bytes(2_000_000))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), picture())


def test_tiff_with_its_planes_apart() -> None:
    """Of 16 bits a sample, as libtiff writes it; Pillow reads it without an error, but wrong."""
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "TIFF", tiffinfo={284: 2})
    data = file.getvalue().replace(b"\x08\0" * 3, b"\x10\0" * 3)
    with pytest.raises(ImageDecodeError, match="planes stored apart"):
        decode(data)


def test_heic_is_read_with_a_plugin(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    made = pillow_heif.from_pillow(Image.fromarray(picture()))
    made.save(tmp_path / "a.heic", quality=100, chroma=444)
    assert_near(read_image(tmp_path / "a.heic"), picture(), 12)


@pytest.mark.parametrize(
    ("error", "why"), [(OSError(errno.EMFILE, "x"), "open files"), (MemoryError(), "memory")]
)
def test_faults_of_the_machine_are_not_those_of_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    def fail(*args, **kwargs):
        raise error

    Image.fromarray(picture()).save(tmp_path / "a.png")
    files = isinstance(error, OSError)
    monkeypatch.setattr(Path if files else PngImageFile, "open" if files else "load", fail)
    with pytest.raises(RunError, match=rf"a\.png.*{why}"):
        read_image(tmp_path / "a.png")


# ---------------------------------------------------------------------------- files that are none


def test_errors_name_the_file(tmp_path: Path) -> None:
    good = encode(picture(64, 64), "PNG")
    for name, content in {"empty": b"", "text": b"hello, world", "cut": good[:900]}.items():
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "empty": "the file is empty",
        "text": "12 bytes beginning b'hello, w' are no image of a known format: JPEG, .*PPM",
        "cut": "the PNG data of 64 x 64 pixels cannot be decoded",
        "": "it is a folder",
        **dict.fromkeys(("missing", "missing/deep", "empty/deep", "a\0b", "n" * 300), "opened: .+"),
        "pipe": "no regular file",
    }.items():
        with pytest.raises(ImageDecodeError, match=message) as caught:
            read_image(tmp_path / name)
        assert repr(str(tmp_path / name))[1:-1] in repr(str(caught.value)).replace("\\\\", "\\")
    assert issubclass(ImageDecodeError, InputError)


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that promises `width` x `height` grey pixels and holds few."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_001, 10_000), (2**31 - 1,) * 2])
def test_bombs_are_not_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of_size(*size))
    with (
        warnings.catch_warnings(record=True) as heard,
        pytest.raises(ImageDecodeError, match="too large.* 100000000"),
    ):
        read_image(path)
    assert not heard


def test_limit_holds_for_arrays_and_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert as_rgb(np.zeros((10, 10), np.uint8)).shape == (10, 10, 3)
    for image in (np.zeros((10, 11), np.uint8), Image.new("L", (11, 10))):
        with pytest.raises(InputError, match="11 x 10 pixels, and the limit is 100"):
            as_rgb(image)
    with pytest.raises(ImageDecodeError, match="0 x 3 pixels is empty"):
        as_rgb(Image.new("RGB", (0, 3)))


def mutants(data: bytes, rng: np.random.Generator) -> list[bytes]:
    """Damaged copies: cut short, bits turned, forged numbers in the header."""
    found = [data[: int(cut)] for cut in rng.integers(1, len(data), 8)]
    for count in (1, 1, 1, 4, 16, 64):
        copy = bytearray(data)
        for place in rng.integers(0, len(copy), count):
            copy[place] ^= 1 << int(rng.integers(8))
        found.append(bytes(copy))
    for _ in range(8):
        copy = bytearray(data)
        place = int(rng.integers(2, 70))
        copy[place : place + 4] = rng.bytes(4)
        found.append(bytes(copy))
    return [*found, data + rng.bytes(50)]


@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_files_decode_or_are_refused(file_format: str) -> None:
    rng = np.random.default_rng(list(FORMATS).index(file_format))
    options = FORMATS[file_format]
    sources = [encode(picture(), file_format, **options)]
    if file_format in ("PNG", "WEBP", "TIFF", "AVIF"):
        exif = Image.Exif()
        exif[0x0112] = 6
        rgba = np.dstack([picture(), np.full((24, 31), 200, np.uint8)])
        sources.append(encode(rgba, file_format, exif=exif, **options))
    decoded = refused = 0
    for data in [mutant for source in sources for mutant in mutants(source, rng)]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pixels = decode(data)
            except ImageDecodeError:
                refused += 1
                continue
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert pixels.size and pixels.flags.c_contiguous
        decoded += 1
    assert refused >= 5 and decoded >= 2


# ------------------------------------------------------------------------------- Pillow and arrays


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV",
             "I", "I;16", "F"]
)  # fmt: skip
def test_pillow_modes(mode: str) -> None:
    image = Image.new("L", (6, 4), 255).convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode))
    if mode in ("I", "I;16"):
        image = Image.fromarray(np.full((4, 6), 65535, np.uint16 if mode == "I;16" else np.int32))
    elif mode == "F":
        image = Image.fromarray(np.ones((4, 6), np.float32))
    image = image.convert(mode) if mode in ("La", "RGBa") else image
    assert image.mode == mode
    assert_near(as_rgb(image), np.full((4, 6, 3), 255, np.uint8), 1)


def test_arrays() -> None:
    image = picture()
    deep = image.astype(np.uint16) * 257
    kinds = [image, deep, image / 255, (image / 255).astype(np.float32), Image.fromarray(image)]
    kinds += [np.asfortranarray(image), image[:, ::-1][:, ::-1]]
    for given in (*kinds, jnp.asarray(image), jnp.asarray(image / 255)):
        pixels = as_rgb(given)
        np.testing.assert_array_equal(pixels, image)
        assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    assert_near(as_rgb((image / 255).astype(np.float16)), image, 1)
    assert_near(as_rgb(jnp.asarray(image / 255, jnp.bfloat16)), image, 1)
    grey = image[..., 0]
    for given in (grey, grey[..., None], grey / 255, deep[..., 0], deep[..., :1]):
        np.testing.assert_array_equal(as_rgb(given), np.dstack([grey] * 3))
    np.testing.assert_array_equal(as_rgb(grey > 100)[..., 2], np.where(grey > 100, 255, 0))
    assert as_rgb(np.full((1, 1), 7, np.uint8)).tolist() == [[[7, 7, 7]]]
    assert as_rgb(np.array([[1 + 5e-4, -5e-4]])).tolist() == [[[255] * 3, [0] * 3]]


def test_alpha_is_laid_over_white_alike_in_every_form(tmp_path: Path) -> None:
    rgba = np.dstack([picture(), np.linspace(0, 255, 24 * 31).reshape(24, 31).astype(np.uint8)])
    alpha = rgba[..., 3:] / 255
    expected = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    results = [as_rgb(x) for x in (rgba, rgba.astype(np.uint16) * 257, rgba / 255,
                                   Image.fromarray(rgba), tmp_path / "a.png")]  # fmt: skip
    assert_near(results[0], expected, 1)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\).*np\.moveaxis"),
        (np.zeros((0, 8, 3), np.uint8), "not empty"),
        (np.zeros((8, 8, 3), np.int64), "int64.*astype"),
        (np.full((8, 8, 3), "x"), "<U1"),
        (np.full((8, 8, 3), 200.0), "from 200 to 200.*by 255"),
        (np.full((8, 8, 3), -2.1), "a mean was subtracted"),
        (np.full((8, 8, 3), np.nan), "(nan|inf).* must be in"),
    ],
)
def test_arrays_that_are_no_image(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_rgb(array)


@pytest.mark.parametrize("thing", [None, 7, b"bytes", [[1, 2], [3, 4]]])
def test_things_that_are_no_image(thing) -> None:
    with pytest.raises(InputError, match=f"image is a {type(thing).__name__}; give a path"):
        inspect.unwrap(as_rgb)(thing)
