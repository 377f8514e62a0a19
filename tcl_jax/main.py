"""Trains what a config describes, judges it, and shows it.

    python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes

Any field may be overridden (`--config.train.total_steps=160`). Ctrl-C or SIGTERM saves and exits;
the same command goes on from there. Started on every host of a TPU pod, or by srun, mpirun or GKE,
the processes find each other; elsewhere give each --coordinator, --num_processes and --process_id.
Exit codes: 0 finished, or interrupted and saved; 1 failure; 2 bad input.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from tcl_jax.config_flags import find_bases, parse_flags, show_own_log
from tcl_jax.errors import InputError, run_command

EXAMPLE = "python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes"
CONFIG = config_flags.DEFINE_config_file("config", None, "A config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run and its results.")
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if no cluster tells."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def run(argv: list[str]) -> None:
    """One run, from flags to results."""
    if argv[1:]:
        raise InputError(f"arguments {argv[1:]} are not flags; every flag begins with --")
    if CONFIG.value is None or not WORKDIR.value:
        raise InputError(f"--config and --workdir are needed, as in\n  {EXAMPLE}")
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.evaluation.tasks import make_evaluators
    from tcl_jax.parallel.processes import agreed, start_processes
    from tcl_jax.training.build import build_task
    from tcl_jax.training.check import check_config
    from tcl_jax.training.loop import train

    config, workdir = CONFIG.value, WORKDIR.value
    check_config(config)
    start_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    task = agreed(lambda: build_task(config))
    evaluators = make_evaluators(config, task)
    outcome = train(config, workdir, task, evaluators)
    if not outcome.finished:
        logging.warning("saved at step %d; the same command goes on from there", outcome.step)
        return
    for evaluator in evaluators.values():
        evaluator.report(outcome.params, outcome.frozen, Path(workdir))


def main() -> None:
    """Entry point."""
    find_bases(sys.argv)
    show_own_log()
    run_command(
        lambda: app.run(run, flags_parser=lambda argv: parse_flags(flags.FLAGS, argv, "main"))
    )


if __name__ == "__main__":
    main()
