"""Flags of the bench commands, and mistakes in them, which are answered before JAX is imported."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence

from tcl_jax.commands import add_named_flags, command_parser
from tcl_jax.config_flags import add_config_flag, read_config
from tcl_jax.errors import InputError
from tcl_jax.files import user_path

CONFIG = "configs/tcl.py"
"""What is measured if nothing else is named."""
PAMR = {"no": (False,), "yes": (True,), "both": (False, True)}
"""Values of --pamr, and the cases that they name."""
MAX_CLASSES = 254

Parsed = tuple[argparse.Namespace, list[str]]


def read_flags(
    command: str, argv: Sequence[str], doc: str | None, load: float
) -> argparse.Namespace:
    """The flags of a command.

    Args:
        command: a key of `COMMANDS`.
        load: of the machine before the start.

    Returns:
        All of them; `config` is the config itself, None where --model names what is measured.

    Raises:
        InputError: they, or the config, cannot be used.
    """
    p = command_parser(f"bench {command}", doc)
    add_config_flag(p)
    p.set_defaults(config=CONFIG, load=load, model=None, weights=[], against=None)
    p.add_argument("--json", metavar="FILE", help="also write all figures as JSON")
    flags, rest = COMMANDS[command](p, argv)
    if flags.model is None and flags.weights:
        raise InputError("--weights belongs to --model, whose parts it names")
    if flags.model is not None and (rest or flags.against):
        raise InputError(
            f"--model={flags.model!r} is measured with its own weights, which --weights may name, "
            f"and alone; leave {', '.join(rest) or '--against'} out"
        )
    if flags.against is not None:
        _prepare_against(flags.against)
    config = None if flags.model else read_config(flags.config, rest, f"bench {command}")
    flags.config = config
    return flags


def numbers(text: str) -> tuple[int, ...]:
    """A flag's positive whole numbers, separated by commas."""
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return values


def count(text: str) -> int:
    """A flag's positive whole number."""
    (value,) = numbers(text)
    return value


def _input(p: argparse.ArgumentParser, argv: Sequence[str]) -> Parsed:
    p.add_argument(
        "--seconds", type=float, default=10.0,
        help="how long to measure the steps, and each number of workers (default 10)",
    )  # fmt: skip
    p.add_argument(
        "--workers", type=int, metavar="N",
        help="most worker processes; 0: all in one process; default: as many as there are cores",
    )  # fmt: skip
    flags, rest = p.parse_known_args(argv)
    if flags.workers is not None and flags.workers < 0:
        raise InputError(f"--workers={flags.workers}: must be at least 0")
    if not 0 < flags.seconds < float("inf"):
        raise InputError(f"--seconds={flags.seconds}: must be a positive number of seconds")
    return flags, rest


def _train(p: argparse.ArgumentParser, argv: Sequence[str]) -> Parsed:
    _add_model_flags(p)
    _add_round_flags(p, "steps", 10)
    p.add_argument("--batch_sizes", type=numbers, default=(64,), metavar="LIST", help="default 64")
    p.add_argument("--phases", type=numbers, default=(1, 2), metavar="LIST", help="default 1,2")
    p.add_argument(
        "--trace",
        action="store_true",
        help="also say, by JAX's profiler, which kinds of operations the time goes to",
    )
    _add_against_flags(p)
    flags, rest = p.parse_known_args(argv)
    if max(flags.phases) > 2:
        raise InputError(f"--phases={','.join(map(str, flags.phases))}: there are 1 and 2")
    return flags, rest


def _masks(p: argparse.ArgumentParser, argv: Sequence[str]) -> Parsed:
    _add_model_flags(p)
    _add_round_flags(p, "calls", 5)
    p.add_argument("--windows", type=numbers, metavar="LIST", help="sides in pixels (default 448)")
    p.add_argument(
        "--classes", type=numbers, default=(20, 150), metavar="LIST", help="default 20,150"
    )
    p.add_argument("--pamr", choices=PAMR, default="both", help="default both")
    p.add_argument(
        "--batch_sizes", type=numbers, default=(1,), metavar="LIST", help="windows (default 1)"
    )
    p.add_argument(
        "--method",
        metavar="all|NAMES",
        help="methods on the same CLIP, separated by commas, each in turn with MaskCLIP; what they "
        "need besides is random",
    )
    add_named_flags(p, "instead of --config, with its own weights: ")
    _add_against_flags(p)
    flags, rest = p.parse_known_args(argv)
    if flags.method and flags.against:
        raise InputError("--method measures methods beside each other; leave --against out")
    return flags, rest


def _evaluate(p: argparse.ArgumentParser, argv: Sequence[str]) -> Parsed:
    _add_model_flags(p)
    p.add_argument(
        "--classes", type=numbers, default=(20, 150), metavar="LIST", help="default 20,150"
    )
    p.add_argument("--images", type=count, default=16, help="in each case (default 16)")
    add_named_flags(p, "instead of --config, with its own weights: ")
    flags, rest = p.parse_known_args(argv)
    if not 2 <= min(flags.classes) <= max(flags.classes) <= MAX_CLASSES:
        listed = ",".join(map(str, flags.classes))
        raise InputError(f"--classes={listed}: must be between 2 and {MAX_CLASSES}")
    return flags, rest


COMMANDS: Mapping[str, Callable[[argparse.ArgumentParser, Sequence[str]], Parsed]] = {
    "input": _input, "train": _train, "masks": _masks, "evaluate": _evaluate,
}  # fmt: skip


def _add_model_flags(p: argparse.ArgumentParser) -> None:
    """--dtype and --load."""
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="to compute in; default: the config's, on a CPU float32",
    )
    p.add_argument(
        "--load",
        type=float,
        help="of the machine before the first of several measurements (default: what it is now)",
    )


def _add_round_flags(p: argparse.ArgumentParser, name: str, calls: int) -> None:
    """--rounds, --warmup, and how many calls a round has."""
    p.add_argument("--rounds", type=count, default=5, help="of which the median counts (default 5)")
    p.add_argument("--warmup", type=count, default=3, help="calls that do not count (default 3)")
    p.add_argument(
        f"--{name}", type=count, default=calls, dest="calls", help=f"of a round (default {calls})"
    )


def _add_against_flags(p: argparse.ArgumentParser) -> None:
    """--against and what belongs to it."""
    group = p.add_argument_group("beside the official PyTorch code")
    group.add_argument(
        "--against",
        metavar="PATH",
        help="a checkout of the official code; its float32 results are compared first, then both "
        "are timed in alternation on the first device, in one precision (there by autocast)",
    )
    group.add_argument(
        "--against_python",
        metavar="FILE",
        default="python3",
        help="the Python that has PyTorch and the official code's packages (default python3)",
    )


def _prepare_against(path: str) -> None:
    if not (user_path(path) / "models/tcl/tcl.py").is_file():
        raise InputError(
            f"--against={path!r} is no checkout of the official code: it has no "
            "models/tcl/tcl.py. Get it with `git clone https://github.com/kakaobrain/tcl`"
        )
    # Both processes need memory of one GPU, of which JAX would take most at once when it starts.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
