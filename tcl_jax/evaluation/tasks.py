"""Which evaluations a config asks for, while it trains and at the end."""

from __future__ import annotations

from ml_collections import ConfigDict

from tcl_jax.errors import InputError
from tcl_jax.evaluation.shapes_report import ShapesEvaluator
from tcl_jax.parallel.mesh import data_mesh
from tcl_jax.training.build import Task

TASKS = {"shapes": ShapesEvaluator}


def make_evaluators(config: ConfigDict, task: Task) -> dict[str, ShapesEvaluator]:
    """The evaluations of `eval.tasks` by name.

    Raises:
        InputError: if a task is unknown.
    """
    unknown = [name for name in config.eval.tasks if name not in TASKS]
    if unknown:
        raise InputError(
            f"eval.tasks has {', '.join(map(repr, unknown))}; known are {', '.join(TASKS)}"
        )
    return {name: TASKS[name](config, task, data_mesh()) for name in config.eval.tasks}
