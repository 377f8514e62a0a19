"""Weight files of every format: what is in them, read lazily, and clear words on what is not."""

from __future__ import annotations

import argparse
import enum
import errno
import functools
import io
import itertools
import os
import pickle
import tracemalloc
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tcl_jax.errors import RunError
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.readers import open_weights, write_safetensors
from tests.reference import read_state_dict
from tests.torch_files import (
    Call,
    Module,
    Parameter,
    pickled,
    save_state_dict,
    save_torchscript,
    torch_members,
    write_archive,
)

BF16 = ml_dtypes.bfloat16
DTYPES = (
    np.float16, np.float32, np.float64, BF16, np.int8, np.int16, np.int32, np.int64, np.uint8,
    np.bool_,
)  # fmt: skip


def tensors() -> dict[str, np.ndarray]:
    """One of each kind: dtypes, shapes of nothing and of one, strides, shared memory."""
    rng = np.random.default_rng(0)
    kinds = {np.dtype(d).name: (rng.integers(0, 2, (2, 3)) * 2 - 1).astype(d) for d in DTYPES}
    shared = rng.standard_normal(24).astype(np.float32)
    return {
        **kinds,
        "scalar": np.array(2.5, np.float16),
        "empty": np.zeros((0, 3), np.float32),
        "transposed": rng.standard_normal((3, 4)).astype(np.float32).T,
        "whole": shared,
        "part": shared[5:11],
        "stepped": shared.reshape(4, 6)[1:, ::2],
        "permuted": shared.reshape(2, 3, 4).transpose(2, 0, 1),
        "expanded": np.broadcast_to(np.float32(3), (4, 2)),
    }


def contiguous() -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(x).reshape(x.shape) for name, x in tensors().items()}


def same(actual: Any, expected: dict[str, np.ndarray]) -> None:
    assert list(actual) == list(expected) and len(actual) == len(expected)
    for name, tensor in expected.items():
        read = actual[name]
        assert read.dtype == tensor.dtype and read.flags.c_contiguous and read.flags.writeable
        np.testing.assert_array_equal(read, tensor, strict=True)


def write_npz(path: Path, save: Any = np.savez) -> dict[str, np.ndarray]:
    content = {k: v for k, v in contiguous().items() if v.dtype != BF16}
    save(path, **content)
    return content


@pytest.mark.parametrize(
    ("path", "wrap"),
    [
        ("", lambda t: OrderedDict(t)),
        (
            "state_dict.module.",
            lambda t: {"state_dict": {f"module.{name}": x for name, x in t.items()}, "epoch": 3},
        ),
        (
            "model.",
            lambda t: {
                "model": {k: Parameter(x) for k, x in t.items()},
                "optimizer": {"state": {0: {"step": 1.0}}, "param_groups": [{}]},
                "epoch": 3,
                "size": Call("torch", "Size", (1, 2)),
                "device": Call("torch", "device", "cuda", 0),
                "bytes": b"x",
            },
        ),
    ],
)
def test_names_are_paths_in_the_file(path: str, wrap: Any, tmp_path: Path) -> None:
    value = wrap(tensors())
    save_state_dict(tmp_path / "tcl.pth", value)
    with open_weights(tmp_path / "tcl.pth") as file:
        same(file, {path + name: x for name, x in tensors().items()})
        assert file.format == "torch" and file.path == tmp_path / "tcl.pth"
        assert file.scalars == ({"epoch": value["epoch"]} if "epoch" in value else {})
        for name, tensor in tensors().items():
            assert file.specs[path + name] == (tensor.shape, tensor.dtype)


def test_scripted_model(tmp_path: Path) -> None:
    expected = {f"visual.{name}": x for name, x in tensors().items()}
    expected |= {"visual.blocks.0.attn.weight": np.ones((2, 2), np.float16)}
    attributes = {"input_resolution": 64, "rate": 0.5, "name": "CLIP"}
    save_torchscript(tmp_path / "ViT-B-16.pt", expected, attributes)
    with open_weights(tmp_path / "ViT-B-16.pt") as file:
        same(file, expected)
        assert file.format == "torchscript"
        assert file.scalars == {"training": True, **attributes}


def test_lists_in_a_scripted_model_are_passed_over(tmp_path: Path) -> None:
    root = Module(
        "Net",
        {
            "weight": np.ones(2, np.float32),
            "sizes": Call("torch.jit._pickle", "build_intlist", [1, 2]),
            "more": Call("torch.jit._pickle", "build_tensorlist", [np.zeros(1, np.float32)]),
            "names": Call("torch.jit._pickle", "restore_type_tag", ["a"], "List[str]"),
            "inner": Module("Empty", {}),
        },
    )
    save_state_dict(tmp_path / "net.pt", root)
    same(read_state_dict(tmp_path / "net.pt"), {"weight": np.ones(2, np.float32)})


def test_safetensors(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", contiguous(), {"format": "pt"})
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    with open_weights(tmp_path / "a.bin") as file:
        assert file.format == "safetensors" and file.scalars == {"format": "pt"}
        same(file, {name: contiguous()[name] for name in file})
        assert set(file) == set(contiguous())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: Any, tmp_path: Path) -> None:
    expected = write_npz(tmp_path / "a.npz", save)
    with open_weights(tmp_path / "a.npz") as file:
        assert file.format == "npz" and file.scalars == {}
        same(file, expected)
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    save(tmp_path / "a.npz", big=array.astype(">f4"), columns=np.asfortranarray(array))
    same(read_state_dict(tmp_path / "a.npz"), {"big": array, "columns": array})


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    big = {f"t{i}": np.full((1 << 20,), i, np.float32) for i in range(8)}
    save_state_dict(tmp_path / "a.pth", big)
    save_torchscript(tmp_path / "a.pt", big, {})
    write_safetensors(tmp_path / "a.safetensors", big, {})
    np.savez(tmp_path / "a.npz", **big)
    for path in sorted(tmp_path.iterdir()):
        tracemalloc.start()
        with open_weights(path) as file:
            assert "t3" in file and file.specs["t3"].nbytes == 4 << 20 and len(list(file)) == 8
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
            tracemalloc.reset_peak()
            for name in file:
                file[name]
            assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()


def test_a_part_of_a_big_storage_is_read_alone(tmp_path: Path) -> None:
    shared = np.arange(4 << 20, dtype=np.float32)
    save_state_dict(tmp_path / "a.pth", {"all": shared, "few": shared[1000:1010]})
    tracemalloc.start()
    with open_weights(tmp_path / "a.pth") as file:
        for _ in range(2):
            np.testing.assert_array_equal(file["few"], shared[1000:1010])
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_names_and_closing(tmp_path: Path) -> None:
    save_state_dict(tmp_path / "a.pth", {"a": np.ones(3, np.float32)})
    file = open_weights(tmp_path / "a.pth")
    assert "b" not in file and 3 not in file
    with pytest.raises(KeyError, match="b"):
        file["b"]
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file["a"]


def test_a_compressed_pickle_is_read_but_not_compressed_tensors(tmp_path: Path) -> None:
    members = torch_members(*pickled({"a": np.zeros(0, np.float32)}))
    del members["data/0"]
    write_archive(tmp_path / "a.pth", members, zipfile.ZIP_DEFLATED)
    same(read_state_dict(tmp_path / "a.pth"), {"a": np.zeros(0, np.float32)})
    members = torch_members(*pickled({"a": np.zeros(9, np.float32)}))
    write_archive(tmp_path / "b.pth", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(WeightError, match="storage '0' is .*compressed"):
        open_weights(tmp_path / "b.pth")


def zip_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npz_of(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty and is none of safetensors"),
        (b"\x12\x34", "begins with .* none of safetensors, .npz and what torch.save writes"),
        (pickle.dumps({"model": 1}), "since PyTorch 1.6"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer, get the file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (zip_of(readme=b"x"), "none of safetensors"),
        (npz_of(a=np.array([{}])), r"array 'a' does not hold numbers.*\|O"),
        (npz_of(a=np.zeros(2, BF16)), "array 'a' does not hold numbers"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "clip.pt").write_bytes(content)
    with pytest.raises(WeightError, match=message) as caught:
        open_weights(tmp_path / "clip.pt")
    assert str(caught.value).startswith(f"weights {str(tmp_path / 'clip.pt')!r} cannot be read: ")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path, message in (
        ("none.pt", r"none.pt' do not exist; give the path of a .pt, .pth, .safetensors or .npz"),
        (".", "a folder or something else"),
        ("pipe", "a folder or something else"),
        ("file/clip.pt", "cannot be opened: .*correct the path"),
        ("a\0b", "cannot be opened"),
    ):
        with pytest.raises(WeightError, match=message):
            open_weights(tmp_path / path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"optimizer": {"lr": 1.0}, "epoch": 1}, "no tensors by name, but 'optimizer', 'epoch'"),
        (np.zeros(2), "no tensors by name"),
        ([1, 2], "no tensors by name, but a list"),
        ({"a\nb": np.zeros(2)}, "unprintable"),
        (
            {"a": Call("torch._utils", "_rebuild_qtensor", 1)},
            r"no tensors by name, but 'a'; .*not quantised.*torch.save\(model.state_dict\(\)",
        ),
    ],
)
def test_archives_without_a_plain_state_dict(value: Any, message: str, tmp_path: Path) -> None:
    save_state_dict(tmp_path / "a.pth", value)
    with pytest.raises(WeightError, match=message):
        open_weights(tmp_path / "a.pth")


class Settings(dict[str, Any]):
    """As yacs and mmcv have them: items, and attributes beside."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        self.frozen = True


class Colour(enum.Enum):
    RED = "red"


class Pair(NamedTuple):
    first: Any
    second: Any


def test_foreign_objects_are_passed_over(tmp_path: Path) -> None:
    state = tensors()
    one = argparse.Namespace(lr=0.1, output=PurePosixPath("runs"))
    one.itself, one.config = one, Settings(model=Settings(width=4))
    foreign = {
        "args": one,
        "numbers": [
            np.float32(3),
            np.dtype("f4"),
            2**200,
            1j,
            slice(1),
            ...,
            b"x",
            bytearray(b"y"),
        ],
        "default": defaultdict(list, {"a": [1], (1, 2): 3, None: 4}),
        "sets": [{1, Colour.RED}, frozenset({(1, 2)}), Counter("aab"), deque([1], 3), range(3)],
        "call": functools.partial(print, "x", sep=""),
        "harm": Call("os", "system", f"touch {tmp_path}/harm"),
        "unknown": Call("nowhere.at_all", "made", [1], {"a": Call("nowhere", "more")}),
        "size": Call("torch", "Size", (1, 2)),
    }
    save_state_dict(tmp_path / "a.pth", {**foreign, "net": state, "epoch": 3})
    with open_weights(tmp_path / "a.pth") as file:
        same(file, {f"net.{name}": tensor for name, tensor in state.items()})
        assert file.scalars == {"epoch": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_tensors_are_found_wherever_they_are(tmp_path: Path) -> None:
    a, b, c, d, e = (np.full(2, i, np.float32) for i in range(5))
    module = argparse.Namespace(
        training=True,
        _parameters=OrderedDict(weight=Parameter(b)),
        _buffers={"mean": c, "none": None},
        _modules={"0": argparse.Namespace(_parameters={"bias": d}, _modules={}, sizes=[e])},
    )
    average = argparse.Namespace(decay=0.9, shadow=Settings(weight=a))
    optimizer = {"state": {0: {"moment": a}}, "groups": [{"lr": 0.1}, {"x": e}]}
    value = {"ema": average, "net": module, "optimizer": optimizer, "pair": Pair(c, [d])}
    save_state_dict(tmp_path / "a.pth", value)
    expected = {"ema.shadow.weight": a, "net.weight": b, "net.mean": c, "net.0.bias": d}
    expected |= {"optimizer.state.0.moment": a, "optimizer.groups.1.x": e}
    same(read_state_dict(tmp_path / "a.pth"), expected | {"pair.0": c, "pair.1.0": d})


def test_tensors_of_unknown_kinds_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, sparse = np.ones(3, np.float32), Call("torch._utils", "_rebuild_sparse_tensor", "coo", ())
    value = {"a": a, "packed": Call("kernels.int4", "unpack", 4), "few": sparse}
    save_state_dict(tmp_path / "a.pth", value)
    same(read_state_dict(tmp_path / "a.pth"), {"a": a})
    assert "1 tensors of" in caplog.text and "'few' ('torch._utils._rebuild_sparse" in caplog.text


@pytest.mark.parametrize("names", [(1, "1"), ("a", "a.b")])
def test_of_different_tensors_of_one_name_none_is_given(names: Any, tmp_path: Path) -> None:
    a, b = np.ones(3, np.float32), np.zeros(3, np.float32)
    for other in (a, b):
        value = {names[0]: {"b": a} if names[1] == "a.b" else a, names[1]: other, "c": b}
        save_state_dict(tmp_path / "a.pth", value)
        with open_weights(tmp_path / "a.pth") as file:
            np.testing.assert_array_equal(file["c"], b)
            if other is a:
                np.testing.assert_array_equal(file[names[1]], a)
            else:
                with pytest.raises(WeightError, match=f"'{names[1]}' is one of several"):
                    file[names[1]]


def test_what_is_not_the_files_fault_is_not_blamed_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state_dict(tmp_path / "a.pth", {"a": np.ones(3, np.float32)})
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    for path, error in itertools.product(
        tmp_path.iterdir(), (OSError(errno.EIO, "Input/output error"), MemoryError())
    ):
        with open_weights(path) as file, monkeypatch.context() as patch:
            patch.setattr("zipfile.ZipExtFile.read", lambda *_, e=error: (_ for _ in ()).throw(e))
            with pytest.raises(RunError, match="output error|too little memory") as caught:
                file["a"]
        assert path.name in str(caught.value) and "damaged" not in str(caught.value)


def test_a_full_disk_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(RunError, match=r"out.safetensors' cannot be written: .*disk full"):
        write_safetensors(tmp_path / "out.safetensors", {"a": np.ones(1)}, {})


def test_other_byte_order_is_refused(tmp_path: Path) -> None:
    members = torch_members(*pickled(tensors()))
    write_archive(tmp_path / "a.pth", {**members, "byteorder": b"big"})
    with pytest.raises(WeightError, match="byte order b'big'; save it again"):
        open_weights(tmp_path / "a.pth")


def safetensors_of(dtype: str, data: bytes) -> bytes:
    header = f'{{"a":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,{len(data)}]}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + data


def test_unusual_dtypes_of_safetensors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").write_bytes(safetensors_of("F4", b"\0\0"))
    assert read_state_dict(tmp_path / "a") == {}
    assert "1 tensors of" in caplog.text and "'a' ('F4')" in caplog.text
    (tmp_path / "a").write_bytes(safetensors_of("BOOL", b"\x00\x01\x02\xff"))
    bytes_read = read_state_dict(tmp_path / "a")["a"].view(np.uint8)
    np.testing.assert_array_equal(bytes_read, [0, 1, 1, 1])


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    array = np.arange(1000, dtype=np.float32)
    save_state_dict(tmp_path / "a.pth", {"a": array, "b": array.copy()})
    np.savez(tmp_path / "a.npz", a=array, b=array)
    np.savez_compressed(tmp_path / "c.npz", a=array, b=array)
    for path in sorted(tmp_path.iterdir()):
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 16
        path.write_bytes(content)
        with open_weights(path) as file:
            with pytest.raises(WeightError, match=rf"{path.name}' cannot be read: .* damaged"):
                file["a"]
            np.testing.assert_array_equal(file["b"], array)
