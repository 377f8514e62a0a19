"""Files that PyTorch itself writes, read without it; skipped where it is not installed."""

from __future__ import annotations

import argparse
import copyreg
import random
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl_jax.weights.readers import open_weights
from tests.reference import load, read_state_dict
from tests.torch_files import save_state_dict
from tests.weights.test_readers import BF16, contiguous, same, tensors

pytestmark = pytest.mark.slow


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def to_torch(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == BF16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("key", [None, "state_dict"])
def test_state_dicts(torch: Any, key: str | None, tmp_path: Path) -> None:
    ours = tensors()
    state = {name: to_torch(torch, x) for name, x in ours.items()}
    state["half"] = torch.nn.Parameter(torch.ones(2, 3).half())
    state["unsigned"] = torch.arange(3).to(torch.uint16)
    shared = torch.arange(10.0)
    state |= {"one": shared[2:8:2], "two": shared.view(2, 5).T}
    value = {key: state, "epoch": 3, "shape": shared.shape, "at": torch.device("cpu")}
    torch.save(value if key else state, tmp_path / "a.pth")
    ours["half"] = np.ones((2, 3), np.float16)
    ours["unsigned"] = np.arange(3, dtype=np.uint16)
    ours |= {"one": shared[2:8:2].numpy(), "two": shared.view(2, 5).T.numpy()}
    with open_weights(tmp_path / "a.pth") as file:
        same(file, {f"{key}.{name}" if key else name: x for name, x in ours.items()})
        assert file.scalars == ({"epoch": 3} if key else {})


def test_our_pickle_is_pytorchs(torch: Any, tmp_path: Path) -> None:
    ours = {k: np.array(v) for k, v in contiguous().items() if v.dtype != BF16}
    torch.save({k: torch.from_numpy(v) for k, v in ours.items()}, tmp_path / "a.pth")
    save_state_dict(tmp_path / "b.pth", ours)
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as theirs,
        zipfile.ZipFile(tmp_path / "b.pth") as b,
    ):
        assert theirs.read("a/data.pkl") == b.read("b/data.pkl")
        for key in range(len(ours)):
            assert theirs.read(f"a/data/{key}") == b.read(f"b/data/{key}")


def flat(path: str, value: Any) -> dict[str, Any]:
    """Tensors of what torch.load gives, by dotted path."""
    if hasattr(value, "numpy"):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, inner in pairs:
        if isinstance(inner, dict | list | tuple) or hasattr(inner, "numpy"):
            found |= flat(f"{path}.{key}" if path else str(key), inner)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dtype", "protocol"), [("float16", 4), ("bfloat16", 2), ("float32", 5)])
def test_checkpoint_of_a_clip_in_training(
    torch: Any, dtype: str, protocol: int, tmp_path: Path
) -> None:
    weights = {
        k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in load("clip_state_dict").items()
    }
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    weights["tied"] = weights["visual.proj"].T  # not contiguous, of the same storage
    weights["part"] = weights["token_embedding.weight"][3:20:2, 1:]
    weights["parameter"] = torch.nn.Parameter(torch.ones(2))
    weights["parameter"].with_an_attribute = True
    value = {
        "net": weights,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "config": argparse.Namespace(
            path=tmp_path, dtype=torch.float16, device=torch.device("cpu")
        ),
        "metrics": {"miou": np.float64(3), "per_class": np.arange(4.0)},
        "rng": [random.getstate(), np.random.get_state(), np.random.default_rng(0)],
        "torch_rng": torch.get_rng_state(),
        "milestones": [Counter({2: 1}), {1, 2}, b"\xff"],
        "size": torch.Size([1]),
        "epoch": 3,
    }
    torch.save(value, tmp_path / "a.pth", pickle_protocol=protocol)
    expected = flat("", torch.load(tmp_path / "a.pth", weights_only=False))
    with open_weights(tmp_path / "a.pth") as file:
        assert list(file) == list(expected) and file.scalars["epoch"] == 3
        for name, tensor in expected.items():
            tensor = tensor.detach()
            ours, theirs = file[name], (tensor.float() if dtype == "bfloat16" else tensor).numpy()
            assert ours.dtype.name == str(tensor.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(ours.astype(theirs.dtype), theirs, strict=True)


@pytest.mark.filterwarnings("ignore")
def test_whole_modules_and_tensors_of_other_kinds(torch: Any, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4))
    torch.save(torch.nn.DataParallel(model), tmp_path / "a.pt")
    expected = {f"module.{name}": x.numpy() for name, x in model.state_dict().items()}
    torch.save({"net": model, "module": 1}, tmp_path / "b.pt")
    same(read_state_dict(tmp_path / "a.pt"), expected)
    same(
        read_state_dict(tmp_path / "b.pt"),
        {name.replace("module", "net", 1): x for name, x in expected.items()},
    )
    other = {
        "quantised": torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8),
        "sparse": torch.eye(3).to_sparse(),
        "no values": torch.ones(2, device="meta"),
    }
    torch.save({"plain": torch.ones(2), **other}, tmp_path / "c.pt")
    with open_weights(tmp_path / "c.pt") as file:
        np.testing.assert_array_equal(file["plain"], np.ones(2, np.float32))
        assert not other.keys() & file.keys()


@pytest.mark.filterwarnings("ignore")
def test_scripted_module(torch: Any, tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        OrderedDict(
            conv1=torch.nn.Conv2d(3, 4, 2, bias=False),
            ln=torch.nn.LayerNorm(3),
            attn=torch.nn.TransformerEncoderLayer(4, 2, 8),
        )
    ).half()
    model.input_resolution, model.name = 64, "net"
    model.register_buffer("mask", torch.ones(2, 2, dtype=torch.bool))
    model.logit_scale = torch.nn.Parameter(torch.tensor(2.5))
    torch.jit.save(torch.jit.script(model), tmp_path / "a.pt")
    expected = {name: x.numpy() for name, x in model.state_dict().items()}
    with open_weights(tmp_path / "a.pt") as file:
        assert file.format == "torchscript" and set(file) == set(expected)
        same(file, {name: expected[name] for name in file})
        assert file.scalars.items() >= {"input_resolution": 64, "name": "net"}.items()


class AttrDict(dict[str, Any]):
    """Its items are its attributes, too, as many configs have it."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.__dict__ = self


class Node:
    """Links to another."""

    next: Any = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copyreg.__newobj_ex__, (Node, (), {"name": 1}), self.__dict__


def test_odd_things_beside_a_state_dict(torch: Any, tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(2), "x\ny": torch.ones(2)}
    chain = last = Node()
    for _ in range(120):
        last.next = last = Node()
    beside = {
        "linked": chain, "config": AttrDict(mean=torch.ones(3)), "large": 1 << 3000,
        "keys": {1: torch.ones(2), "1": torch.ones(3)},
        "conjugate": torch.ones(3, dtype=torch.cfloat).conj(),
    }  # fmt: skip
    torch.save(AttrDict(model=weights, epoch=1), tmp_path / "a.pt")
    torch.save({"model": weights, **beside}, tmp_path / "b.pt", pickle_protocol=4)
    for file in ("a.pt", "b.pt"):
        with open_weights(tmp_path / file) as found:
            np.testing.assert_array_equal(found["model.a.weight"], np.ones(2, np.float32))
            if file == "b.pt":
                assert found["config.mean"].shape == (3,)
                assert found.left_out.keys() == {"keys.1", "conjugate"}
