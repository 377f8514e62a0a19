"""Tensors by name, read from a file when asked for; and what keeps reading them bounded."""

from __future__ import annotations

import contextlib
import io
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError

from tcl_jax.errors import raise_machine_fault
from tcl_jax.weights.mapping import WeightError

Scalar = int | float | str | bool

MAX_NAME = 1000
MAX_READ = 4 << 20
CHUNK = 1 << 18
# Tensors may share memory or be compressed, and yet a file cannot stand for much more than its
# size: otherwise a few bytes could ask for terabytes.
MAX_GROWTH = 4
MAX_GROWTH_BYTES = 16 << 20

# What the content of a file may raise here or in a library.
_DAMAGED = (
    ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error, SafetensorError,
)  # fmt: skip


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


Contents = tuple[
    str, dict[str, TensorSpec], dict[str, str], dict[str, Scalar], Callable[[str], np.ndarray]
]
"""What readers give: `TensorFile`'s format, specs, left_out, scalars, and what reads a tensor."""


class BoundedReader(io.BufferedReader):
    """A file that refuses large reads, which a damaged size in it would make `zipfile` ask for."""

    def read(self, size: int | None = -1) -> bytes:
        """ValueError for more than `MAX_READ` bytes; without a size, at most `CHUNK` bytes."""
        if size is not None and size > MAX_READ:
            raise ValueError(f"it says that a part of it takes {size:,} bytes, too many")
        return super().read(CHUNK if size is None or size < 0 else size)


def open_file(path: Path) -> BoundedReader:
    """Opens a regular file.

    Raises:
        WeightError: if there is no such file or it is something else.
    """
    try:
        # Opening a named pipe would wait for a writer.
        if stat.S_ISREG(path.stat().st_mode):
            return BoundedReader(io.FileIO(path))
        wrong = "are a folder or something else that is not a file"
    except FileNotFoundError:
        wrong = "do not exist"
    except (OSError, ValueError) as error:
        raise_machine_fault(f"weights {str(path)!r} could not be read", error)
        wrong = f"cannot be opened: {error}; correct the path or the permissions"
    raise WeightError(
        f"weights {str(path)!r} {wrong}; give the path of a .pt, .pth, .safetensors or .npz file "
        "(configs/tcl.py says where CLIP's weights come from)"
    )


class LazyTensors(Mapping[str, Any]):  # not np.ndarray: type checks at run time would read one
    """Tensors by name, each read when it is asked for, and not kept.

    Attributes:
        names: all of them, in order.
    """

    names: Mapping[str, Any]

    def __contains__(self, name: object) -> bool:
        return name in self.names  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class TensorFile(LazyTensors):
    """The tensors of a file by name; each is read when it is asked for, and not kept.

    Attributes:
        path: of the file, or of the index of several.
        files: all of them.
        format: "safetensors", "npz", "torch" (torch.save) or "torchscript" (torch.jit.save).
        specs: shape and dtype by name, known without reading a tensor.
        left_out: dtype or kind by name of the tensors that are none here, since it is not known:
            quantised, sparse, of safetensors' dtypes that NumPy lacks (F8, F4).
        scalars: the plain values beside the tensors, such as `epoch` or safetensors' metadata.

    Asking for one raises `WeightError` if its bytes are damaged or its name means several, KeyError
    if there is none of this name. Close the file, or use it in a `with`, when done.
    """

    def __init__(
        self,
        path: Path,
        contents: Contents,
        opened: contextlib.ExitStack,
        files: Sequence[Path] = (),
    ) -> None:
        self.path, self.files = path, files or [path]
        self._opened, self._closed = opened, False
        self.format, specs, self.left_out, self.scalars, self._read = contents
        self.specs: Mapping[str, TensorSpec] = specs
        self.names = specs

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.specs:
            raise KeyError(name)
        if self._closed:
            raise ValueError(f"weights {str(self.path)!r} are closed")
        with explaining(self.path):
            array = self._read(name)
        if array.dtype == np.bool_:  # a byte that is neither 0 nor 1 is no bool to NumPy
            array = array.view(np.uint8) != 0
        return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; what was read stays."""
        self._closed = True
        self._opened.close()


@contextlib.contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Turns what a damaged file makes its body raise into a `WeightError` that names the file.

    Failing disks and too little memory become a `RunError`.
    """
    try:
        yield
    except WeightError as error:
        if str(error).startswith("weights "):  # of one of several files, which it names
            raise
        raise WeightError(f"weights {str(path)!r} cannot be read: {error}") from error
    except (*_DAMAGED, OSError, MemoryError) as error:
        raise_machine_fault(f"weights {str(path)!r} could not be read", error)
        reason = "".join(filter(str.isprintable, str(error)))[:300] or type(error).__name__
        raise WeightError(
            f"weights {str(path)!r} cannot be read: {reason}; the file is damaged or was cut "
            "short, so get it again"
        ) from error


def check_specs(specs: Mapping[str, TensorSpec], size: int) -> dict[str, TensorSpec]:
    """Those whose names can be shown, as every name of a model can.

    Raises:
        ValueError: if no name can, or they are more than a file of this size can hold.
    """
    shown = {n: spec for n, spec in specs.items() if 0 < len(n) <= MAX_NAME and n.isprintable()}
    if specs and not shown:
        name = next(iter(specs))[:50]
        raise ValueError(f"a tensor's name is empty, too long or unprintable: {name!r}")
    check_growth(sum(spec.nbytes for spec in shown.values()), size)
    return shown


def check_growth(total: int, size: int) -> None:
    """Refuses a file of `size` bytes that is said to hold `total`, if that is too much.

    Raises:
        ValueError: with both.
    """
    if total > MAX_GROWTH * size + MAX_GROWTH_BYTES:
        raise ValueError(f"it would unpack to {total:,} bytes, more than {size:,} can hold")


def file_size(file: io.BufferedReader) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size
