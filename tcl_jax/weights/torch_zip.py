"""PyTorch's files without PyTorch: what `torch.save` and `torch.jit.save` write.

Both are ZIP archives since PyTorch 1.6: NAME/data.pkl is a pickle in which tensors refer to
storages by key, and NAME/data/KEY holds a storage's bytes. A pickle may name any function to be
called; here every name but those of tensors stands for an inert placeholder, so that nothing is
imported or run. Format: torch/serialization.py, torch/_utils.py and
torch/csrc/jit/serialization/pickler.cpp of PyTorch 2.
"""

from __future__ import annotations

import collections
import functools
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.tensor_file import Contents, Scalar, TensorSpec

MAX_PICKLE = 64 << 20  # bytes
MAX_DEPTH = 100

_NAMES = (
    "float16 float32 float64 bfloat16 float8_e4m3fn float8_e5m2 complex64 complex128 int8 int16 "
    "int32 int64 uint8 uint16 uint32 uint64 bool"
)
_STORAGES = {
    "Half": "float16", "Float": "float32", "Double": "float64", "BFloat16": "bfloat16",
    "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64", "Byte": "uint8",
    "Bool": "bool", "ComplexFloat": "complex64", "ComplexDouble": "complex128",
}  # fmt: skip
DTYPES = {f"torch.{name}": np.dtype(getattr(ml_dtypes, name, name)) for name in _NAMES.split()}
DTYPES |= {f"torch.{name}Storage": DTYPES[f"torch.{kind}"] for name, kind in _STORAGES.items()}
"""Of elements, by PyTorch's names of dtypes and of storages."""

_MODULE_PARTS = ("_parameters", "_buffers", "_modules")


class Foreign:
    """An inert placeholder for an object of any class, or for what any function would give.

    Attributes:
        name: "module.name" of the class or function.
        arguments: with which it was made, and what was appended or added to it.
        items: what was set in it by key.
        state: its attributes, as a dict, or another state of its own; None if it has none.
    """

    name: ClassVar[str]
    arguments: list[Any]
    items: dict[Any, Any]
    state: Any

    def __new__(cls, /, *arguments: Any, **named: Any) -> Foreign:
        """One with these arguments."""
        made = super().__new__(cls)
        made.arguments, made.items, made.state = [*arguments, *named.values()], {}, None
        return made

    def __call__(self, *arguments: Any) -> Foreign:
        """Another one, which stands for what a call would give."""
        return type(self)(self, *arguments)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """What the pickle appends, as to a list, or adds, as to a set."""
        self.arguments.append(item)

    add = append


class StoredTensor(NamedTuple):
    """A tensor as the pickle describes it; offset and strides count elements of the storage."""

    kind: str
    key: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_Storage = tuple[str, str]  # name of its class, and key


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...],
    _requires_grad: Any = None, _hooks: Any = None, views: Any = None,
) -> StoredTensor:  # fmt: skip
    """`torch._utils._rebuild_tensor_v2`; `views` says that it is a conjugate or negative view."""
    kind, key = storage
    kind = f"conjugate or negative of {kind}" if views else kind
    return StoredTensor(kind, key, offset, tuple(shape), tuple(strides))


def _tensor_of_dtype(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...],
    _requires_grad: Any, _hooks: Any, dtype: type[Foreign], views: Any = None,
) -> StoredTensor:  # fmt: skip
    """`torch._utils._rebuild_tensor_v3`."""
    return _tensor((dtype.name, storage[1]), offset, shape, strides, views=views)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _subclass(function: Any, _kind: Any, arguments: Any, *_: Any) -> Any:
    return function(*arguments)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch._tensor._rebuild_from_type_v2": _subclass,
}
"""What is called as the pickle says, besides OrderedDict; anything else is a placeholder."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self._classes: dict[str, type[Foreign]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return collections.OrderedDict
        if full in _FUNCTIONS:
            return functools.partial(_FUNCTIONS[full])  # of which the pickle may set attributes
        return self._classes.setdefault(full, type("Foreign", (Foreign,), {"name": full}))

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return kind.name, str(key)


def read_torch(archive: zipfile.ZipFile, pickle_name: str) -> Contents:
    """Contents of an archive of PyTorch's; tensors are read when asked for.

    A tensor's name is the path to it: keys of dicts, positions in lists and names of attributes,
    joined by dots. Modules that were saved whole are read as their state dict.

    Args:
        pickle_name: the member NAME/data.pkl.

    Raises:
        WeightError: if there is no tensor in it that can be read.
        ValueError: if it is damaged.
    """
    folder = pickle_name.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") == b"big":
        raise WeightError("it was written in big-endian byte order; save it as .safetensors")
    if archive.getinfo(pickle_name).file_size > MAX_PICKLE:
        raise ValueError(f"{pickle_name[:80]!r} is bigger than {MAX_PICKLE:,} bytes")
    data = archive.read(pickle_name)
    try:
        root = _Unpickler(data).load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"its pickle is wrong: {error}") from error
    tensors: dict[str, StoredTensor] = {}
    left_out: dict[str, str] = {}
    for name, tensor in _tensors("", root, frozenset(), set()):
        if isinstance(tensor, str):
            left_out[name] = tensor
        elif tensor.kind not in DTYPES:
            left_out[name] = tensor.kind
        elif tensors.setdefault(name, tensor) != tensor:  # such as of the keys 1 and "1"
            left_out[name] = "several of one name"
    if not tensors:
        keys = [repr(key)[:40] for key in [*root][:8]] if isinstance(root, dict) else []
        raise WeightError(
            f"it holds no tensors by name, but {', '.join(keys) or type(root).__name__}; nothing "
            "that a file asks for is run, because that could be anything. If you trust it, save "
            "only plain tensors again with PyTorch (dense, not quantised): "
            'torch.save(model.state_dict(), "weights.pt")'
        )

    @functools.lru_cache(maxsize=1)  # tensors that share a storage usually follow each other
    def storage(key: str) -> bytes:
        try:
            return archive.read(f"{folder}data/{key}")
        except KeyError as error:
            raise ValueError(f"its storage {key[:80]!r} is missing") from error

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        dtype = DTYPES[tensor.kind]
        strides = tuple(step * dtype.itemsize for step in tensor.strides)
        content, start = storage(tensor.key), tensor.offset * dtype.itemsize
        try:
            return np.ndarray(tensor.shape, dtype, content, start, strides)
        except (TypeError, ValueError) as error:
            raise ValueError(f"tensor {name[:80]!r} is not within its storage: {error}") from error

    specs = {
        name: TensorSpec(tensor.shape, DTYPES[tensor.kind])
        for name, tensor in tensors.items()
        if name not in left_out
    }
    scalars = {str(key): value for key, value in _entries(root) if isinstance(value, Scalar)}
    kind = "torchscript" if _is_scripted(root) else "torch"
    return Contents(kind, specs, left_out, scalars, read)


def _tensors(
    path: str, value: Any, inside: frozenset[int], seen: set[int]
) -> Iterator[tuple[str, StoredTensor | str]]:
    """The tensors that a value leads to, by path; of those of kinds not known here, the kind."""
    if id(value) in inside or id(value) in seen or len(inside) > MAX_DEPTH:
        return
    if isinstance(value, Foreign) and not _is_module(value):
        # Objects may refer to each other in a great many ways; once is enough of each.
        seen.add(id(value))
    inside |= {id(value)}
    for key, inner in _entries(value):
        name = f"{path}.{key}" if path else str(key)
        if isinstance(inner, StoredTensor):
            yield name, inner
        elif _is_unknown_tensor(inner):
            yield name, inner.name
        elif isinstance(inner, dict | list | tuple | Foreign):
            yield from _tensors(name, inner, inside, seen)


def _entries(value: Any) -> Iterator[tuple[str | int, Any]]:
    """What a container or an object holds, by key, position or attribute."""
    match value:
        case dict():
            yield from ((key, inner) for key, inner in value.items() if isinstance(key, str | int))
        case list() | tuple():
            yield from enumerate(value)
        case Foreign() if _is_scripted(value):
            # Attributes that are lists or dicts are no part of a scripted module's state dict, and
            # the state of one that packs its weights, as quantised ones do, is a tuple.
            for key, inner in value.state.items() if isinstance(value.state, dict) else ():
                if isinstance(inner, Scalar | StoredTensor) or _is_scripted(inner):
                    yield key, inner
        case Foreign() if _is_module(value):
            for part in _MODULE_PARTS:
                yield from _entries(value.state.get(part))
        case Foreign():
            yield from _entries(value.items)
            yield from enumerate(value.arguments)
            for state in value.state if isinstance(value.state, tuple) else (value.state,):
                yield from _entries(state.items if isinstance(state, Foreign) else state)


def _is_scripted(value: Any) -> bool:
    return isinstance(value, Foreign) and value.name.startswith("__torch__.")


def _is_module(value: Foreign) -> bool:
    return _is_scripted(value) or (isinstance(value.state, dict) and "_modules" in value.state)


def _is_unknown_tensor(value: Any) -> bool:
    """Whether it is a tensor of a kind that is not known here, such as a sparse one."""
    return (
        isinstance(value, Foreign)
        and value.name.startswith("torch.")
        and "._rebuild_" in value.name
    )
