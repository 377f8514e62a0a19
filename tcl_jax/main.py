"""Trains what a config describes, judges it, and shows it.

    python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes

Any field may be overridden (`--config.train.total_steps=200`). Ctrl-C or SIGTERM saves and exits;
the same command goes on from there. Exit codes: 0 finished, or interrupted and saved; 1 failure;
2 bad input.
"""

from __future__ import annotations

import sys
from logging import INFO
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from tcl_jax.errors import InputError, run_command

EXAMPLE = "python -m tcl_jax.main --config=configs/shapes.py --workdir=runs/shapes"
CONFIG = config_flags.DEFINE_config_file("config", None, "A config file.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run and its results.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 of several.")
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
    from tcl_jax.parallel.processes import start_processes
    from tcl_jax.training.build import build_task
    from tcl_jax.training.check import check_config
    from tcl_jax.training.loop import train

    config, workdir = CONFIG.value, WORKDIR.value
    check_config(config)
    start_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    task = build_task(config)
    evaluators = make_evaluators(config, task)
    outcome = train(config, workdir, task, evaluators)
    if not outcome.finished:
        logging.warning("saved at step %d; the same command goes on from there", outcome.step)
        return
    for evaluator in evaluators.values():
        evaluator.report(outcome.params, outcome.frozen, Path(workdir))


def parse_flags(argv: list[str]) -> list[str]:
    """Flags and config, with mistakes as `InputError`."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # a config that failed to load says so only when it is read
        return rest
    except (KeyError, AttributeError) as error:
        message = f"a --config.FIELD flag names a field that the config does not have: {error}"
    except (flags.Error, TypeError, ValueError, OSError) as error:
        message = str(error)
    raise InputError(f"{message}\nThe flags: python -m tcl_jax.main --help")


def main() -> None:
    """Entry point."""
    # Configs import their base as `configs.NAME`, wherever this is started from.
    named = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--config=")]
    sys.path += [str(Path(name).resolve().parent.parent) for name in named]
    logging.set_verbosity(logging.INFO)
    # Libraries tell much; what is not a warning is shown if it is ours.
    ours = Path(__file__).parent
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno > INFO or ours in Path(record.pathname).parents
    )
    run_command(lambda: app.run(run, flags_parser=parse_flags))


if __name__ == "__main__":
    main()
