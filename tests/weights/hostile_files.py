"""Archives and safetensors files made to do harm; none of them can be read."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.torch_files import pickled, torch_members, with_zip64_end


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name.rstrip("*")), content, compression)
    return file.getvalue()


def patched(
    content: bytes, signature: bytes, offset: int, value: bytes, last: bool = False
) -> bytes:
    """With `value` at `offset` after a signature."""
    found = content.rfind(signature) if last else content.find(signature)
    assert found >= 0
    return content[: found + offset] + value + content[found + offset + len(value) :]


def npy(header: bytes, data: bytes = b"\0" * 16) -> bytes:
    header = header.ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def npz(shape: bytes, descr: bytes = b"'<f4'", **options: Any) -> bytes:
    header = b"{'descr': " + descr + b", 'fortran_order': False, 'shape': " + shape + b", }"
    return zipped({"a.npy": npy(header)}, **options)


def tensors_in(header: Any, data: bytes = b"\0" * 16) -> bytes:
    """A safetensors file."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def entry(start: Any = 0, stop: Any = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Archives and safetensors files by name; none can be read."""
    plain = zipped(
        {f"a/{k}": v for k, v in torch_members(*pickled({"a": np.ones(4, np.float32)})).items()}
    )
    central, end = b"PK\x01\x02", b"PK\x05\x06"
    zeros = b"\0" * (32 << 20)
    deflated = zipped({"a/data.pkl": b"\x80\x02" + b"N" * 50_000 + b"."}, zipfile.ZIP_DEFLATED)
    many = b"".join(central + b"\0" * 42 for _ in range(200_000))
    tail = struct.pack("<4s4HIIH", end, 0, 0, 200_000 & 0xFFFF, 200_000 & 0xFFFF, len(many), 4, 0)
    yield "bomb", zipped({"a.npy": zeros}, zipfile.ZIP_DEFLATED)
    yield "bomb of a pickle", zipped({"a/data.pkl": zeros}, zipfile.ZIP_DEFLATED)
    for name, size in (
        ("small", b"\x10\0\0\0"),
        ("big", b"\xff" * 3 + b"\0"),
        ("huge", b"\xf0" * 4),
    ):
        yield f"{name} lie", patched(deflated, central, 24, size)
    yield "names twice", zipped({"a/data.pkl": b"N.", "a/data.pkl*": b"N."})
    yield "another name there", patched(plain, b"PK\x03\x04", 30, b"b")
    yield "overlap", patched(plain, central, 20, struct.pack("<II", 900, 900))
    yield "one place", zipped({"b.npy": b"", "c.npy": b""}).replace(b"c.npy", b"b.npy")
    yield "beyond the end", patched(plain, central, 42, b"\xf0\xff\xff\xff")
    yield "bigger than the file", patched(plain, central, 20, b"\0\0\0\x40" * 2)
    yield "two sizes", patched(plain, central, 20, b"\x01\0\0\0")
    yield "encrypted", patched(plain, central, 8, b"\x01\x00")
    yield "method", patched(plain, central, 10, b"\x0c\x00")
    yield "size elsewhere", patched(plain, central, 24, b"\xff" * 4)
    yield "directory", patched(plain, end, 12, b"\xff\xff\xff\xff")
    yield "no end", plain[: plain.rfind(end)]
    yield "long directory", patched(with_zip64_end(plain), b"PK\x06\x06", 40, b"\xff" * 8)
    yield "many members", b"PK\x03\x04" + many + tail
    yield "two pickles", zipped({"a/data.pkl": b"N.", "b/data.pkl": b"N."})
    for shape in (
        b"(1000000000000,)", b"(4294967296, 4294967296)", b"(" + b"9" * 60 + b",)", b"(-4,)",
        b"(" + b"1," * 33 + b")", b"__import__('os').system('touch x')",
    ):  # fmt: skip
        yield f"npz {shape[:20]!r}", npz(shape)
    yield "npz nesting", zipped({"a.npy": npy(b"(" * 10_000)})
    yield "npz dtype", npz(b"(4,)", b"'<f3'")
    yield "npz objects", npz(b"(2,)", b"'|O'")
    yield "npz no array", zipped({"a.npy": pickle.dumps({})})
    yield "npz cut", zipped({"a.npy": npy(b"")[:40]})
    yield "huge header", b"\xff" * 7 + b"\x7f{}"
    yield "big header", (1 << 30).to_bytes(8, "little") + b"{}" * 100
    # Of what the library itself refuses, one of each kind.
    yield "no JSON", tensors_in(b"{" + b"x" * 20)
    yield "nesting", tensors_in(b'{"a":' + b"[" * 100_000)
    yield "lists", tensors_in(b'{"a":[' + b"[]," * 1_390_000 + b"[]]}")
    yield "overlapping", tensors_in({"a": entry(), "b": entry()})
    yield "hole", tensors_in({"a": entry(4, 20)}, b"\0" * 20)
    yield "short", tensors_in({"a": entry()}, b"\0" * 8)
    yield "other size", tensors_in({"a": entry(shape=(5,))})
    yield "overflow", tensors_in({"a": entry(shape=(2**62, 4))})
    yield "dtype", tensors_in({"a": entry(dtype="\x1b[31m")})
    for name in ("", "a\nb", "\x1b[2J", "n" * 2000):
        yield f"name {name!r:.20}", tensors_in({name: entry()})
