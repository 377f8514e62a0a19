r"""Measures how fast the method is on this machine.

    python -m tcl_jax.bench input --config=configs/tcl.py \
        --config.data.shards="('data/cc3m/*.tar',)" --json=input.json
    python -m tcl_jax.bench train --batch_sizes=64,256 --trace --json=train.json
    python -m tcl_jax.bench train --config.train.remat=blocks
    python -m tcl_jax.bench masks --classes=20,150 --json=masks.json
    python -m tcl_jax.bench masks --method=all --pamr=no --classes=20
    python -m tcl_jax.bench evaluate --classes=20,150 --json=evaluate.json

`input`: how long it takes to make a training image, step by step, and images per second by number
of worker processes.

`train`: time of a training step in both phases, images per second, MFU (the method's own FLOPs by
formula over time and the device's bfloat16 peak), the memory of the program, and the most that was
in use since the process began; with --trace which kinds of operations the time goes to. `masks`:
the same of a window's masks, with and without PAMR; with --method those of several methods on one
CLIP in turn, with the ratio of the times to MaskCLIP's in each round: the median, the lowest and
the highest. `evaluate`: images per second of an evaluation of drawn pictures, from file to counts.
All take the sizes of --config (configs/tcl.py if not given) and random weights, so that nothing is
downloaded; `masks` and `evaluate` also any model by name (--model=tips:B/14) with its own.

`train` and `masks` can measure the official PyTorch code beside this, with the same weights and
batch on the same device, in alternation and without data loading and logging, once the float32
results of both agree. They give the ratio of the times in each pair of rounds: the median, the
lowest and the highest. The code and a Python with its packages are the user's: PyTorch,
torchvision, omegaconf, einops, termcolor, ftfy, regex, setuptools below 70, and mmcv 1, which does
without its own operators (MMCV_WITH_OPS=0 pip install 'mmcv<2').

    git clone https://github.com/kakaobrain/tcl ../tcl
    python -m tcl_jax.bench train --batch_sizes=64,256 --dtype=bfloat16 \
        --against=../tcl --against_python=../tcl_env/bin/python --json=train.json

Where other programs used the machine in the minute before, all figures say that they are not final.

Exit codes: 0 done, 1 failure, or results that differ from the official code's, 2 bad input.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tcl_jax.bench.flags import COMMANDS, read_flags
from tcl_jax.config_flags import show_own_log
from tcl_jax.errors import InputError, run_command


def run(argv: Sequence[str]) -> None:
    """Chooses what to measure by the first argument."""
    load = os.getloadavg()[0]  # before anything is imported or computed here
    if argv and argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nThe flags: python -m tcl_jax.bench {'|'.join(COMMANDS)} --help")
        return
    if not argv or argv[0] not in COMMANDS:
        raise InputError(
            (f"there is no benchmark {argv[0]!r}" if argv else "say what is to be measured")
            + f": one of {', '.join(COMMANDS)}, as in\n  python -m tcl_jax.bench masks"
        )
    flags = read_flags(argv[0], argv[1:], __doc__, load)
    # Imported here so that --help and mistakes in flags are answered at once, and alone, since a
    # machine that measures steps and masks need not have what an evaluation reads images with.
    if argv[0] == "input":
        from tcl_jax.bench.input import bench_input as measure
    elif argv[0] == "train":
        from tcl_jax.bench.train import bench_train as measure
    elif argv[0] == "masks":
        from tcl_jax.bench.masks import bench_masks as measure
    else:
        from tcl_jax.bench.evaluate import bench_evaluate as measure
    measure(flags)


if __name__ == "__main__":
    show_own_log()
    run_command(lambda: run(sys.argv[1:]))
