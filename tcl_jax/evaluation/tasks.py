"""Which evaluations a config asks for, while it trains and at the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import BENCHMARKS
from tcl_jax.evaluation.benchmark_task import BenchmarkEvaluator
from tcl_jax.evaluation.scenes_report import ShapesEvaluator
from tcl_jax.training.build import Experiment
from tcl_jax.training.loop import Evaluation


@runtime_checkable  # as type checkers at run time need it
class RunEvaluator(Protocol):
    """An evaluation of a run; every process calls it."""

    def __call__(self, params: Any, frozen: Any) -> Evaluation:
        """Scores of learned and frozen parameters."""
        ...

    def report(self, params: Any, frozen: Any, workdir: Path) -> None:
        """Says and writes what came out at the end of the run."""
        ...


TASKS: dict[str, Callable[[ConfigDict, Experiment], RunEvaluator]] = {
    "shapes": ShapesEvaluator,
    **{name: functools.partial(BenchmarkEvaluator, name) for name in BENCHMARKS},
}


def known_tasks(config: ConfigDict) -> tuple[str, ...]:
    """The names in `eval.tasks`.

    Raises:
        InputError: if one is unknown.
    """
    unknown = [name for name in config.eval.tasks if name not in TASKS]
    if unknown:
        raise InputError(
            f"eval.tasks has {', '.join(map(repr, unknown))}; known are {', '.join(TASKS)}"
        )
    return tuple(config.eval.tasks)


def make_evaluators(config: ConfigDict, experiment: Experiment) -> dict[str, RunEvaluator]:
    """The evaluations of `eval.tasks` by name.

    Raises:
        InputError: if a task is unknown, its data is not there, or its settings are impossible.
    """
    return {name: TASKS[name](config, experiment) for name in known_tasks(config)}
