r"""Measures how fast parts of the method are on this machine.

    python -m tcl_jax.bench input
    python -m tcl_jax.bench input --config=configs/tcl.py \
        --config.data.shards="('data/cc3m/*.tar',)" --json=input.json
    python -m tcl_jax.bench train --batch_sizes=64,256 --json=train.json
    python -m tcl_jax.bench masks --classes=20,150 --json=masks.json
    python -m tcl_jax.bench evaluate --classes=20,150 --json=evaluate.json

`input`: images per second of one core for the making of training images, stage by stage, beside
the bare loop (Pillow decodes, crops and resizes), where the time goes, and how the whole scales
with worker processes. Without a config, or where its shards are not there, it draws pictures that
cost as much as photographs. Takes about a minute.

`train`: time of a training step in both phases, images per second, MFU (the method's own FLOPs by
formula over time and the device's peak), memory, and the time of the parts. `masks`: the same of a
window's masks, with and without PAMR. `evaluate`: images per second of judging made-up images from
file to counts, and what devices and host need of it. All take ViT-B/16 unless --variant, --config
or weights say otherwise, and random weights unless they are given, so that nothing is downloaded.

`train` and `masks` can measure the official PyTorch code beside this, with the same weights and
batch on the same device, in alternation, and give ratios of times, once the float32 results of both
agree. The code and a Python with its packages (PyTorch, torchvision, mmcv 1, omegaconf, einops,
termcolor, ftfy, regex, setuptools below 70) are the user's:

    git clone https://github.com/kakaobrain/tcl ../tcl
    python -m tcl_jax.bench train --batch_sizes=64,256 --dtype=bfloat16 \
        --against=../tcl --against_python=../tcl_env/bin/python --json=train.json
    python -m tcl_jax.bench masks --classes=20,150 --dtype=bfloat16 \
        --against=../tcl --against_python=../tcl_env/bin/python --json=masks.json

Exit codes: 0 done, 1 failure, or results that differ from the official code's, 2 bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from tcl_jax.bench.evaluate import bench_evaluate
from tcl_jax.bench.input import bench_input
from tcl_jax.bench.masks import bench_masks
from tcl_jax.bench.train import bench_train
from tcl_jax.config_flags import show_own_log
from tcl_jax.errors import InputError, run_command

COMMANDS: Mapping[str, Callable[[Sequence[str], str | None], None]] = {
    "input": bench_input,
    "train": bench_train,
    "masks": bench_masks,
    "evaluate": bench_evaluate,
}


def run(argv: Sequence[str]) -> None:
    """Chooses what to measure by the first argument."""
    if argv and argv[0] in ("-h", "--help"):
        print(f"{__doc__}\nThe flags: python -m tcl_jax.bench {'|'.join(COMMANDS)} --help")
        return
    if not argv or argv[0] not in COMMANDS:
        raise InputError(
            (f"there is no benchmark {argv[0]!r}" if argv else "say what is to be measured")
            + f": one of {', '.join(COMMANDS)}, as in\n  python -m tcl_jax.bench input"
        )
    COMMANDS[argv[0]](argv[1:], __doc__)


def main() -> None:
    """Entry point."""
    show_own_log()
    run_command(lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
