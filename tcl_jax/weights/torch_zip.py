"""PyTorch's files without PyTorch: what `torch.save` and `torch.jit.save` write.

Both are ZIP archives since PyTorch 1.6: NAME/data.pkl is a pickle in which tensors refer to
storages by key, and NAME/data/KEY holds a storage's bytes. Format: torch/serialization.py,
torch/_utils.py and torch/csrc/jit/serialization/pickler.cpp of PyTorch 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from tcl_jax.weights.archives import Archive, is_stored
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.pickles import Foreign, read_pickle
from tcl_jax.weights.tensor_file import (
    MAX_NAME,
    Contents,
    Scalar,
    TensorSpec,
)

MAX_BYTES = 64 << 20
MAX_DEPTH = 100
MAX_DIMENSIONS = 32
MAX_ROOM = 1 << 24

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
DTYPES |= {"torch.storage.UntypedStorage": DTYPES["torch.uint8"]}
"""Of elements, by PyTorch's names of dtypes and of storages."""

_SCRIPTED = "__torch__."
_DICTS = ("builtins.dict", "collections.OrderedDict")
_MODULE_PARTS = ("_parameters", "_buffers", "_modules")
_TENSORS = tuple(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_SUBCLASSES = ("torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2")
_ADVICE = (
    "nothing that a file asks for is looked up or run, because that could be anything. If you "
    "trust it, save only plain tensors again with PyTorch (dense, not quantised, each under a name "
    'of its own): torch.save(model.state_dict(), "weights.pt")'
)


class StoredTensor(NamedTuple):
    """Where a tensor lies: bytes `start` to `stop` of a storage, elements `strides` bytes apart."""

    spec: TensorSpec
    key: str = ""
    start: int = 0
    stop: int = 0
    strides: tuple[int, ...] = ()


def read_torch(archive: Archive, pickle_name: str) -> Contents:
    """Contents of an archive of PyTorch's; tensors are read when asked for.

    A tensor's name is the path to it: keys of dicts, positions in lists and names of attributes,
    joined by dots. Modules that were saved whole are read as their state dict.

    Args:
        archive: the archive.
        pickle_name: the member NAME/data.pkl.

    Raises:
        WeightError: if there is no tensor in it that can be read.
        ValueError: if it is damaged.
    """
    folder = pickle_name.removesuffix("data.pkl")
    if f"{folder}byteorder" in archive.members:
        order = archive.read(f"{folder}byteorder").tobytes()[:16]
        if order != b"little":
            raise WeightError(
                f"it was written in the byte order {order!r}; save it again on a machine with a "
                "little-endian processor, or as .safetensors"
            )
    if archive.members[pickle_name].file_size > MAX_BYTES:
        raise ValueError(f"{pickle_name[:80]!r} is bigger than {MAX_BYTES:,} bytes")
    data = archive.read(pickle_name).tobytes()
    root = read_pickle(data)
    listing = _Listing()
    listing.add("", root)
    tensors = listing.tensors
    if not tensors:
        keys = list(root)[:8] if isinstance(root, Foreign) else ()
        kind = f"a {getattr(root, 'name', type(root).__name__):.80}"
        held = ", ".join(repr(key)[:40] for key in keys) or kind
        raise WeightError(f"it holds no tensors by name, but {held}; {_ADVICE}")
    scalars = {str(key): value for key, value in _entries(root) if isinstance(value, Scalar)}
    for tensor in tensors.values():
        member = archive.members.get(f"{folder}data/{tensor.key}")
        whole = member is not None and is_stored(member) and member.file_size >= tensor.stop
        if tensor.start < tensor.stop and not whole:
            raise ValueError(f"storage {tensor.key[:80]!r} is missing, cut short or compressed")

    def read(name: str) -> np.ndarray:
        if name in listing.several:
            raise WeightError(
                f"tensor {name[:80]!r} is one of several of this name; give them names of their own"
            )
        tensor = tensors[name]
        if tensor.start == tensor.stop:
            return np.empty(*tensor.spec)
        content = archive.read(f"{folder}data/{tensor.key}", tensor.start, tensor.stop)
        return np.ndarray(*tensor.spec, content.data, strides=tensor.strides)

    specs = {name: tensor.spec for name, tensor in tensors.items()}
    kind = "torchscript" if _is_scripted(root) else "torch"
    return kind, specs, listing.left_out, scalars, read


class _Listing:
    """The tensors that a value leads to, by path; those of kinds not known here are left out."""

    def __init__(self) -> None:
        self.tensors: dict[str, StoredTensor] = {}
        self.several: set[str] = set()  # paths of different tensors, such as of keys 1 and "1"
        self.left_out: dict[str, str] = {}
        self._room = MAX_ROOM
        self._inside: set[int] = set()
        self._seen: set[int] = set()

    def add(self, path: str, value: Any) -> None:
        """Adds all tensors that the value at a path leads to.

        Raises:
            ValueError: if it leads to too much.
        """
        if id(value) in self._inside or id(value) in self._seen or len(self._inside) > MAX_DEPTH:
            return
        self._inside.add(id(value))
        if isinstance(value, Foreign) and not (value.name in _DICTS or _is_module(value)):
            # Objects may refer to each other in a great many ways; once is enough of each.
            self._seen.add(id(value))
        for key, inner in _entries(value):
            tensor = _as_tensor(inner)
            size = len(path) + len(str(key))
            within = isinstance(inner, list | tuple | Foreign) and size < MAX_NAME
            self._room -= 8 + (size if within or tensor is not None else 0)
            if self._room < 0:
                raise ValueError("its values are too many, or their names too long")
            if tensor is None and not within:
                continue
            name = f"{path}.{key}" if path else str(key)
            if tensor is None:
                self.add(name, inner)
            elif isinstance(tensor, str):
                self.left_out[name] = tensor
            elif self.tensors.setdefault(name, tensor) != tensor:
                self.several.add(name)
        self._inside.remove(id(value))


def _entries(value: Any) -> Iterator[tuple[str | int, Any]]:
    """What a container or an object holds, by key, position or attribute."""
    if not isinstance(value, Foreign):
        if isinstance(value, list | tuple):
            yield from enumerate(value)
    elif _is_scripted(value):
        # Attributes that are lists or dicts are no part of a scripted module's state dict, and the
        # state of one that packs its weights, as quantised ones do, is a tuple.
        state = value.state if isinstance(value.state, Foreign) else {}
        for key, inner in state.items():
            if isinstance(inner, Scalar) or _is_scripted(inner) or _as_tensor(inner):
                yield key, inner
    elif _is_module(value):
        parts = (value.state.get(part) for part in _MODULE_PARTS)
        yield from (item for part in parts if isinstance(part, Foreign) for item in part.items())
    else:
        yield from value.items()
        if value.name not in _DICTS:  # whose attributes, such as _metadata, are about the items
            yield from enumerate(value.arguments)
            states = value.state if isinstance(value.state, tuple) else (value.state,)
            yield from (item for x in states if isinstance(x, Foreign) for item in x.items())


def _is_scripted(value: Any) -> bool:
    return isinstance(value, Foreign) and value.name.startswith(_SCRIPTED)


def _is_module(value: Foreign) -> bool:
    return _is_scripted(value) or (isinstance(value.state, Foreign) and "_modules" in value.state)


def _as_tensor(value: Any) -> StoredTensor | str | None:
    """The tensor that an object stands for, or its kind if not known here; None for others."""
    if not isinstance(value, Foreign) or _is_module(value):
        return None
    name, given = value.name, value.arguments
    for _ in range(4):  # a parameter, or a tensor with attributes, is its tensor here
        if name in _PARAMETERS and given and isinstance(given[0], Foreign):
            name, given = given[0].name, given[0].arguments
        elif name in _SUBCLASSES and len(given) > 2 and isinstance(given[2], tuple):
            name, given = _named(given[0]) or _named(given[1]) or name, given[2]
    if name in _TENSORS:
        return _view(name.endswith("3"), *given[:8])
    return name if name.startswith("torch.") and "._rebuild_" in name else None


def _named(kind: Any) -> str:
    """The name of a class that is a placeholder; "" for anything else."""
    return kind.name if isinstance(kind, type) and issubclass(kind, Foreign) else ""


def _view(
    third: bool,
    storage: Any = None,
    offset: Any = None,
    shape: Any = None,
    strides: Any = None,
    *rest: Any,
) -> StoredTensor | str:
    """What `torch._utils._rebuild_tensor_v2` gives, or the third, which is told the dtype.

    Of a dtype that NumPy lacks its name; also of a view that stands for conjugates or negatives.
    """
    match storage.arguments if isinstance(storage, Foreign) else None:
        case [("storage", stored, str(key), *_)] if _named(stored).endswith("Storage"):
            kind = _named(stored)
        case _:
            raise ValueError("a tensor refers to a storage in a way that is not known here")
    if third:
        kind, rest = _named(rest[2] if rest[2:] else None), rest[1:]
    if not (
        isinstance(shape, tuple | list)
        and isinstance(strides, tuple | list)
        and len(shape) == len(strides) <= MAX_DIMENSIONS
        and all(type(x) is int and 0 <= x < 1 << 62 for x in (offset, *shape, *strides))
    ):
        raise ValueError("a tensor has an impossible place, shape or strides")
    if kind not in DTYPES:
        return kind or "a dtype without a name"
    if any(isinstance(x, Foreign) and x for x in rest[2:]):
        return f"conjugate or negative of {kind}"
    spec = TensorSpec(tuple(shape), DTYPES[kind])
    item = spec.dtype.itemsize
    if not spec.nbytes:
        return StoredTensor(spec)
    # Along an axis of one element the stride does not matter and may be anything.
    used = [step if size > 1 else 0 for step, size in zip(strides, shape, strict=True)]
    last = offset + sum(step * (size - 1) for step, size in zip(used, shape, strict=True))
    step_bytes = tuple(step * item for step in used)
    return StoredTensor(spec, key, offset * item, (last + 1) * item, step_bytes)
