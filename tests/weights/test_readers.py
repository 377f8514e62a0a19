"""Weight files of every format: what is in them, read lazily, and what is told of others."""

from __future__ import annotations

import errno
import io
import itertools
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tcl_jax.errors import RunError
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.readers import open_weights, write_safetensors
from tests.reference import read_state_dict
from tests.torch_files import (
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
        assert actual[name].dtype == tensor.dtype and actual[name].flags.c_contiguous
        np.testing.assert_array_equal(actual[name], tensor, strict=True)


@pytest.mark.parametrize(
    ("path", "wrap"),
    [
        ("", lambda t: OrderedDict(t)),
        ("state_dict.module.", lambda t: {"state_dict": {"module": t}, "epoch": 3}),
        ("model.1.", lambda t: {"model": ["text", t, {3}, None], "epoch": 3}),
    ],
)
def test_names_are_paths_in_the_file(path: str, wrap: Any, tmp_path: Path) -> None:
    save_state_dict(tmp_path / "tcl.pth", wrap(tensors()))
    with open_weights(tmp_path / "tcl.pth") as file:
        same(file, {path + name: x for name, x in tensors().items()})
        assert file.format == "torch" and file.path == tmp_path / "tcl.pth"
        assert file.scalars == ({"epoch": 3} if path else {})
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


def test_safetensors(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", contiguous(), {"format": "pt"})
    (tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    with open_weights(tmp_path / "a.bin") as file:
        assert file.format == "safetensors" and file.scalars == {"format": "pt"}
        same(file, {name: contiguous()[name] for name in file})
        assert set(file) == set(contiguous())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save: Any, tmp_path: Path) -> None:
    expected = {k: v for k, v in contiguous().items() if v.dtype != BF16}
    save(tmp_path / "a.npz", **expected)
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
            for name in file:
                file[name]
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
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


def safetensors_of(dtype: str, data: bytes) -> bytes:
    header = f'{{"a":{{"dtype":"{dtype}","shape":[4],"data_offsets":[0,{len(data)}]}}}}'.encode()
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (pickle.dumps({"model": 1}), "since PyTorch 1.6"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (zip_of(readme=b"x"), "none of safetensors"),
        (npz_of(a=np.array([{}])), r"array 'a.npy' .*\|O"),
        (npz_of(a=np.zeros(2, BF16)), "array 'a.npy' does not hold numbers"),
        (npz_of(a=np.zeros(2))[:-30], "damaged"),
        (safetensors_of("F32", bytes(8)), "damaged"),
        (safetensors_of("F32", bytes(16))[:-1], "damaged"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "clip.pt").write_bytes(content)
    with pytest.raises(WeightError, match=message) as caught:
        open_weights(tmp_path / "clip.pt")
    assert str(caught.value).startswith(f"weights {str(tmp_path / 'clip.pt')!r} cannot be read: ")


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("none.pt", ".", "pipe", "a\0b"):
        with pytest.raises(WeightError, match="do not exist or are no file"):
            open_weights(tmp_path / path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"optimizer": {"lr": 1.0}, "epoch": 1}, "no tensors by name, but 'optimizer', 'epoch'"),
        (np.zeros(2), "no tensors by name"),
        ([1, 2], "no tensors by name, but list"),
    ],
)
def test_archives_without_a_state_dict(value: Any, message: str, tmp_path: Path) -> None:
    save_state_dict(tmp_path / "a.pth", value)
    with pytest.raises(WeightError, match=message):
        open_weights(tmp_path / "a.pth")


TOUCH = b"X\x17\0\0\0touch touched-by-a-file"
CODE = {
    "a function": b"cposix\nsystem\n" + TOUCH + b"\x85R",
    "a class that is made": b"(cposix\nsystem\n" + TOUCH + b"o",
    "protocol 0": b"(S'touch touched-by-a-file'\niposix\nsystem\n",
    "a dotted name": b"\x8c\x07os.path\x8c\x09os.system\x93" + TOUCH + b"\x85R",
    "what a call gives, called": (
        b"cbuiltins\ngetattr\ncposix\nsystem\nX\x08\0\0\0__call__\x86R" + TOUCH + b"\x85R"
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_nothing_in_a_pickle_is_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x04" + CODE[name] + b".")
    Path("touched-by-a-file").unlink()  # Python's own reader runs it
    state, storages = pickled({"weight": np.ones(2, np.float32)})
    data = b"\x80\x04](" + CODE[name] + state[2:-1] + b"e."  # a list of both
    write_archive(tmp_path / "a.pt", torch_members(data, storages))
    same(read_state_dict(tmp_path / "a.pt"), {"1.weight": np.ones(2, np.float32)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_file_does_not_change_how_the_next_is_read(tmp_path: Path) -> None:
    state, storages = pickled({"weight": np.ones(2, np.float32)})
    defaults = b"N}X\x0c\0\0\0__defaults__NN\x88\x87s\x86b"  # set as attributes of a function
    changed = b"\x80\x02](ctorch._utils\n_rebuild_tensor\n" + defaults + state[2:-1] + b"e."
    write_archive(tmp_path / "a.pt", torch_members(changed, storages))
    with pytest.raises(WeightError, match="pickle is wrong"):
        read_state_dict(tmp_path / "a.pt")
    write_archive(tmp_path / "a.pt", torch_members(state, storages))
    same(read_state_dict(tmp_path / "a.pt"), {"weight": np.ones(2, np.float32)})


def test_of_different_tensors_of_one_name_none_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = np.ones(3, np.float32), np.zeros(3, np.float32)
    save_state_dict(tmp_path / "a.pth", {1: a, "1": b, "c": b, "x": {"y": a}, "x.y": a.copy()})
    same(read_state_dict(tmp_path / "a.pth"), {"c": b})
    assert "2 tensors of" in caplog.text and "'1' ('several of one name')" in caplog.text


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"byteorder": b"big"}, "big-endian"),
        ({"data.pkl": b"\x80\x02}"}, "pickle is wrong"),
        ({"data.pkl": pickled({"a": np.ones(9)})[0].replace(b"K\x09", b"K\x0a")}, "its storage"),
        ({"data/0": b"\0" * 8}, "is not within its storage"),
        ({"data/0": None}, "'0' is missing"),
    ],
)
def test_archives_whose_parts_do_not_fit(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    members = {**torch_members(*pickled({"a": np.ones(9)})), **change}
    write_archive(tmp_path / "a.pth", {k: v for k, v in members.items() if v is not None})
    with pytest.raises(WeightError, match=rf"a\.pth' cannot be read: .*{message}"):
        read_state_dict(tmp_path / "a.pth")


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
