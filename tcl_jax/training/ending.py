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
from tcl_jax.training.check import flatten
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


def describe_end(
    config: ConfigDict, workdir: Path, step: int, clip: Path | None, flags: Sequence[str]
) -> str:
    """What was written, and the next commands.

    Args:
        config, workdir: of the run.
        step: of its last checkpoint.
        clip: what `write_trained_clip` wrote.
        flags: --config.FIELD=VALUE of the run, of which those of `data` say what it trained on.
    """
    run, drawn = str(workdir), config.data.source == "shapes"
    written = f"written: the last step, {workdir / 'checkpoints' / str(step)}"
    if clip is not None:
        name = "shapes" if drawn else "pairs"
        words = [f"--workdir={run}_tcl", f"--config.model.weights={run}"]
        words += _data_flags(config, flags)
        return (
            f"{written}, and the CLIP, {clip}\n"
            "next, what segments with it:\n"
            f"  python -m tcl_jax.main --config=configs/{name}.py {shlex.join(words)}"
        )
    names = class_names()[:2] if drawn else ("a cat", "grass")
    image = str(workdir / "scene.png") if "shapes" in config.eval.tasks else "photo.jpg"
    segment = [f"--image={image}", *(f"--text={name}" for name in names), "--output=out"]
    own = "--images=photos --labels=masks --classes=names.txt --output=results"
    checkpoint = shlex.join([f"--checkpoint={run}"])
    return (
        f"{written}\n"
        "next, what it finds in an image, and its scores on images with label maps:\n"
        f"  python -m tcl_jax.segment {checkpoint} {shlex.join(segment)}\n"
        f"  python -m tcl_jax.evaluate {checkpoint} {own}"
    )


def _data_flags(config: ConfigDict, flags: Sequence[str]) -> list[str]:
    """Flags of the fields of `data` that `flags` name, and of its shards, which a file may name."""
    named = [re.match(r"--?(?:no)?config\.data\.([\w.]+)", flag) for flag in flags]
    shards = [] if config.data.source == "shapes" else ["shards"]
    fields = dict.fromkeys([*shards, *(match[1] for match in named if match)])
    values = flatten(config.data.to_dict())
    return [f"--config.data.{field}={values[field]}" for field in fields]
