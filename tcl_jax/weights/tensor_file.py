"""Tensors by name, read from a file when asked for."""

from __future__ import annotations

import contextlib
import math
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

# What the content of a file may raise here or in a library; `zipfile` raises a RuntimeError of
# encrypted members.
_DAMAGED = (
    ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, SafetensorError,
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


class Contents(NamedTuple):
    """What the reader of a format gives; the first four are attributes of `TensorFile`."""

    format: str
    specs: dict[str, TensorSpec]
    left_out: dict[str, str]
    scalars: dict[str, Scalar]
    read: Callable[[str], np.ndarray]


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
    """The tensors of a file by name.

    Attributes:
        path: of the file, or of the index of several.
        files: all of them.
        format: "safetensors", "npz", "torch" (torch.save) or "torchscript" (torch.jit.save).
        specs: shape and dtype by name, known without reading a tensor.
        left_out: dtype or kind by name of the tensors that cannot be had: quantised, sparse, of
            safetensors' dtypes that NumPy lacks (F8, F4), or several of one name.
        scalars: the plain values beside the tensors, such as `epoch` or safetensors' metadata.

    Asking for one raises `WeightError` if its bytes are damaged, KeyError if there is none of this
    name. Close the file, or use it in a `with`, when done.
    """

    def __init__(
        self,
        path: Path,
        contents: Contents,
        opened: contextlib.ExitStack,
        files: Sequence[Path] = (),
    ) -> None:
        self.path, self.files = path, files or [path]
        self.format, self.specs, self.left_out, self.scalars, self._read = contents
        self.names = self.specs
        self._opened, self._closed = opened, False

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
        raise WeightError(
            f"weights {str(path)!r} cannot be read: {str(error)[:300] or type(error).__name__}; "
            "the file is damaged or was cut short, so get it again"
        ) from error
