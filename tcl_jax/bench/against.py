"""`bench --against`: the official code beside this project, with the same weights."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl_jax.bench.subject import PRECISIONS, Report, Subject, choices, read_subject, tell_stage
from tcl_jax.errors import InputError

if TYPE_CHECKING:
    from tcl_jax.bench.process import OriginalProcess


def add_against_flags(p: argparse.ArgumentParser) -> None:
    """--against and what belongs to it."""
    group = p.add_argument_group("beside the official PyTorch code")
    group.add_argument(
        "--against",
        metavar="PATH",
        help="a checkout of the official code; its float32 results are compared first, then both "
        "are timed in alternation, on the first device",
    )
    group.add_argument(
        "--against_python",
        metavar="FILE",
        default="python3",
        help="the Python that has PyTorch and the official code's packages (default python3)",
    )
    group.add_argument(
        "--against_precision",
        metavar="LIST",
        type=choices(*PRECISIONS),
        help="of the official code, by autocast; default: the same as here. It was published with "
        "float16 for training and float32 for masks",
    )
    group.add_argument(
        "--against_variants",
        metavar="LIST",
        type=choices("eager", "compiled"),
        help="as published, or in channels_last and by torch.compile; default: both on a GPU, "
        "eager on a CPU, where compiling takes minutes",
    )


def start(
    flags: argparse.Namespace, rest: Sequence[str], command: str, *, devices: int | None = None
) -> tuple[Subject, Report, Any]:
    """The subject, its report and the mesh, made for the official code beside it if asked for.

    Args:
        flags, rest, command: see `subject.read_subject`.
        devices: how many are measured; None: all, and one beside the official code.
    """
    from tcl_jax.bench.process import find_checkout

    if flags.against is not None:
        find_checkout(flags.against)
        # Both processes need memory of one GPU, of which JAX would take most at once.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    subject = read_subject(flags, rest, command)
    import jax

    from tcl_jax.parallel.mesh import data_mesh

    against = flags.against is not None
    subject = rounded_clip(subject) if against else subject
    mesh = data_mesh(jax.devices()[: 1 if against else devices])
    return subject, Report(command, subject, flags.json, list(mesh.devices.flat)), mesh


@contextlib.contextmanager
def open_original(
    flags: argparse.Namespace, subject: Subject, report: Report
) -> Iterator[tuple[OriginalProcess, Path] | None]:
    """The official code with the subject's weights, and a folder for files; None if not asked."""
    if flags.against is None:
        yield None
        return
    import jax

    from tcl_jax.bench.comparison import write_weights
    from tcl_jax.bench.process import OriginalProcess
    from tcl_jax.training.build import build_adamw

    platforms = {"cpu": "cpu", "gpu": "cuda"}
    if jax.default_backend() not in platforms:
        raise InputError(
            f"--against needs a CPU or a GPU, as PyTorch runs on; this is {jax.default_backend()}"
        )
    if subject.model.config.activation != "quick_gelu":
        raise InputError(
            "--against: the official code knows quick_gelu alone, as OpenAI's CLIPs have"
        )
    device = platforms[jax.default_backend()]
    objective: Any = subject.task.objective
    with (
        tempfile.TemporaryDirectory(prefix="tcl_bench_") as folder,
        OriginalProcess(flags.against, flags.against_python, device) as original,
    ):
        tell_stage("starting the official code")
        report.add("original", original.ask("hello"))
        adamw = build_adamw(subject.config)
        weights = Path(folder) / "weights.npz"
        rate = float(subject.config.optim.base_lr)
        original.ask(
            "load", **write_weights(weights, subject.model, objective.weights, adamw, rate)
        )
        weights.unlink()
        yield original, Path(folder)


def rounded_clip(subject: Subject) -> Subject:
    """CLIP's weights as float16 has them, as the official loader makes them."""
    import jax
    import numpy as np

    clip = jax.tree.map(
        lambda x: np.asarray(x).astype(np.float16).astype(np.float32), subject.task.frozen
    )
    model = dataclasses.replace(
        subject.model, params=subject.model.network.join(subject.model.learned, clip)
    )
    return dataclasses.replace(
        subject, model=model, task=dataclasses.replace(subject.task, frozen=clip)
    )


def cases_of(flags: argparse.Namespace, dtype: str) -> list[tuple[str, str]]:
    """Variants and precisions of the official code that the flags ask for."""
    import jax

    both = ("eager",) if jax.default_backend() == "cpu" else ("eager", "compiled")
    variants = flags.against_variants or both
    return [(v, p) for p in flags.against_precision or (dtype,) for v in variants]
