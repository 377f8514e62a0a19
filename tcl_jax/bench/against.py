"""This project beside the official code: same device, weights and batch, results first, then time.

Both compute the same batch in float32. Only if the results agree are they timed, in alternation: a
round here, a round there, so that whatever else the machine does slows down both. Each pair of
rounds gives a ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl_jax.bench.process import OriginalFailed, OriginalProcess, find_checkout
from tcl_jax.bench.subject import Subject
from tcl_jax.errors import InputError, RunError

if TYPE_CHECKING:
    import numpy as np

TOLERANCE = 1e-4
"""Largest difference of float32 results: relative for loss terms, absolute for masks in [0, 1]."""
NORM_TOLERANCE = 1e-3
"""Relative, of the gradient's norm: a sum of squares over millions of rounded numbers."""
VARIANTS = {"eager": False, "compiled": True}
"""As published; or in channels_last and by torch.compile."""
COMPARED = ("tclf", "tcli", "area", "neg_area", "tv_img", "tv_mask", "total", "grad_norm")
PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}
"""Devices by JAX's name and by PyTorch's."""


def add_against_flags(p: argparse.ArgumentParser) -> None:
    """--against and what belongs to it."""
    group = p.add_argument_group("beside the official PyTorch code")
    group.add_argument(
        "--against",
        metavar="PATH",
        help="a checkout of the official code; its float32 results are compared first, then both "
        "are timed in alternation on the first device, in one precision (there by autocast)",
    )
    group.add_argument(
        "--against_python",
        metavar="FILE",
        default="python3",
        help="the Python that has PyTorch and the official code's packages (default python3)",
    )


def prepare_against(flags: argparse.Namespace) -> None:
    """What must be done before JAX starts.

    Raises:
        InputError: --against is no checkout.
    """
    if flags.against is not None:
        find_checkout(flags.against)
        # Both processes need memory of one GPU, of which JAX would take most at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


class Official:
    """The official code with a subject's weights; made by `open_official`."""

    def __init__(self, process: OriginalProcess, folder: Path, precision: str) -> None:
        self._process, self._folder, self._precision = process, folder, precision

    def write_batch(self, images: np.ndarray, **arrays: np.ndarray) -> str:
        """Writes normalised images [b, h, w, 3] and what belongs to them; returns the file."""
        import numpy as np

        file = self._folder / "batch.npz"
        np.savez(file, image=np.ascontiguousarray(np.moveaxis(images, -1, 1)), **arrays)  # type: ignore[arg-type]
        return str(file)

    def check_losses(
        self, ours: Mapping[str, float], what: str, **request: Any
    ) -> dict[str, float]:
        """Compares loss terms and gradient norm; returns the relative difference of each.

        Raises:
            RunError: if one differs by more than its tolerance; names those that do.
        """
        theirs = self._process.ask("compare_train", **request)
        differences = {
            name: abs(ours[name] - theirs[name]) / max(abs(ours[name]), abs(theirs[name]), 1e-30)
            for name in COMPARED
        }
        wrong = [
            f"{name}: {ours[name]:.8g} here, {theirs[name]:.8g} there"
            for name, difference in differences.items()
            # Not the other way round: nan is wrong, too.
            if not difference <= (NORM_TOLERANCE if name == "grad_norm" else TOLERANCE)
        ]
        if wrong:
            raise _differ(what, *wrong)
        return differences

    def check_masks(self, ours: np.ndarray, what: str, **request: Any) -> dict[str, float]:
        """Compares masks [b, h, w, n]; returns the largest absolute difference.

        Raises:
            RunError: if it is beyond the tolerance, or the shapes differ.
        """
        import numpy as np

        output = self._folder / "masks.npy"
        self._process.ask("compare_masks", **request, output=str(output))
        theirs = np.moveaxis(np.load(output), 1, -1)
        if theirs.shape != ours.shape:
            raise _differ(what, f"shape: {ours.shape} here, {theirs.shape} there")
        difference = float(np.abs(ours - theirs).max())
        if not difference <= TOLERANCE:
            raise _differ(what, f"masks: by up to {difference:.3g} of 1")
        return {"masks": difference}

    def times(
        self,
        what: str,
        request: Mapping[str, Any],
        run: Callable[[int], float],
        *,
        calls: int,
        rounds: int,
        warm_up: int,
    ) -> Iterator[dict[str, Any]]:
        """Times both in alternation, against each of `VARIANTS` (on a CPU as published alone).

        Args:
            what: is timed, in words.
            request: that makes the official code ready.
            run: seconds that so many calls take here, once warm.
            calls, rounds, warm_up: as of `timing.Runner.measure`.

        Yields:
            A row: `what`, `variant`, `seconds` of a call here and `official_seconds`
            (medians), `ratio`, `lowest` and `highest` over the pairs of rounds,
            `official_first_seconds` of its first calls, compiling included, and
            `official_peak_bytes`, None on a CPU. Or `problem`, why it was not timed.

        Raises:
            OriginalFailed: its process ended.
        """
        import jax

        # On a CPU compiling takes it minutes.
        for variant in ["eager"] if jax.default_backend() == "cpu" else VARIANTS:
            row: dict[str, Any] = {"what": what, "variant": variant}
            here, there = [], []
            try:
                ready = self._process.ask(
                    **request,
                    precision=self._precision,
                    compiled=VARIANTS[variant],
                    warm_up=warm_up,
                )
                for _ in range(rounds):
                    here.append(run(calls) / calls)
                    there.append(self._process.ask("run", calls=calls)["seconds"] / calls)
            except OriginalFailed as error:
                # Out of memory, or it cannot be compiled: the other variant may do. Where the
                # process has ended, this fails, too.
                self._process.ask("release")
                yield {**row, "problem": str(error).splitlines()[0]}
                continue
            ratios = [b / a for a, b in zip(here, there, strict=True)]
            yield {
                **row,
                "seconds": statistics.median(here),
                "official_seconds": statistics.median(there),
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
                "official_first_seconds": ready["seconds"],
                "official_peak_bytes": self._process.ask("release")["peak_bytes"],
            }


@contextlib.contextmanager
def open_official(
    flags: argparse.Namespace, subject: Subject
) -> Iterator[tuple[Official, dict[str, Any]] | None]:
    """The official code, and its versions; None if it is not asked for.

    Raises:
        InputError: it does not run on such a device, or does not know such a CLIP.
        OriginalFailed: it cannot be started.
    """
    if flags.against is None:
        yield None
        return
    import jax

    platform = jax.default_backend()
    if platform not in PLATFORMS:
        raise InputError(
            f"--against needs a CPU or a GPU, as PyTorch runs on; this is a {platform}"
        )
    if subject.experiment.objective.model.config.activation != "quick_gelu":
        raise InputError(
            "--against: the official code knows quick_gelu alone, as OpenAI's CLIPs have"
        )
    with (
        tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder,
        OriginalProcess(flags.against, flags.against_python, PLATFORMS[platform]) as process,
    ):
        versions = process.ask("hello")
        weights = Path(folder) / "weights.npz"
        process.ask("load", **_write_weights(weights, subject))
        weights.unlink()
        yield Official(process, Path(folder), subject.config.model.dtype), versions


def _write_weights(file: Path, subject: Subject) -> dict[str, Any]:
    """Writes the weights by their official names; returns the arguments of the request `load`."""
    import numpy as np

    from tcl_jax.weights.clip import clip_state_dict
    from tcl_jax.weights.tcl import tcl_state_dict

    experiment, optim = subject.experiment, subject.config.optim
    objective: Any = experiment.objective
    model, loss = objective.model, objective.weights
    sizes, layer = model.config, model.feature_layer
    clip = clip_state_dict(experiment.frozen["clip"], sizes, np.float16)  # as its loader takes them
    tensors = {f"clip.{name}": tensor for name, tensor in clip.items()}
    learned = tcl_state_dict(experiment.params, sizes, layer)
    tensors |= {f"tcl.{name}": tensor for name, tensor in learned.items()}
    np.savez(file, **tensors)  # type: ignore[arg-type]
    return {
        "file": str(file),
        "feature_layer": layer,
        "loss": {"tcl": loss.tcl, "area": loss.area, "tv": loss.tv},
        "optimizer": {
            "base_lr": optim.base_lr, "weight_decay": optim.weight_decay, "eps": optim.eps,
            "betas": [optim.b1, optim.b2], "clip_norm": optim.clip_norm,
        },
    }  # fmt: skip


def _differ(what: str, *wrong: str) -> RunError:
    return RunError(
        "\n  ".join(
            [
                f"{what}: float32 results differ from the official code's, so no times are "
                "compared:",
                *wrong,
            ]
        )
        + "\nIs --against the unchanged official code, and does the config have its area_prior "
        "(0.4) and temperature (1)?"
    )
