"""`python -m tcl_jax.export`: a model directory, and a program that needs JAX alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax import export
from tcl_jax.errors import InputError
from tcl_jax.inference.model import load_model, model_from_torch, save_model
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.ops.images import normalize
from tests.reference import GOLDEN, load

FILES = [f"--clip={GOLDEN / 'clip_state_dict.npz'}", f"--tcl={GOLDEN / 'tcl_state_dict.npz'}"]
ALONE = """
import sys
import numpy as np
from jax import export
with open(sys.argv[1], "rb") as file:
    program = export.deserialize(bytearray(file.read()))
inputs = np.load(sys.argv[2])
np.save(sys.argv[3], program.call(*(inputs[name] for name in sorted(inputs))))
assert not any(name.split(".")[0] in ("tcl_jax", "flax") for name in sys.modules)
"""


def call_alone(program: Path, folder: Path, *inputs: np.ndarray) -> np.ndarray:
    """Result of a program in a process without this package."""
    np.savez(folder / "inputs.npz", *inputs)
    arguments = [str(program), str(folder / "inputs.npz"), str(folder / "masks.npy")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *arguments], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "masks.npy")


def test_program_equals_the_segmenter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "tcl.stablehlo"
    export.run([*FILES, f"--output={program}", "--image_size=64x80"])
    assert "MiB" in capsys.readouterr().out
    description = json.loads((tmp_path / "tcl.stablehlo.json").read_text())
    assert description["platforms"] == ["cpu", "cuda", "tpu"]
    assert [i["shape"] for i in description["inputs"]] == [["b", 64, 80, 3], ["n", 32]]
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 80, 3), np.uint8)
    texts = load("masks")["text_emb"]
    masks = call_alone(program, tmp_path, images, texts)
    segmenter = Segmenter.from_torch(GOLDEN / "clip_state_dict.npz", GOLDEN / "tcl_state_dict.npz")
    expected = segmenter.masks_normalized(normalize(jnp.asarray(images)), texts)
    np.testing.assert_allclose(masks, expected, atol=1e-4)


def test_program_with_texts_inside(tmp_path: Path) -> None:
    program, words = tmp_path / "clip.stablehlo", ["striped red", "plain blue"]
    (tmp_path / "names.txt").write_text("striped red, dotted green\nplain blue\n")
    export.run(
        ["--clip=builtin:shapes_clip", f"--output={program}", "--batch=1",
         "--method=sclip", "--threshold=0.2",
         "--templates=simple", f"--texts_file={tmp_path}/names.txt"]
    )  # fmt: skip
    description = json.loads((tmp_path / "clip.stablehlo.json").read_text())
    assert description["texts"] == words and description["threshold"] == 0.2
    assert description["method"] == "sclip"
    assert "probabilities of the texts" in description["outputs"][0]["values"]
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    masks = call_alone(program, tmp_path, images)
    segmenter = Segmenter(model_from_torch("builtin:shapes_clip").with_method("sclip"))
    things = [["striped red", "dotted green"], "plain blue"]
    options = {"templates": "simple", "background": False, "mode": "whole", "short_side": 64}
    result = segmenter.segment(images[0], things, **options)
    assert result.texts == tuple(words)
    np.testing.assert_allclose(masks[0], result.masks, atol=1e-4)


def test_directory_is_what_the_segmenter_reads(tmp_path: Path) -> None:
    save_model(tmp_path / "first", model_from_torch("builtin:shapes_clip"))
    export.run([f"--checkpoint={tmp_path / 'first'}", f"--output={tmp_path / 'second'}"])
    assert load_model(tmp_path / "second").method == load_model(tmp_path / "first").method


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*FILES], "--output is needed"),
        (["--output=OUT/x"], "give either --checkpoint"),
        ([*FILES, "--output=OUT/x", "--text=a"], "--output ends in .stablehlo"),
        ([*FILES, "--output=OUT"], "is there already"),
        ([*FILES, "--output=OUT/x.stablehlo", "--platforms=abacus"], "abacus"),
        ([*FILES, "--output=OUT/x.stablehlo", "--batch=0"], "batch=0"),
        ([*FILES, "--output=OUT/x", "--threshold=0.3"], "--output ends in .stablehlo"),
        ([*FILES, "--output=OUT/x.stablehlo", "--threshold=best:OUT"], "no results at"),
        (["--checkpoint=none", "--output=OUT/x"], "'none' is not there"),
        (
            ["--clip=builtin:shapes_clip", "--method=sclip", "--pamr", "--output=OUT/x.stablehlo"],
            "SCLIP's probabilities are refined by `segment`",
        ),
    ],
)
def test_mistakes_are_explained(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError) as caught:
        export.run([argument.replace("OUT", str(tmp_path)) for argument in arguments])
    assert message in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_sizes() -> None:
    assert export.image_size("448") == (448, 448)
    assert export.image_size("448x672") == (448, 672)
    for wrong in ("0", "448x", "4x4x4", "-3", "big"):
        with pytest.raises(SystemExit):
            export.run([f"--image_size={wrong}"])
