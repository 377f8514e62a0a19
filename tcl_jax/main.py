"""Trains the model of a config, evaluates it, and writes its results.

    python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes

Any field may be overridden (`--config.train.total_steps=160`). Ctrl-C or SIGTERM saves and exits;
the same command goes on from there. Started on every host of a TPU pod, or by srun, mpirun or GKE,
the processes find each other; elsewhere give each --coordinator, --num_processes and --process_id.
Exit codes: 0 finished, or interrupted and saved; 1 failure; 2 bad input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from absl import logging

from tcl_jax.commands import add_process_flags, command_parser
from tcl_jax.config_flags import add_config_flag, kept_flags, read_config, show_own_log
from tcl_jax.errors import InputError, run_command
from tcl_jax.files import user_path

EXAMPLE = "python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("main", __doc__)
    add_config_flag(p)
    p.add_argument("--workdir", metavar="DIR", help="folder of the run and its results")
    add_process_flags(p)
    return p


def run(argv: Sequence[str] | None = None) -> None:
    """One run, from flags to results."""
    flags, rest = parser().parse_known_args(argv)
    config, workdir = read_config(flags.config, rest, "main"), flags.workdir
    if config is None or not workdir:
        raise InputError(f"--config and --workdir are needed, as in\n  {EXAMPLE}")
    # Imported here so that --help and mistakes in flags are answered at once.
    import jax

    from tcl_jax.data.sources import check_shards
    from tcl_jax.evaluation.tasks import find_tasks, make_evaluators
    from tcl_jax.parallel.processes import raise_on_all_processes, start_processes
    from tcl_jax.training.check import check_area_group, check_config
    from tcl_jax.training.ending import describe_end, family_of, write_trained_clip
    from tcl_jax.training.loop import train
    from tcl_jax.training.workdir import build_experiment_in

    check_config(config)
    check_area_group(config)
    start_processes(flags.coordinator, flags.num_processes, flags.process_id)
    clips = config.objective == "clip"
    kept = raise_on_all_processes(lambda: kept_flags(config, family_of(config)) if clips else [])
    tasks = raise_on_all_processes(lambda: find_tasks(config))
    raise_on_all_processes(lambda: check_shards(config.data))
    experiment = raise_on_all_processes(lambda: build_experiment_in(workdir, config))
    evaluators = make_evaluators(config, experiment, tasks)
    outcome = train(config, workdir, experiment, evaluators)
    if not outcome.finished:
        logging.warning("saved at step %d; the same command goes on from there", outcome.step)
        return
    folder = user_path(workdir)
    for evaluator in evaluators.values():
        evaluator.report(outcome.params, outcome.frozen, folder, outcome.step)
    writes, step = jax.process_index() == 0, outcome.step
    clip = raise_on_all_processes(
        lambda: write_trained_clip(experiment, outcome.params, folder, step) if writes else None
    )
    if writes:
        backgrounds = [x is not None and x.background for x in tasks.values()]
        print(describe_end(config, folder, step, clip, kept, backgrounds))


if __name__ == "__main__":
    show_own_log()
    run_command(run)
