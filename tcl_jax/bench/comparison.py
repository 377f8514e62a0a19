"""This project beside the official code: same device, weights and batch, results first, then time.

Both compute the same batch in float32. Only if the results agree are they timed, in alternation:
a round here, a round there, so that whatever else the machine does hits both alike. A ratio is
taken of each pair of rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from tcl_jax.bench.process import OriginalFailed, OriginalProcess
from tcl_jax.bench.timing import Timing
from tcl_jax.convert.clip import clip_state_dict
from tcl_jax.convert.tcl import tcl_state_dict
from tcl_jax.errors import RunError
from tcl_jax.inference.model import Model
from tcl_jax.ops.losses import LossWeights
from tcl_jax.training.optim import AdamW

TOLERANCE = 1e-4
"""Largest difference of float32 results: relative for loss terms, absolute for masks in [0, 1]."""
NORM_TOLERANCE = 1e-3
"""Of the gradient's norm, relative: a sum of squares over millions of rounded numbers."""
VARIANTS = {"eager": False, "compiled": True}
"""As published; or in channels_last and by torch.compile."""
COMPARED = ("tclf", "tcli", "area", "neg_area", "tv_img", "tv_mask", "total", "grad_norm")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Both codes' time on the same.

    Attributes:
        what: what was timed, in words.
        variant: of the official code, a key of `VARIANTS`.
        precision: of the official code: float32, or autocast's.
        ours, theirs: seconds of a call; None if it was not timed.
        ratio, lowest, highest: of theirs to ours over the pairs of rounds: median and range.
        first_seconds: of the official code's first calls, compiling included.
        peak_bytes: most memory that the official code allocated on the device; None on a CPU.
        problem: why it was not timed.
    """

    what: str
    variant: str
    precision: str
    ours: Timing | None = None
    theirs: Timing | None = None
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None
    first_seconds: float | None = None
    peak_bytes: int | None = None
    problem: str = ""


def write_weights(
    file: Path, model: Model, loss: LossWeights, adamw: AdamW, learning_rate: float
) -> dict[str, Any]:
    """Writes a model's weights by their official names, and says how to load and train them.

    Args:
        file: .npz that is written; CLIP's in float16, as its official loader takes them.
        model: TCL.
        loss: weights of the loss's terms.
        adamw, learning_rate: of the optimiser.

    Returns:
        The fields of the request `load`.
    """
    feature_layer = model.network.describe()["tap_layer"]
    clip = clip_state_dict(model.params["clip"], model.config, np.float16)
    learned = tcl_state_dict(model.learned, model.config, feature_layer)
    tensors = {f"clip.{k}": v for k, v in clip.items()} | {
        f"tcl.{k}": v for k, v in learned.items()
    }
    np.savez(file, **tensors)  # type: ignore[arg-type]
    return {
        "file": str(file),
        "tap_layer": feature_layer,
        "loss": {"tcl": loss.tcl, "area": loss.area, "tv": loss.tv},
        "optimizer": {
            "base_lr": learning_rate,
            "weight_decay": adamw.weight_decay,
            "eps": adamw.eps,
            "betas": [adamw.b1, adamw.b2],
            "clip_norm": adamw.clip_norm,
        },
    }


def write_images(file: Path, images: Float32[np.ndarray, "b h w 3"], **arrays: np.ndarray) -> None:
    """Writes normalised images as the official code takes them, and what belongs to them."""
    np.savez(file, image=np.ascontiguousarray(np.moveaxis(images, -1, 1)), **arrays)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------- results


def check_losses(
    ours: Mapping[str, float], theirs: Mapping[str, float], what: str
) -> dict[str, float]:
    """Compares loss terms and the gradient's norm.

    Returns:
        The relative difference of each.

    Raises:
        RunError: if one differs by more than its tolerance; names those that do.
    """
    differences = {
        name: abs(ours[name] - theirs[name]) / max(abs(ours[name]), abs(theirs[name]), 1e-30)
        for name in COMPARED
    }
    wrong = [
        f"  {name}: {ours[name]:.8g} here, {theirs[name]:.8g} there"
        for name, difference in differences.items()
        # Not the other way round: nan is wrong, too.
        if not difference <= (NORM_TOLERANCE if name == "grad_norm" else TOLERANCE)
    ]
    if wrong:
        raise RunError(_differ(what, wrong))
    return differences


def check_masks(
    ours: Float32[np.ndarray, "b h w n"], theirs: Float32[np.ndarray, "B N H W"], what: str
) -> float:
    """Compares masks.

    Returns:
        The largest absolute difference.

    Raises:
        RunError: if it is beyond the tolerance, or the shapes differ.
    """
    there = np.moveaxis(theirs, 1, -1)
    if there.shape != ours.shape:
        raise RunError(_differ(what, [f"  shape: {ours.shape} here, {there.shape} there"]))
    difference = float(np.abs(ours - there).max())
    if not difference <= TOLERANCE:
        raise RunError(_differ(what, [f"  masks: by up to {difference:.3g} of 1"]))
    return difference


def _differ(what: str, wrong: Sequence[str]) -> str:
    return "\n".join(
        [
            f"{what}: float32 results differ from the official code's, so no times are compared:",
            *wrong,
            "Is --against the unchanged official code, and does the config have its area_prior "
            "(0.4) and temperature (1)?",
        ]
    )


# ------------------------------------------------------------------------------------------- time


def compare_times(
    original: OriginalProcess,
    what: str,
    prepare: Mapping[str, Any],
    ours: Callable[[int], float],
    *,
    cases: Sequence[tuple[str, str]],
    calls: int,
    rounds: int,
    warm_up: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Comparison]:
    """Times both in alternation, against each variant of the official code.

    Args:
        original: the official code, with weights loaded.
        what: what is timed, in words.
        prepare: the request that makes the official code ready, without variant and precision.
        ours: seconds that so many calls take here.
        cases: variants (keys of `VARIANTS`) and precisions of the official code.
        calls, rounds, warm_up: as of `timing.time_rounds`.
        tell: is told what is being done.

    Raises:
        OriginalFailed: its process ended.
    """
    for variant, precision in cases:
        tell(f"{what}: beside the official code, {variant}, {precision}")
        try:
            ready = original.ask(
                **prepare, precision=precision, compiled=VARIANTS[variant], warm_up=warm_up
            )
            here, there = alternate(
                ours,
                lambda calls: float(original.ask("run", calls=calls)["seconds"]),
                calls,
                rounds,
            )
        except OriginalFailed as error:
            # Out of memory, or one that cannot be compiled: the others may do. Where the process
            # has ended, this fails, too.
            original.ask("release")
            problem = str(error).splitlines()[0]
            yield Comparison(what, variant, precision, problem=problem)
            continue
        ratios = sorted(b / a for a, b in zip(here.seconds, there.seconds, strict=True))
        yield Comparison(
            what,
            variant,
            precision,
            ours=here,
            theirs=there,
            ratio=float(np.median(ratios)),
            lowest=ratios[0],
            highest=ratios[-1],
            first_seconds=float(ready["seconds"]),
            peak_bytes=original.ask("release")["peak_bytes"],
        )


def alternate(
    ours: Callable[[int], float], theirs: Callable[[int], float], calls: int, rounds: int
) -> tuple[Timing, Timing]:
    """Seconds of a call of both, a round of the one after a round of the other.

    Args:
        ours, theirs: seconds that so many calls take; both are warm.
        calls: of a round.
        rounds: of each.
    """
    here, there = [], []
    for _ in range(rounds):
        here.append(ours(calls) / calls)
        there.append(theirs(calls) / calls)
    return Timing(tuple(here)), Timing(tuple(there))
