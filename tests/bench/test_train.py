"""`bench train` on a tiny model: figures, beside a stand-in for the official code, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tcl_jax.bench import __main__ as bench
from tcl_jax.bench.against import COMPARED
from tcl_jax.bench.flags import read_flags
from tcl_jax.bench.subject import GATE, read_subject
from tcl_jax.errors import InputError, RunError
from tcl_jax.models.flops import total
from tcl_jax.training.build import abstract_experiment
from tests.bench.official_checkout import make_checkout, requests_of
from tests.tiny import tiny_config_file, tiny_settings

FAST = ["--steps=1", "--rounds=2", "--warmup=1", "--phases=1", "--batch_sizes=2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def train(folder: Path) -> list[str]:
    """The command on a tiny model."""
    return ["train", f"--config={tiny_config_file(folder)}", *FAST]


@pytest.mark.slow
def test_a_step_is_timed_and_traced(
    train: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "alone.json"
    bench.run([*train, "--trace", f"--json={file}"])
    report, shown = json.loads(file.read_text()), capsys.readouterr().out
    assert (report["sizes"], report["remat"]) == ("custom", "none") and "against" not in report
    (step,) = report["steps"]
    assert (step["batch_size"], step["phase"], report["dtype"]) == (2, 1, "float32")
    assert len(step["rounds"]) == 2 and min(step["rounds"]) > 0
    assert step["seconds"] == np.median(step["rounds"])
    assert step["images_per_second"] == pytest.approx(2 / step["seconds"])
    flops = total(abstract_experiment(tiny_settings("")).objective.training_flops(2, False))
    assert step["image_flops"] == flops and step["mfu"] is None
    assert step["program_bytes"] > 2**20
    assert f"{step['images_per_second']:.4g}" in shown
    shares = {row["kind"]: row["time_share"] for row in report["time_by_kind"]}
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares["matrix products"], shares["attention"], shares["elementwise"]) > 0


def test_the_official_code_is_timed_in_turn_once_results_agree(
    train: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"

    def run(checkout: tuple[str, str]) -> Any:
        path, python = checkout
        against = [f"--against={path}", f"--against_python={python}"]
        try:
            bench.run([*train, *against, f"--json={file}"])
        finally:
            report = json.loads(file.read_text())
        return report

    nothing = dict.fromkeys(COMPARED, 0.0)
    checkout = make_checkout(tmp_path, nothing)
    with pytest.raises(RunError, match="phase 1") as caught:
        run(checkout)
    report = json.loads(file.read_text())
    assert "steps" not in report and "against" not in report, "nothing was timed"
    assert [r["do"] for r in requests_of(checkout[0])] == ["load", "prepare", "compare"]
    named = re.findall(r"^  (\w+) by \S+: (\S+) here, 0 there$", str(caught.value), re.MULTILINE)
    losses = {name: float(value) for name, value in named}
    assert set(losses) == set(COMPARED)
    terms = sum(losses[name] for name in COMPARED if name not in ("total", "grad_norm"))
    assert losses["total"] == pytest.approx(terms, rel=1e-5)

    report = run(make_checkout(tmp_path, losses))
    (row,) = report["against"]
    assert row["variant"] == "eager" and row["official_seconds"] == 1e6
    assert row["lowest"] <= row["ratio"] <= row["highest"]
    assert f"{row['ratio']:.7g}" in capsys.readouterr().out
    assert max(report["agreement"]["phase 1"].values()) < 1e-6
    asked = requests_of(checkout[0])[3:]
    assert [request["do"] for request in asked] == [
        "load", "prepare", "compare", "prepare", "run", "run", "run", "release",
    ]  # fmt: skip
    assert asked[0]["loss"] == {"tcl": 0.1, "area": 0.4, "tv": 0.1}
    assert asked[0]["feature_layer"] == 1
    assert not Path(asked[0]["file"]).exists(), "the weights are deleted"


def test_weights_are_random_and_of_float16(folder: Path) -> None:
    flags = [f"--config={tiny_config_file(folder)}", "--dtype=bfloat16"]
    random = read_subject(read_flags("train", flags, None, 0.0))
    for tensor in jax.tree.leaves(random.model.params):
        np.testing.assert_array_equal(tensor, tensor.astype(np.float16))
    assert random.experiment.params["grounder"]["decoder"]["convs_0_0"]["gate"] == GATE
    assert random.about == {"sizes": "custom", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--phases=3"], "--phases=3"),
        (["--config.objective=clip"], "objective='clip'"),
        (["--config.train.accumulation_steps=3", "--batch_sizes=4"], "choose a multiple of 3"),
        (["--config.train.accumulation_steps=0"], "train.accumulation_steps=0"),
        (["--against=nowhere"], "--against='nowhere'"),
        (["--stps=1"], "stps"),
    ],
)
def test_mistakes_are_explained(flags: list[str], message: str, train: list[str]) -> None:
    with pytest.raises(InputError, match=message):
        bench.run([*train, *flags])


@pytest.mark.parametrize("flag", ["--steps=0", "--batch_sizes=8,x", "--dtype=int8"])
def test_flags_of_the_wrong_kind_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.run(["train", flag])
    assert flag.split("=")[0] in capsys.readouterr().err
