"""This project beside the official code: same device, weights and batch, results first, then time.

Both compute the same batch in float32. Only if the results agree are they timed, in alternation: a
round here, a round there, so that whatever else the machine does slows down both. Each pair of
rounds gives a ratio.

The official code and its PyTorch are the user's and run in a process of their own, which is asked
one thing at a time: it runs `tcl_jax/bench/official.py`, whose class `OfficialModel` answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from tcl_jax.bench.subject import Subject
from tcl_jax.errors import InputError, RunError
from tcl_jax.files import user_path
from tcl_jax.weights.clip import clip_state_dict
from tcl_jax.weights.tcl import tcl_state_dict

TOLERANCE = 1e-4
"""Largest difference of float32 results: relative for loss terms, absolute for masks in [0, 1]."""
NORM_TOLERANCE = 1e-3
"""Relative, of the gradient's norm: a sum of squares over millions of rounded numbers."""
VARIANTS = {"eager": False, "compiled": True}
"""As published; or in channels_last and by torch.compile."""
COMPARED = ("tclf", "tcli", "area", "neg_area", "tv_img", "tv_mask", "total", "grad_norm")
PLATFORMS = {"cpu": "cpu", "gpu": "cuda"}
"""Devices by JAX's name and by PyTorch's."""
ADAPTER = Path(__file__).parent / "official.py"
_SHOWN_LINES = 12


class OfficialFailed(RunError):
    """The official code, or its Python, could not do what it was asked."""


@contextlib.contextmanager
def start_official(path: str, python: str, device: str) -> Iterator[Official]:
    """The official code in a process of its own, which the end of the context ends.

    Args:
        device: "cpu" or "cuda".

    Raises:
        InputError: `python` cannot be started.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder,
        tempfile.TemporaryFile("w+", errors="replace") as log,
    ):
        program = [os.path.expanduser(python), str(ADAPTER), f"--path={user_path(path).absolute()}"]
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(
                [*program, f"--device={device}"],
                stdin=pipe, stdout=pipe, stderr=log, text=True, encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            raise InputError(
                f"--against_python={python!r} cannot be started ({error.strerror}); give the "
                "Python of an environment with PyTorch and what else the official code imports"
            ) from error
        try:
            yield Official(process, Path(folder), log)
        finally:
            try:
                process.communicate(timeout=20)  # it ends once there are no more requests
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Official:
    """The official code in its process, see `start_official`; files go to the folder."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, log: IO[str]) -> None:
        self._process, self._folder, self._log = process, folder, log
        self._precision = "float32"

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request, the name of a method of `OfficialModel`, and waits for its answer.

        Raises:
            OfficialFailed: it failed, and waits for other requests; or the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            last = "".join(f"\n  {x}" for x in self._log.read().splitlines()[-_SHOWN_LINES:])
            raise OfficialFailed(
                f"the official code's process ended with exit code {code} when asked to {do}. Its "
                f"last lines:{last}"
            )
        answer: dict[str, dict[str, Any]] = json.loads(line)
        if "ok" not in answer:
            raise OfficialFailed(
                f"the official code failed at {do}: {answer['error']}; what its Python needs: "
                "python -m tcl_jax.bench --help"
            )
        return answer["ok"]

    def load(self, subject: Subject) -> dict[str, Any]:
        """Gives it a subject's weights and precision; returns its versions."""
        experiment, optim = subject.experiment, subject.config.optim
        objective = experiment.objective
        model, loss = objective.model, objective.weights
        sizes, layer = model.config, model.feature_layer
        # As its loader takes them.
        clip = clip_state_dict(experiment.frozen["clip"], sizes, np.float16)
        tensors = {f"clip.{name}": tensor for name, tensor in clip.items()}
        learned = tcl_state_dict(experiment.params, sizes, layer)
        tensors |= {f"tcl.{name}": tensor for name, tensor in learned.items()}
        file = self._write("weights", tensors)
        versions = self.ask(
            "load",
            file=file,
            feature_layer=layer,
            loss={"tcl": loss.tcl, "area": loss.area, "tv": loss.tv},
            optimizer={
                "base_lr": optim.base_lr, "weight_decay": optim.weight_decay, "eps": optim.eps,
                "betas": [optim.b1, optim.b2], "clip_norm": optim.clip_norm,
            },
        )  # fmt: skip
        os.unlink(file)
        self._precision = subject.dtype
        return versions

    def write_batch(self, images: np.ndarray, **arrays: np.ndarray) -> str:
        """Writes normalised images [b, h, w, 3] and what belongs to them; returns the file."""
        image = np.ascontiguousarray(np.moveaxis(images, -1, 1))
        return self._write("batch", {"image": image, **arrays})

    def check(self, ours: Mapping[str, np.ndarray], what: str, **request: Any) -> dict[str, float]:
        """Compares float32 results of a batch with those computed here.

        Args:
            ours: numbers, or masks [b, h, w, n], by the names that `OfficialModel` gives theirs.
            request: of `OfficialModel.prepare`.

        Returns:
            The largest difference of each: relative for a number, absolute for masks.

        Raises:
            RunError: if one is beyond its tolerance; names those that are.
        """
        output, differences, wrong = self._folder / "results.npz", {}, []
        self.ask("prepare", **request, precision="float32", compiled=False)
        self.ask("compare", output=str(output))
        with np.load(output) as theirs:
            for name, here in ours.items():
                there = theirs[name]
                if here.shape != there.shape:
                    wrong.append(f"{name}: shape {here.shape} here, {there.shape} there")
                    continue
                size = 1.0 if here.ndim else max(abs(here), abs(there), 1e-30)
                differences[name] = float(np.abs(here - there).max() / size)
                # Not the other way round: nan is wrong, too.
                if not differences[name] <= (NORM_TOLERANCE if name == "grad_norm" else TOLERANCE):
                    values = "" if here.ndim else f": {here:.8g} here, {there:.8g} there"
                    wrong.append(f"{name} by {differences[name]:.3g}{values}")
        if wrong:
            raise RunError(
                f"{what}: float32 results differ from the official code's, so no times are "
                "compared:\n  "
                + "\n  ".join(wrong)
                + "\nIs --against the unchanged official code, "
                "and does the config have its area_prior (0.4) and temperature (1)?"
            )
        return differences

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
            request: of `OfficialModel.prepare`.
            run: seconds that so many calls take here, once warm.
            calls, rounds, warm_up: as of `timing.Runner.measure`.

        Yields:
            A row: `what`, `variant`, `seconds` of a call here and `official_seconds`
            (medians), `ratio`, `lowest` and `highest` over the pairs of rounds,
            `official_first_seconds` of its first calls, compiling included, and
            `official_peak_bytes`, None on a CPU. Or `problem`, why it was not timed.

        Raises:
            OfficialFailed: its process ended.
        """
        # On a CPU compiling takes it minutes.
        for variant in ["eager"] if jax.default_backend() == "cpu" else VARIANTS:
            row: dict[str, Any] = {"what": what, "variant": variant}
            here, there = [], []
            try:
                compiled = VARIANTS[variant]
                self.ask("prepare", **request, precision=self._precision, compiled=compiled)
                first = self.ask("run", calls=warm_up)["seconds"]
                for _ in range(rounds):
                    here.append(run(calls) / calls)
                    there.append(self.ask("run", calls=calls)["seconds"] / calls)
            except OfficialFailed as error:
                # Out of memory, or it cannot be compiled: the other variant may do. Where the
                # process has ended, this fails, too.
                self.ask("release")
                yield {**row, "problem": str(error).splitlines()[0]}
                continue
            ratios = [b / a for a, b in zip(here, there, strict=True)]
            yield {
                **row,
                "seconds": statistics.median(here), "official_seconds": statistics.median(there),
                "ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios),
                "official_first_seconds": first,
                "official_peak_bytes": self.ask("release")["peak_bytes"],
            }  # fmt: skip

    def _write(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        file = self._folder / f"{name}.npz"
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return str(file)


def open_official(
    flags: argparse.Namespace, subject: Subject
) -> contextlib.AbstractContextManager[Official | None]:
    """The official code, in a context; None if it is not asked for.

    Raises:
        InputError: it does not run on such a device, or does not know such a CLIP, or its Python
            cannot be started.
    """
    if flags.against is None or subject.experiment is None:
        return contextlib.nullcontext()
    platform = jax.default_backend()
    if platform not in PLATFORMS:
        raise InputError(f"--against needs a CPU or a GPU for PyTorch; this is a {platform}")
    if subject.experiment.objective.model.config.activation != "quick_gelu":
        raise InputError("--against: the official code knows CLIPs with quick_gelu alone")
    return start_official(flags.against, flags.against_python, PLATFORMS[platform])
