"""What a run leaves when it has come to its end, and what comes next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from tcl_jax.models.clip_method import CLIPMethod
from tcl_jax.shapes.source import class_names
from tcl_jax.training.build import Experiment
from tcl_jax.weights.clip import clip_state_dict
from tcl_jax.weights.folders import TRAINED_CLIP
from tcl_jax.weights.readers import write_safetensors


def write_trained_clip(
    experiment: Experiment, params: Any, workdir: Path, step: int
) -> Path | None:
    """Writes the CLIP that a run has trained, with OpenAI's tensor names in float16; returns where.

    Args:
        experiment: what was trained; if no CLIP, nothing is written.
        params: learned parameters.
        workdir, step: of the run.
    """
    method = experiment.method
    if "clip" not in params or not isinstance(method, CLIPMethod):
        return None
    sizes, path = method.config, workdir / TRAINED_CLIP.format(step=step)
    tensors = clip_state_dict(params["clip"], sizes, np.float16)
    write_safetensors(path, tensors, {"activation": sizes.activation})
    return path


def family_of(config: ConfigDict) -> str:
    """Of the configs that go on from a run: `configs/NAME_clip.py`, then `configs/NAME.py`."""
    return "shapes" if config.data.source == "shapes" else "pairs"


def describe_end(
    config: ConfigDict,
    workdir: Path,
    step: int,
    clip: Path | None,
    kept: Sequence[str],
    backgrounds: Sequence[bool] = (),
) -> str:
    """What was written, and the next commands.

    Args:
        config, workdir: of the run.
        step: of its last checkpoint.
        clip: what `write_trained_clip` wrote.
        kept: --config.FIELD=VALUE of what a run upon that CLIP has in common with this one.
        backgrounds: of each entry of `eval.tasks`, whether it is a benchmark with a background.
    """
    run, tasks = str(workdir), config.eval.tasks
    written = f"written: the last step, {workdir / 'checkpoints' / str(step)}"
    if clip is not None:
        upon = re.sub(r"(?<=[^/])_clip$", "", run)
        upon = f"{run}_tcl" if upon == run else upon
        words = [f"--workdir={upon}", f"--config.model.weights={run}", *kept]
        file, written = f"configs/{family_of(config)}.py", f"{written}, and the CLIP, {clip}"
        if config.data.source == "mixture":
            return (
                f"{written}\nnext, what segments with it: write a config file, upon {file}, that "
                "has this run's data.mixture, which flags cannot give, and\ntrain by that with "
                f"{shlex.join(words)}"
            )
        # Its rates suit what this run trains from scratch.
        rates = f" (read {file} on rates for large ones)" if config.model.weights else ""
        return (
            f"{written}\nnext, what segments with it{rates}:\n"
            f"  python -m tcl_jax.main --config={file} {shlex.join(words)}"
        )
    drawn, names = "shapes" in tasks, config.eval.names
    texts = [f"--text={name}" for name in (class_names()[:2] if drawn else ("a cat", "grass"))]
    image = workdir / "scene.png" if drawn else "photos"
    segment = [f"--image={image}", *([f"--texts_file={names}"] if names else texts), "--output=out"]
    # What is trained neither as a CLIP nor as TCL is not judged by pairs: it has found a threshold.
    segment += [f"--threshold=best:{run}"] if config.eval.shards else []
    labelled = ["--images=photos", "--labels=masks", f"--classes={names or 'names.txt'}"]
    own = {
        f"--benchmark={x}": background
        for x, background in zip(tasks, backgrounds, strict=False)
        if x.lower().endswith(".toml")
    }
    judged = [*(own or [*labelled, "--background"])]
    judged += ["--threshold=best"] if any(own.values()) or not own else []
    judged.append(f"--output={run}_scores")
    how = "" if own else " (without --background where label 0 is a name as others are)"
    checkpoint = shlex.join([f"--checkpoint={run}"])
    return (
        f"{written}\n"
        f"next, its scores on images with label maps{how},\nand what it finds in an image:\n"
        f"  python -m tcl_jax.evaluate {checkpoint} {shlex.join(judged)}\n"
        f"  python -m tcl_jax.segment {checkpoint} {shlex.join(segment)}"
    )
