"""Which evaluations a config asks for, while it trains and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from tcl_jax.errors import InputError, as_input_error
from tcl_jax.evaluation.benchmark import BENCHMARKS, Benchmark, load_benchmark
from tcl_jax.evaluation.benchmark_task import BenchmarkEvaluator
from tcl_jax.evaluation.pairs_task import PairsEvaluator
from tcl_jax.evaluation.scenes_report import ShapesEvaluator
from tcl_jax.training.build import Experiment
from tcl_jax.training.check import PAIRS, tasks_of
from tcl_jax.training.loop import Evaluation

SHAPES = "shapes"
"""The task of drawn scenes."""
TASKS = (SHAPES, PAIRS, *BENCHMARKS)
"""What `eval.tasks` may name beside .toml files."""
_TAKEN = (SHAPES, PAIRS, "config", "results")
"""Names that a benchmark of a run cannot have, as its files have them."""


@runtime_checkable  # as type checkers at run time need it
class RunEvaluator(Protocol):
    """An evaluation of a run; every process calls it."""

    def __call__(self, params: Any, frozen: Any) -> Evaluation:
        """Scores of learned and frozen parameters."""
        ...

    def report(self, params: Any, frozen: Any, workdir: Path, step: int) -> None:
        """Says and writes what came out at the end of the run, after that step."""
        ...


def find_tasks(config: ConfigDict) -> dict[str, Benchmark | None]:
    """The tasks of a run by name: of benchmarks, built-in or one's own, what they are.

    Raises:
        InputError: if one is unknown, cannot be read, is named twice or is of another kind of run,
            `eval.best_metric` is of none, or `eval.names` has no held-out pairs.
    """
    tasks: dict[str, Benchmark | None] = {}
    for entry in tasks_of(config):
        benchmark = _benchmark_of(entry, config.eval.split)
        name = entry if benchmark is None else benchmark.name
        if name in tasks or (benchmark is not None and name in _TAKEN):
            raise InputError(
                f"eval.tasks: {entry!r} is called {name!r}, as another task or file of the run; "
                "leave one out, or give the .toml file another name, in its key name or as a file"
            )
        tasks[name] = benchmark
    if SHAPES in tasks and config.data.source != "shapes":
        raise InputError(
            "eval.tasks has 'shapes', which are drawn scenes, and the run trains on "
            f"data.source={config.data.source!r}; judge it by 'pairs' (eval.shards), by benchmarks "
            "or by a .toml file that describes your labelled images"
        )
    if PAIRS in tasks and not config.eval.shards:
        raise InputError(
            "eval.tasks has 'pairs', and eval.shards=() has none; name tar shards of pairs that "
            "are held out, as `python -m tcl_jax.pack --held_out=0.02` writes them"
        )
    if config.eval.names and not config.eval.shards:
        raise InputError(
            f"eval.names={config.eval.names!r} are looked for in held-out pairs, and "
            "eval.shards=() has none; name tar shards of such pairs, or leave eval.names=''"
        )
    best = config.eval.best_metric
    if best and tasks and best.partition("/")[0] not in tasks:
        raise InputError(
            f"eval.best_metric={best!r} must be TASK/SCORE, such as voc20/miou, with a task of "
            f"this run, {', '.join(tasks)}, or '' for none"
        )
    return tasks


def _benchmark_of(entry: str, split: str) -> Benchmark | None:
    """The benchmark that an entry of `eval.tasks` names; None: it is another task."""
    if entry not in BENCHMARKS and not entry.lower().endswith(".toml"):
        if entry in TASKS:
            return None
        raise InputError(
            f"eval.tasks has {entry!r}; known are {', '.join(TASKS)}, and a path that ends with "
            ".toml is a benchmark of your own"
        )
    with as_input_error("eval.tasks"):
        if entry not in BENCHMARKS and not load_benchmark(entry).has_splits:
            return load_benchmark(entry)
        return load_benchmark(entry, split=split or None)


def make_evaluators(
    config: ConfigDict, experiment: Experiment, tasks: Mapping[str, Benchmark | None]
) -> dict[str, RunEvaluator]:
    """The evaluations of a run by the names of its tasks, which `find_tasks` has found.

    Raises:
        InputError: if their data is not there, or settings are impossible.
    """
    evaluators: dict[str, RunEvaluator] = {}
    for name, benchmark in tasks.items():
        if benchmark is not None:
            evaluators[name] = BenchmarkEvaluator(benchmark, config, experiment)
        elif name == SHAPES:
            evaluators[name] = ShapesEvaluator(config, experiment)
        else:
            evaluators[name] = PairsEvaluator(config, experiment)
    return evaluators
