"""Writing PyTorch's files without PyTorch, byte for byte as torch.save and torch.jit.save do.

Any value can be saved: plain ones, containers, NumPy arrays (tensors, which share a storage if the
arrays share memory and keep their strides), and scripted modules.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

STORAGES = {
    "float16": "HalfStorage", "float32": "FloatStorage", "float64": "DoubleStorage",
    "bfloat16": "BFloat16Storage", "int8": "CharStorage", "int16": "ShortStorage",
    "int32": "IntStorage", "int64": "LongStorage", "uint8": "ByteStorage", "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage",
}  # fmt: skip


class Name:
    """A global that the pickle mentions, whether or not there is one."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, *_: Any) -> Any:
        raise AssertionError("stands for a function of PyTorch's")


class Module:
    """A scripted module: class name and attributes."""

    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        self.name, self.attributes = name, attributes


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]  # only this one can be extended so
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=2)
        self.storages: list[bytes] = []
        self._keys: dict[int, str] = {}
        self._names: dict[str, Name] = {}
        self._kept: list[Any] = []

    def known(self, module: str, name: str) -> Name:
        return self._names.setdefault(f"{module}.{name}", Name(module, name))

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if id(obj) in self.memo:
            super().save(obj, save_persistent_id)
        elif isinstance(obj, Name):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
            self.memoize(obj)
        elif isinstance(obj, Module):
            self.save(self.known("__torch__", obj.name))
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            self.memoize(obj)
            self.save(obj.attributes)
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return self.known("torch._utils", "_rebuild_tensor_v2"), self.place(obj)
        return NotImplemented

    def place(self, array: np.ndarray) -> tuple[Any, ...]:
        """Arguments that rebuild a tensor."""
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        if not root.flags.c_contiguous:
            root = array = np.ascontiguousarray(array)
        item = array.dtype.itemsize
        start = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
        strides = tuple(stride // item for stride in array.strides)
        storage = _Storage(root, array.dtype)
        self._kept.append(storage)
        return storage, start // item, array.shape, strides, False, collections.OrderedDict()

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, _Storage):
            return None
        key = self._keys.get(id(obj.root))
        if key is None:
            key = self._keys[id(obj.root)] = str(len(self.storages))
            self.storages.append(obj.root.tobytes())
        kind = self.known("torch", STORAGES[obj.dtype.name])
        return "storage", kind, key, "cpu", obj.root.nbytes // obj.dtype.itemsize


class _Storage:
    def __init__(self, root: np.ndarray, dtype: np.dtype[Any]) -> None:
        self.root, self.dtype = root, dtype


def pickled(value: Any) -> tuple[bytes, list[bytes]]:
    """The pickle of a value, and the storages that it refers to by their position."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.storages


def write_archive(path: Path, members: Mapping[str, bytes], compression: int = 0) -> None:
    """A ZIP archive with PyTorch's folder in it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"{path.stem}/{name}"), content, compression)


def torch_members(data: bytes, storages: list[bytes]) -> dict[str, bytes]:
    """What torch.save puts into its archive, in order."""
    return {
        "data.pkl": data,
        ".format_version": b"1",
        ".storage_alignment": b"64",
        "byteorder": b"little",
        **{f"data/{key}": content for key, content in enumerate(storages)},
        "version": b"3\n",
        ".data/serialization_id": b"0" * 40,
    }


def save_state_dict(path: Path, value: Any) -> None:
    """torch.save(value, path)."""
    write_archive(path, torch_members(*pickled(value)))


def save_torchscript(
    path: Path, tensors: Mapping[str, np.ndarray], attributes: Mapping[str, Any]
) -> None:
    """torch.jit.save of a model with tensors by dotted name and plain attributes of its own."""
    tree: dict[str, Any] = {"training": True, "_is_full_backward_hook": None}
    for name, tensor in tensors.items():
        *parents, leaf = name.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {"training": True, "_is_full_backward_hook": None})
        branch[leaf] = tensor
    root = _as_modules("CLIP", {**tree, **attributes})
    data, storages = pickled(root)
    members = torch_members(data, storages)
    code = {"code/__torch__.py": b"class CLIP(Module):\n", "constants.pkl": b"\x80\x02)."}
    write_archive(path, {**members, **code})


def _as_modules(name: str, branch: Mapping[str, Any]) -> Module:
    attributes = {
        key: _as_modules(f"{name}_{key}", value) if isinstance(value, dict) else value
        for key, value in branch.items()
    }
    return Module(name, attributes)
