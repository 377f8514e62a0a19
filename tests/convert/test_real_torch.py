"""Files that PyTorch itself writes, read without it; skipped where it is not installed."""

from __future__ import annotations

import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcl_jax.convert.mapping import WeightError
from tcl_jax.convert.readers import open_weights
from tests.convert.test_readers import BF16, contiguous, same, tensors
from tests.reference import read_state_dict
from tests.torch_files import save_state_dict

pytestmark = pytest.mark.slow


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def to_torch(torch: Any, array: np.ndarray) -> Any:
    if array.dtype == BF16:
        return torch.from_numpy(np.ascontiguousarray(array).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
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
        same(file, ours)
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


def test_training_checkpoint_and_old_format(torch: Any, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3), "max": None}
    value = {
        "state_dict": torch.nn.DataParallel(model).state_dict(),
        "optimizer": {"state": {0: moments}, "param_groups": [{"betas": (0.9, 0.999)}]},
        "schedule": {"milestones": Counter({2: 1}), "seen": {1, 2}, "key": b"\xff"},
        "rng": torch.get_rng_state(),
    }
    torch.save(value, tmp_path / "a.pth")
    same(
        read_state_dict(tmp_path / "a.pth"),
        {name: x.numpy() for name, x in model.state_dict().items()},
    )
    torch.save(value, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightError, match=r"before PyTorch 1.6.*torch.save\(torch.load"):
        open_weights(tmp_path / "old.pth")


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
