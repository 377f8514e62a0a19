"""Weight files made to do harm, or damaged at random: explained, in little memory, without code."""

from __future__ import annotations

import codecs
import json
import pickle
import resource
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.readers import open_weights
from tests.torch_files import (
    Call,
    save_state_dict,
    save_torchscript,
    torch_members,
    with_zip64_end,
    write_archive,
)
from tests.weights.hostile_files import hostile_files, zipped
from tests.weights.hostile_pickles import CANARY, CODE, WHOLE, hostile_pickles, tensor_pickle, text

ROOT = Path(__file__).parent.parent.parent
MAX_MEMORY = 192 << 20
MAX_SECONDS = 20  # of the processor's time, which a busy machine doubles
MUTANTS_PER_FILE = 60


def write_pickle(path: Path, data: bytes) -> None:
    write_archive(path, torch_members(data, [b"\0" * 16]))


def attempt(path: Path) -> str | None:
    """Opens and reads all; the message of the error, None if all is well and as declared."""
    try:
        with open_weights(path) as file:
            total = sum(spec.nbytes for spec in file.specs.values())
            assert total <= 4 * path.stat().st_size + (16 << 20)
            for name, spec in file.specs.items():
                tensor = file[name]
                assert (tensor.shape, tensor.dtype) == spec
    except WeightError as error:
        cause = error.__cause__
        assert cause is not None and not isinstance(cause, MemoryError | AttributeError)
        assert type(cause).__module__ != "jaxtyping"  # checks that tests alone have
        assert str(path) in str(error) and str(error).isprintable()
        return str(error)
    return None


@pytest.mark.parametrize("name", CODE)
def test_what_would_run_does_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = CODE[name]
    pickle.loads(data)
    assert (tmp_path / CANARY).exists(), "Python's own reader runs it"
    path = tmp_path / CANARY
    path.rmdir() if path.is_dir() else path.unlink()
    for root in (data, b"\x80\x02}" + text("a") + data[2:-1] + b"s."):
        write_pickle(tmp_path / "a.pt", root)
        assert "no tensors by name" in (attempt(tmp_path / "a.pt") or "")
    beside = b"\x80\x02}(" + text("x") + data[2:-1] + text("a") + tensor_pickle(WHOLE)[2:-1] + b"u."
    write_pickle(tmp_path / "a.pt", beside)
    with open_weights(tmp_path / "a.pt") as file:
        np.testing.assert_array_equal(dict(file)["a.a"], np.zeros((2, 2), np.float32))
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def sound_files(folder: Path) -> None:
    """Small files of every format that are in order."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(48).astype(np.float16)
    content = {
        "visual.a": base,
        "visual.b": base.reshape(8, 6)[2:5, 1::2],
        "c.weight": rng.standard_normal((3, 5)).astype(np.float32).T,
        "c.bias": rng.standard_normal(3),
        "scale": np.array(2, np.int64),
        "mask": np.array([True, False]),
        "empty": np.zeros((2, 0), np.float32),
    }
    save_state_dict(folder / "nested.pth", {"model": content, "epoch": 3, "set": {1, 2}, "b": b"b"})
    size = Call("torch", "Size", (1, 2))
    save_state_dict(folder / "flat.pth", {**content, "size": size, "by": {"a": [1, 2.5, None]}})
    save_torchscript(folder / "scripted.pt", content, {"size": 64, "name": "x", "rate": 0.5})
    long = with_zip64_end((folder / "flat.pth").read_bytes())
    (folder / "long.pth").write_bytes(long)
    whole = {name: np.ascontiguousarray(x).reshape(x.shape) for name, x in content.items()}
    safetensors.numpy.save_file(whole, folder / "a.safetensors", {"format": "pt"})
    np.savez(folder / "a.npz", **whole)
    np.savez_compressed(folder / "b.npz", **whole)


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with one to four random changes: bits turned, and pieces lost or doubled."""
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(0, max(len(content), 1))), int(rng.integers(1, 40))
        match rng.integers(0, 4):
            case 0 | 1:
                bit = bytes([content[at] ^ (1 << int(rng.integers(8)))]) if content else b""
                content = content[:at] + bit + content[at + 1 :]
            case 2:
                content = content[: at + length] + content[at:]
            case _:
                content = content[:at] + content[at + length :]
    return content


def mutants(folder: Path, rng: np.random.Generator) -> Iterator[bytes]:
    """Damaged files, and archives that are whole but for a damaged pickle or header."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        yield from (mutate(content, rng) for _ in range(MUTANTS_PER_FILE))
        if path.suffix == ".safetensors":
            continue
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        names = [name for name in members if name.endswith((".pkl", ".npy"))]
        for _ in range(MUTANTS_PER_FILE):
            name = names[rng.integers(len(names))]
            yield zipped({**members, name: mutate(members[name], rng)})


class Watch:
    """Counts what Python's audit tells of code that is run and files that are opened."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.seen: list[Any] = []
        for codec in ("ascii", "cp437", "latin1", "raw_unicode_escape", "utf-8"):
            codecs.lookup(codec)  # which Python imports when first used, by a name of its own
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.path is None:
            return
        # NumPy has Python parse the text of a header, as "compile" tells; to run it is "exec".
        ran = event in ("import", "exec", "pickle.find_class", "ctypes.dlopen")
        ran = ran or event.startswith(("os.", "subprocess.", "socket.", "shutil."))
        # Where that text is wrong, Python looks for its line in a file of this name.
        expected = (str(self.path), "<string>")
        if ran or (event == "open" and str(arguments[0]) not in expected):
            self.seen.append((event, arguments))

    def attempt(self, path: Path) -> str | None:
        self.path = path
        message = attempt(path)
        self.path = None
        assert not self.seen, self.seen
        return message


def limit_memory(more: int) -> None:
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + more, size + more))


def hostile_run(folder: Path) -> dict[str, Any]:
    """Reads files made to do harm, and mutants, with little memory to be had.

    Returns:
        Those of the former that are read or take long, their number, and numbers of outcomes of
        the latter.
    """
    warnings.simplefilter("ignore")
    sound_files(folder)
    assert all(attempt(path) is None for path in folder.iterdir())  # imports all that is needed
    damaged = list(mutants(folder, np.random.default_rng(0)))
    pickles, files = list(hostile_pickles()), list(hostile_files())
    watch, wrong, path = Watch(), [], folder / "hostile.pt"
    limit_memory(MAX_MEMORY)
    for write, cases in ((write_pickle, pickles), (Path.write_bytes, files)):
        for name, content in cases:
            write(path, content)
            start = time.process_time()
            message = watch.attempt(path)
            seconds = time.process_time() - start
            if message is None or len(message) > 1000 or seconds > MAX_SECONDS:
                wrong.append((name, message, seconds))
    counts = {"refused": 0, "read": 0}
    for content in damaged:
        path.write_bytes(content)
        counts["read" if watch.attempt(path) is None else "refused"] += 1
    return {"harmful": len(pickles) + len(files), "wrong": wrong, **counts}


def test_harm_and_damage_are_explained_in_little_time_and_memory(tmp_path: Path) -> None:
    # In a process without the type checks that tests add, and with limits of its own.
    code = (
        "from tests.weights.test_hostile_weights import hostile_run\n"
        f"import json, pathlib; print(json.dumps(hostile_run(pathlib.Path({str(tmp_path)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["wrong"] == [] and result["harmful"] > 100
    assert result["refused"] > 400 and result["read"] > 10
