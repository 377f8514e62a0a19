"""The published CLIP and TCL at their real sizes and names, with random weights: in, used, out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import skimage.data
from PIL import Image

from tcl_jax.models.clip import VARIANTS
from tcl_jax.weights.clip import clip_rules, clip_shapes
from tcl_jax.weights.mapping import to_state_dict
from tcl_jax.weights.tcl import tcl_rules, tcl_shapes
from tests.in_process import run_module
from tests.torch_files import save_state_dict, save_torchscript

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
FEATURE_LAYER = 11
LIBRARIES = 250
"""MiB that a process takes which has done no more than import JAX, Flax and Orbax."""
# Runs a module of the package as a command, and tells how much memory it took. (What getrusage
# says begins with that of the process which started it.)
MEASURED = """
import re, runpy, sys
name = sys.argv.pop(1)
try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
finally:
    with open("/proc/self/status") as status:
        print("peak MiB", int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) // 1024)
"""


def command(*arguments: str) -> tuple[str, int]:
    """Output of a command and its peak memory in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    text, peak = done.stdout.rsplit("peak MiB", 1)
    return text, int(peak)


def random_tree(shapes: Any, dtype: Any) -> Any:
    some = np.asarray(0.03 * np.random.default_rng(0).standard_normal(999_983), dtype)
    return jax.tree.map(lambda x: np.resize(some, x.shape), shapes)


def test_convert_segment_and_export(tmp_path: Path) -> None:
    folder, clip, tcl = tmp_path, tmp_path / "ViT-B-16.pt", tmp_path / "tcl.pth"
    photo = folder / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(photo)
    sizes = VARIANTS["ViT-B/16"]
    tensors = to_state_dict(clip_rules(sizes), random_tree(clip_shapes(sizes), np.float16))
    attributes = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    save_torchscript(clip, tensors, attributes)
    learned = random_tree(tcl_shapes(sizes, FEATURE_LAYER), np.float32)
    save_state_dict(tcl, {"model": to_state_dict(tcl_rules(sizes, FEATURE_LAYER), learned)})
    files = (clip.stat().st_size + tcl.stat().st_size) / 2**20
    assert files > 390

    text = run_module(["python", "-m", "tcl_jax.convert", "inspect", str(clip)], ROOT).said
    assert "torchscript, CLIP ViT-B/16 (quick_gelu), openai names" in text
    assert "149,620,737 parameters (float16 149,620,737)" in text and "input_resolution" in text

    model = folder / "model"
    text, peak = command("tcl_jax.convert", "tcl", str(tcl), f"--clip={clip}", str(model))
    assert "TCL, feature layer 11 of CLIP ViT-B/16 (quick_gelu)" in text
    assert peak - LIBRARIES < 1.8 * files

    words = ["python", "-m", "tcl_jax.segment", "--text=a woman", "--text=a flag"]
    flags = [f"--checkpoint={model}", f"--image={photo}", f"--output={folder / 'out'}"]
    assert run_module([*words, *flags], ROOT).code == 0
    record = json.loads((folder / "out/astronaut.json").read_text())
    assert record["size"] == {"height": 512, "width": 512}
    assert record["working_size"] == {"height": 448, "width": 448}
    assert record["threshold"] == 0.4

    _, peak = command(
        "tcl_jax.export", f"--checkpoint={model}", f"--output={folder / 'tcl.stablehlo'}",
        "--image_size=448",
    )  # fmt: skip
    assert peak < 24 * 1024
    description = json.loads((folder / "tcl.stablehlo.json").read_text())
    assert [x["shape"] for x in description["inputs"]] == [["b", 448, 448, 3], ["n", 512]]
