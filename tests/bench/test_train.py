"""`bench train` on a tiny model: figures, beside an official code that is not there, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tcl_jax.bench import __main__ as bench
from tcl_jax.bench.comparison import COMPARED
from tcl_jax.bench.subject import GATE, Subject, bench_parser, read_subject
from tcl_jax.convert.load import load_clip
from tcl_jax.errors import InputError, RunError
from tcl_jax.inference.model import save_model
from tcl_jax.models.flops import total
from tcl_jax.training.build import abstract_task
from tests.bench.original_checkout import make_checkout, requests_of
from tests.tiny import tiny_config, tiny_config_file, tiny_settings

FAST = ["--steps=1", "--rounds=2", "--warmup=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def train(folder: Path) -> list[str]:
    """The command on a tiny model."""
    return ["train", f"--config={tiny_config_file(folder)}", *FAST]


@pytest.fixture(scope="module")
def losses(train: list[str], folder: Path) -> dict[str, float]:
    """Losses of phase 1, told because an official code that has others differs from them."""
    nothing = dict.fromkeys(COMPARED, 0.0)
    path, python = make_checkout(folder / "differs", compare_train={"ok": nothing})
    file = folder / "differs.json"
    against = [f"--against={path}", f"--against_python={python}"]
    with pytest.raises(RunError, match="phase 1: float32 results differ") as caught:
        bench.run([*train, "--phases=1", *against, f"--json={file}"])
    report = json.loads(file.read_text())
    assert "steps" not in report and "against" not in report, "nothing was timed"
    assert [r["do"] for r in requests_of(path)] == ["hello", "load", "compare_train"]
    told = re.findall(r"^  (\w+): (\S+) here, 0 there$", str(caught.value), re.MULTILINE)
    return {name: float(value) for name, value in told}


@pytest.mark.slow
def test_a_step_and_its_parts_are_measured(
    train: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "alone.json"
    bench.run([*train, "--batch_sizes=2", "--phases=1", f"--json={file}"])
    report, told = json.loads(file.read_text()), capsys.readouterr().out
    assert report["weights"] == "custom, weights random" and "against" not in report
    (step,) = report["steps"]
    rounds = step["seconds"]["seconds"]
    assert len(rounds) == 2 and min(rounds) > 0
    assert step["images_per_second"] == pytest.approx(2 / np.median(rounds))
    flops = total(abstract_task(tiny_settings("")).objective.model.training_flops(2, False))
    assert step["flops_per_image"] == flops
    # The compiler counts a loop's body once, and what is computed beyond the plain method.
    assert 0.3 < step["program"]["flops"] / (2 * flops) < 3
    assert step["program"]["bytes"] > 2**20
    assert (step["batch_size"], step["phase"], step["dtype"]) == (2, 1, "float32")
    assert step["mfu"] is None and f"{step['images_per_second']:.4g}" in told
    (parts,) = report["parts"].values()
    assert list(parts) == [
        "image tower", "text tower", "grounder, decoder in it", "decoder", "masks of all pairs",
        "masked image", "loss, all of it", "backward", "optimiser",
    ]  # fmt: skip
    assert all(name in told for name in parts) and "do not add up" in told


def test_the_official_code_is_timed_in_turn_once_results_agree(
    train: list[str],
    folder: Path,
    losses: dict[str, float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert set(losses) == set(COMPARED)
    terms = sum(losses[name] for name in COMPARED if name not in ("total", "grad_norm"))
    assert losses["total"] == pytest.approx(terms, rel=1e-5)
    path, python = make_checkout(folder / "agrees", compare_train={"ok": losses})
    file = folder / "agrees.json"
    against = [f"--against={path}", f"--against_python={python}", "--against_precision=float16"]
    bench.run([*train, "--phases=1", "--batch_sizes=2", "--no_parts", *against, f"--json={file}"])
    report, told = json.loads(file.read_text()), capsys.readouterr().out
    (row,) = report["against"]
    assert (row["variant"], row["precision"]) == ("eager", "float16")
    here, there = row["ours"]["seconds"], row["theirs"]["seconds"]
    assert there == [1e6, 1e6] and row["ratio"] == pytest.approx(np.median(1e6 / np.array(here)))
    assert f"{row['ratio']:.2f}" in told and "results agree" in told
    assert max(report["agreement"]["phase 1"].values()) < 1e-6
    asked = requests_of(path)
    assert [request["do"] for request in asked] == [
        "hello", "load", "compare_train", "prepare_train", "run", "run", "release",
    ]  # fmt: skip
    assert asked[1]["loss"] == {"tcl": 0.1, "area": 0.4, "tv": 0.1} and asked[1]["tap_layer"] == 1
    assert not Path(asked[1]["file"]).exists(), "the weights are deleted"


def test_weights_are_random_unless_they_are_given(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    file, given = tiny_config_file(folder), f"--config.model.weights={config.model.weights}"
    clip = load_clip(config.model.weights).params

    def subject(*flags: str) -> Subject:
        parsed, rest = bench_parser("train", None).parse_known_args(flags)
        return read_subject(parsed, rest, "bench train")

    random = subject(f"--config={file}")
    for tensor in jax.tree.leaves(random.model.params):
        np.testing.assert_array_equal(tensor, tensor.astype(np.float16))
    assert random.model.params["grounder"]["decoder"]["convs_0_0"]["gate"] == GATE
    assert random.told == "custom, weights random"
    read = subject(f"--config={file}", given, "--pretrained", "--dtype=bfloat16")
    assert read.told == f"custom, weights {config.model.weights!r}" and read.dtype == "bfloat16"
    jax.tree.map(np.testing.assert_array_equal, read.task.frozen, clip)
    save_model(tmp_path / "model", read.model)
    again = subject(f"--checkpoint={tmp_path}/model")
    jax.tree.map(np.testing.assert_array_equal, again.task.params, read.task.params)
    assert again.task.clip.config == read.task.clip.config and again.dtype == "float32"
    with pytest.raises(InputError, match=r"none\.safetensors"):
        subject(f"--config={file}", "--pretrained", "--config.model.weights=none.safetensors")
    with pytest.raises(InputError, match="these weights are a CLIP alone"):
        subject("--clip=builtin:shapes_clip")


def test_mistakes_are_explained(train: list[str], folder: Path) -> None:
    cases: list[tuple[list[str], Any]] = [
        (["--phases=3"], "--phases=3: there are 1 and 2"),
        (["--variant=ViT-B/32"], "--variant=ViT-B/32 is for when neither"),
        (["--config.objective=clip"], "objective='clip' is another"),
        (["--config.train.accumulation_steps=3", "--batch_sizes=4"], "choose a multiple of 3"),
        ([f"--against={folder}"], "no checkout of the official code"),
        ([f"--checkpoint={folder}", "--clip=x"], "give either --checkpoint"),
        (["--stps=1"], "stps"),
    ]
    for flags, message in cases:
        with pytest.raises(InputError, match=message):
            bench.run([*train, *flags])
    with pytest.raises(InputError, match="reads the weights of a --config"):
        bench.run(["train", "--pretrained"])


@pytest.mark.parametrize(
    "flag", ["--steps=0", "--batch_sizes=8,x", "--against_variants=fast", "--dtype=int8"]
)
def test_flags_of_the_wrong_kind_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.run(["train", flag])
    assert flag.split("=")[0] in capsys.readouterr().err
