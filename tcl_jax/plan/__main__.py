r"""Says what a training run needs of a machine, before anyone pays for it.

    python -m tcl_jax.plan --config=configs/tcl.py --topology=v5e:4x4
    python -m tcl_jax.plan --config=configs/tcl.py --topology=v5e:4x4,v6e:4x4,v4:2x2x4 \
        --batch_per_chip=64

Compiles the training steps of both phases for that topology and prints memory per chip beside its
HBM, FLOPs, what chips exchange, the least time of a step, and the days of the whole run.
The compiler is the TPU's own (`pip install '.[tpu]'`); no TPU is needed, nor weights or data.
`--topology=local` takes the GPUs or CPUs of this machine.

For ViT-B/16 each program takes minutes to compile. Exit codes: 0 done, also if something does not
fit; 1 failure; 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tcl_jax.commands import command_parser
from tcl_jax.config_flags import add_config_flag, require_config, show_own_log
from tcl_jax.errors import InputError, run_command
from tcl_jax.files import write_json
from tcl_jax.plan.topologies import EXAMPLES, prepare_environment

EXAMPLE = "python -m tcl_jax.plan --config=configs/tcl.py --topology=v5e:4x4"


def plan_parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("plan", __doc__)
    add_config_flag(p)
    p.add_argument(
        "--topology",
        metavar="NAME,...",
        help=f"what to plan for, such as {', '.join(EXAMPLES)}; several stand side by side",
    )
    p.add_argument(
        "--batch_per_chip",
        type=int,
        metavar="N",
        help="images a chip; default: what the config's train.global_batch_size makes of it",
    )
    p.add_argument("--json", metavar="FILE", help="also write all figures as JSON")
    return p


def run(argv: Sequence[str]) -> None:
    """From flags to a report."""
    flags, rest = plan_parser().parse_known_args(argv)
    config = require_config(flags.config, rest, EXAMPLE)
    if flags.batch_per_chip is not None and flags.batch_per_chip < 1:
        raise InputError(f"--batch_per_chip={flags.batch_per_chip}: must be at least 1")
    listed = (flags.topology or "").split(",")
    names = list(dict.fromkeys(name.strip() for name in listed if name.strip()))
    if not names:
        raise InputError(f"--topology is needed, as in\n  {EXAMPLE}")
    prepare_environment(names)
    # Imported here so that --help and mistakes in flags are answered at once, and JAX finds what
    # was prepared.
    from tcl_jax.plan.plan import make_plan
    from tcl_jax.plan.report import page, to_json
    from tcl_jax.plan.topologies import topology_devices
    from tcl_jax.training.check import check_area_group, check_config

    check_config(config)
    if flags.batch_per_chip is None:
        check_area_group(config)
    for name in names:
        topology_devices(name)  # refuses unknown names before minutes of compiling
    plans = []
    for name in names:
        plans.append(make_plan(config, name, flags.batch_per_chip))
        if flags.json is not None:
            write_json(flags.json, [to_json(plan) for plan in plans])
    print(page(plans))


if __name__ == "__main__":
    show_own_log()
    run_command(lambda: run(sys.argv[1:]))
