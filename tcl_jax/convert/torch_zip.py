"""PyTorch's files without PyTorch: state dicts of `torch.save` and models of `torch.jit.save`.

Both are ZIP archives since PyTorch 1.6: NAME/data.pkl is a pickle in which tensors refer to
storages by key, and NAME/data/KEY holds a storage's bytes. Format: torch/serialization.py,
torch/_utils.py and torch/csrc/jit/serialization/pickler.cpp of PyTorch 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from tcl_jax.convert.archives import Archive
from tcl_jax.convert.mapping import WeightError
from tcl_jax.convert.pickles import MAX_BYTES, Global, Record, as_key, read_pickle
from tcl_jax.convert.tensor_file import (
    MAX_NAME,
    Contents,
    Scalar,
    TensorSpec,
    as_array,
    as_shape,
)

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Entries under which training code puts the state dict, beside optimizer and epoch."""

MAX_WRAPPERS = 8
MAX_DEPTH = 64
MAX_RECORDS = 100_000

_DTYPES = {
    "float16": np.float16, "float32": np.float32, "float64": np.float64,
    "bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2, "complex64": np.complex64, "complex128": np.complex128,
    "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64,
    "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
    "bool": np.bool_,
}  # fmt: skip
DTYPES = {f"torch.{name}": np.dtype(kind) for name, kind in _DTYPES.items()}
STORAGES = {
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
    "torch.storage.UntypedStorage": np.dtype(np.uint8),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """Bytes in the archive: `count` elements of `dtype`."""

    key: str
    dtype: np.dtype[Any]
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: bytes `start` to `stop` of a storage, elements `strides` bytes apart."""

    key: str
    spec: TensorSpec
    start: int
    stop: int
    strides: tuple[int, ...]


def read_torch(archive: Archive, pickle_name: str) -> Contents:
    """Contents of an archive of PyTorch's; tensors are read when asked for.

    Args:
        archive: the archive.
        pickle_name: the member NAME/data.pkl.

    Raises:
        WeightError: if there is no state dict in it, or it holds what weights do not need.
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
    root = _read_data(archive, pickle_name)
    if isinstance(root, Record):
        tensors, scalars = dict(_of_module(root)), _plain(root.state)
    else:
        tensors, scalars = _of_state_dict(root)
    for tensor in tensors.values():
        member = archive.members.get(f"{folder}data/{tensor.key}")
        if tensor.start < tensor.stop and (member is None or member.size < tensor.stop):
            raise ValueError(f"the bytes of storage {tensor.key[:80]!r} are missing")
        if member is not None and member.deflated:
            raise WeightError(
                "its tensors are compressed, as PyTorch never does; unpack it and pack it again "
                "without compression (zip -0), or save it again with PyTorch"
            )

    def read(name: str) -> np.ndarray:
        tensor = tensors[name]
        if tensor.start == tensor.stop:
            return np.empty(*tensor.spec)
        data = archive.read(f"{folder}data/{tensor.key}", tensor.start, tensor.stop)
        return as_array(data, tensor.spec.dtype, tensor.spec.shape, tensor.strides)

    specs = {name: tensor.spec for name, tensor in tensors.items()}
    return Contents("torchscript" if isinstance(root, Record) else "torch", specs, scalars, read)


def _read_data(archive: Archive, pickle_name: str) -> Any:
    if archive.members[pickle_name].size > MAX_BYTES:
        raise ValueError(f"{pickle_name[:80]!r} is bigger than {MAX_BYTES:,} bytes")
    return read_pickle(
        archive.read(pickle_name).tobytes(),
        functions=_FUNCTIONS,
        names={*STORAGES, *DTYPES},
        record_prefix="__torch__.",
        persistent=_storage,
    )


def _of_state_dict(root: Any) -> tuple[dict[str, StoredTensor], dict[str, Scalar]]:
    """Tensors of the state dict in `root`, wherever training code put it; plain values beside."""
    scalars = _plain(root)
    for _ in range(MAX_WRAPPERS):
        inner = None
        if isinstance(root, dict):
            wrapped = (root.get(name) for name in WRAPPERS)
            inner = next((x for x in wrapped if isinstance(x, dict) and x), None)
        if inner is None:
            break
        root = inner
        scalars |= _plain(root)
    entries = root if isinstance(root, dict) else {}
    found = {k: v for k, v in entries.items() if isinstance(v, StoredTensor)}
    if not found:
        names = ", ".join(repr(k)[:40] for k in list(entries)[:8] if isinstance(k, str))
        raise WeightError(
            f"it holds no state dict, but {names or f'a {type(root).__name__}'}; save the tensors "
            'alone with PyTorch: torch.save(model.state_dict(), "weights.pt")'
        )
    if not all(isinstance(name, str) for name in found):
        raise ValueError("its tensors are not all named by text")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found, scalars


def _of_module(root: Record) -> Iterator[tuple[str, StoredTensor]]:
    """Parameters and buffers of a scripted module and those in it, by dotted name."""
    stack: list[tuple[str, Record, int]] = [("", root, 0)]
    count = 0
    while stack:
        prefix, module, depth = stack.pop()
        count += 1
        if count > MAX_RECORDS or depth > MAX_DEPTH:
            raise ValueError("its modules are nested too deeply")
        if not isinstance(module.state, dict | None):
            raise WeightError(
                f"its module {prefix or module.name!r:.100} packs its weights in a way of its own; "
                "save the state dict of the model before it was scripted or quantized"
            )
        inner = []
        for name, value in (module.state or {}).items():
            if not isinstance(name, str) or len(prefix) + len(name) > MAX_NAME:
                raise ValueError("its modules' names are too long")
            if isinstance(value, StoredTensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, Record):
                inner.append((f"{prefix}{name}.", value, depth + 1))
        stack.extend(reversed(inner))


def _plain(container: Any) -> dict[str, Scalar]:
    if not isinstance(container, dict):
        return {}
    kinds = (bool, int, float, str)
    return {k: v for k, v in container.items() if isinstance(k, str) and type(v) in kinds}


def _storage(persistent_id: Any) -> Storage:
    """What ('storage', type, key, location, count) stands for."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) != 5:
        raise ValueError("its pickle refers to a storage in a way that is not known here")
    tag, kind, key, _, count = persistent_id
    if (
        tag != "storage"
        or not isinstance(kind, Global)
        or kind.name not in STORAGES
        or not isinstance(key, str)
        or type(count) is not int
    ):
        raise ValueError("its pickle refers to a storage in a way that is not known here")
    return Storage(key, STORAGES[kind.name], count)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor:
    """`torch._utils._rebuild_tensor_v2`."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor has no storage")
    return _view(storage, storage.dtype, offset, shape, strides, rest[2:])


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any,
    *rest: Any,
) -> StoredTensor:  # fmt: skip
    """`torch._utils._rebuild_tensor_v3`, for dtypes that have no storage type."""
    if not isinstance(storage, Storage) or not isinstance(dtype, Global):
        raise ValueError("a tensor has no storage or no dtype")
    if dtype.name not in DTYPES:
        raise ValueError("a tensor's dtype is none")
    return _view(storage, DTYPES[dtype.name], offset, shape, strides, rest)


def _view(
    storage: Storage, dtype: np.dtype[Any], offset: Any, shape: Any, strides: Any, metadata: Any
) -> StoredTensor:
    if any(isinstance(x, dict) and x for x in metadata):  # conjugated or negated when read
        raise WeightError(
            "it has a tensor that stands for the conjugate or the negative of another; save it "
            "again after tensor.resolve_conj().resolve_neg()"
        )
    shape = as_shape(shape, dtype)
    if not isinstance(strides, tuple | list) or len(strides) != len(shape):
        raise ValueError("a tensor's strides do not fit its shape")
    if not all(type(x) is int and 0 <= x < 1 << 62 for x in (offset, *strides)):
        raise ValueError("a tensor lies at an impossible place")
    spec, item = TensorSpec(shape, dtype), dtype.itemsize
    if not spec.nbytes:
        return StoredTensor(storage.key, spec, 0, 0, (0,) * len(shape))
    # Along an axis of one element the stride does not matter and may be anything.
    used = [step if size > 1 else 0 for step, size in zip(strides, shape, strict=True)]
    last = offset + sum(step * (size - 1) for step, size in zip(used, shape, strict=True))
    if (last + 1) * item > storage.count * storage.dtype.itemsize:
        raise ValueError("a tensor reaches beyond its storage")
    step_bytes = tuple(step * item for step in used)
    return StoredTensor(storage.key, spec, offset * item, (last + 1) * item, step_bytes)


def _parameter(tensor: Any, *_: Any) -> Any:
    """`torch._utils._rebuild_parameter`: a parameter is its tensor here."""
    return tensor


def _restore_type(value: Any, _: Any) -> Any:
    """`torch.jit._pickle.restore_type_tag`: types of elements do not matter here."""
    return value


def _nothing(*_: Any) -> None:
    """What stands for a device, on which nothing here depends."""


def _encoded(*arguments: Any) -> bytes:
    """`_codecs.encode`, which is how bytes are written in protocol 2."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        raise ValueError("its pickle encodes text in a way that is not known here")
    return arguments[0].encode("latin1")


def _dict(*arguments: Any) -> dict[Any, Any]:
    """An empty dict, or a copy of one."""
    if not arguments:
        return {}
    if len(arguments) != 1 or type(arguments[0]) is not dict:
        raise ValueError("its pickle makes a dict of something else")
    return dict(arguments[0])


def _tuple(*arguments: Any) -> tuple[Any, ...]:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple | list):
        raise ValueError("its pickle makes a shape of something else")
    return tuple(arguments[0])


def _set(*arguments: Any) -> set[Any]:
    return set(map(as_key, _tuple(*arguments)))


def _list(*arguments: Any) -> list[Any]:
    return list(_tuple(*arguments))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _tuple,
    "torch.device": _nothing,
    "torch.jit._pickle.build_intlist": _list,
    "torch.jit._pickle.build_doublelist": _list,
    "torch.jit._pickle.build_boollist": _list,
    "torch.jit._pickle.build_tensorlist": _list,
    "torch.jit._pickle.restore_type_tag": _restore_type,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "_codecs.encode": _encoded,
    "__builtin__.set": _set,
    "builtins.set": _set,
}
