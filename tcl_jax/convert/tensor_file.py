"""A file of tensors by name, of any format: what it holds is known, what is asked for is read."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from tcl_jax.convert.mapping import WeightError

Scalar = int | float | str | bool

MAX_NAME = 1000
MAX_DIMENSIONS = 32
# Tensors may share memory or be compressed, and yet a file cannot stand for much more than its
# size: otherwise a few bytes could ask for terabytes.
MAX_GROWTH = 4
MAX_GROWTH_BYTES = 16 << 20

DAMAGED = (
    OSError, EOFError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError,
    MemoryError, zlib.error, struct.error,
)  # fmt: skip
"""What reading a damaged file may raise here or in a library; RuntimeError includes recursion."""


class TensorSpec(NamedTuple):
    """What is known of a tensor before it is read.

    Attributes:
        shape: sizes, () for a single value.
        dtype: NumPy's, in native byte order; of ml_dtypes where NumPy has none (bfloat16).
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class Contents(NamedTuple):
    """What a format's reader finds in a file.

    Attributes:
        format: "safetensors", "npz", "torch" or "torchscript".
        specs: of every tensor, in the file's order.
        scalars: plain values beside the tensors.
        read: tensor of a name that is in `specs`.
    """

    format: str
    specs: dict[str, TensorSpec]
    scalars: dict[str, Scalar]
    read: Callable[[str], np.ndarray]


class ByteFile:
    """A regular file of which any part can be read; its size is that at the time of opening.

    Raises:
        WeightError: if there is no such file or it is something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            regular = stat.S_ISREG(path.stat().st_mode)
            # Opening a named pipe would wait for a writer.
            file = path.open("rb", buffering=0) if regular else None
        except FileNotFoundError as error:
            raise WeightError(
                f"weights {str(path)!r} do not exist; give the path of a .pt, .pth, .safetensors "
                "or .npz file (configs/tcl.py says where CLIP's weights come from)"
            ) from error
        except (OSError, ValueError) as error:
            raise WeightError(
                f"weights {str(path)!r} cannot be opened: {error}; correct the path or the file's "
                "permissions"
            ) from error
        if file is None:
            raise WeightError(
                f"weights {str(path)!r} are a folder or something else that is not a file; give "
                "the path of the file itself"
            )
        self._file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytes:
        """Exactly these bytes.

        Raises:
            ValueError: if the file does not have them.
        """
        return self.read_array(offset, size).tobytes()

    def read_array(self, offset: int, size: int) -> np.ndarray:
        """The same as a writable array: uint8, [size]."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"it ends at byte {self.size}, before what it should hold")
        array = np.empty(size, np.uint8)
        self._file.seek(offset)
        done = 0
        while done < size:
            count = self._file.readinto(array[done:].data)
            if not count:
                raise ValueError("it became shorter while it was read")
            done += count
        return array

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorFile(Mapping[str, Any]):  # not np.ndarray: type checks at run time would read one
    """The tensors of a file by name; each is read when it is asked for, and not kept.

    Attributes:
        path: of the file.
        format: "safetensors", "npz", "torch" (torch.save) or "torchscript" (torch.jit.save).
        specs: shape and dtype by name, known without reading a tensor.
        scalars: the plain values beside the tensors, such as `epoch` or safetensors' metadata.

    Asking for a tensor raises `WeightError` if its bytes are damaged, KeyError if there is none of
    this name. Close the file, or use it in a `with`, when done.
    """

    def __init__(self, path: Path, file: ByteFile, contents: Contents) -> None:
        check_specs(contents.specs, file.size)
        self.path, self._file = path, file
        self.format = contents.format
        self.specs: Mapping[str, TensorSpec] = contents.specs
        self.scalars = contents.scalars
        self._read = contents.read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.specs:
            raise KeyError(name)
        with explaining(self.path):
            return self._read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.specs  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; what was read stays."""
        self._file.close()


@contextlib.contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turns what a damaged file makes its body raise into a `WeightError` that names the file."""
    try:
        yield
    except WeightError as error:
        raise WeightError(f"weights {str(path)!r} cannot be read: {error}") from error
    except DAMAGED as error:
        reason = (str(error).splitlines() or [""])[0][:300] or type(error).__name__
        raise WeightError(
            f"weights {str(path)!r} cannot be read: {reason}; the file is damaged or was cut "
            "short, so get it again"
        ) from error


def check_specs(specs: Mapping[str, TensorSpec], file_size: int) -> None:
    """Refuses names that cannot be shown and shapes that no array, or this file, can have.

    Raises:
        ValueError: naming the tensor.
    """
    total = 0
    for name, spec in specs.items():
        if not 0 < len(name) <= MAX_NAME or not name.isprintable():
            raise ValueError(f"a tensor's name is empty, too long or unprintable: {name[:50]!r}")
        total += spec.nbytes
    if total > MAX_GROWTH * file_size + MAX_GROWTH_BYTES:
        raise ValueError(
            f"its tensors would take {total:,} bytes, more than a file of {file_size:,} can hold"
        )


def as_shape(sizes: Any, dtype: np.dtype[Any]) -> tuple[int, ...]:
    """The sizes of an array as a tuple, if NumPy can make such an array.

    Raises:
        ValueError: if they are no list or tuple of non-negative integers, or too many or too big.
    """
    if (
        not isinstance(sizes, list | tuple)
        or len(sizes) > MAX_DIMENSIONS
        or not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes)
        or math.prod(max(size, 1) for size in sizes) * dtype.itemsize >= 1 << 62
    ):
        raise ValueError("a tensor has an impossible shape")
    return tuple(sizes)


def as_array(
    data: np.ndarray,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Contiguous array in native byte order of the bytes that hold it.

    Args:
        data: uint8, [n].
        dtype: of the elements, of any byte order.
        shape: of the array.
        strides: bytes between elements along each axis; None if they follow each other.

    Raises:
        ValueError: if the bytes are too few.
    """
    if dtype == np.bool_:  # a byte that is neither 0 nor 1 is no bool to NumPy
        data = (data != 0).view(np.uint8)
    array: np.ndarray = np.ndarray(shape, dtype, data.data, strides=strides)
    return np.ascontiguousarray(array, dtype.newbyteorder("=")).reshape(shape)
