r"""The data of the benchmarks: what is there, and the labels that have to be made.

    python -m tcl_jax.benchmarks check --data=data               all: what is missing where
    python -m tcl_jax.benchmarks check --data=data voc my.toml   these alone
    python -m tcl_jax.benchmarks prepare --data=data coco_object cityscapes

`check` goes by names and takes seconds; with --deep it looks into all files. `prepare` derives the
labels of context, context59, coco_object, coco_stuff and cityscapes from the published ones, into
the same folders; stopped, it goes on where it was. Exit codes: 0 done; 1 something is missing or
could not be made, and the rest is done; 2 bad input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcl_jax.commands import command_parser
from tcl_jax.errors import RunError, run_command


def parser() -> argparse.ArgumentParser:
    """The sub-commands and their flags."""
    p = command_parser("benchmarks", __doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="what is there, what is missing and where it goes")
    prepare = commands.add_parser("prepare", help="make the labels that are not published as such")
    check.add_argument("names", nargs="*", metavar="NAME", help="or a .toml; all if none")
    prepare.add_argument("names", nargs="+", metavar="NAME")
    for command in (check, prepare):
        command.add_argument("--data", default="data", metavar="DIR", help="default: data")
        command.add_argument("--split", help="val or train; default: the benchmark's, val")
    check.add_argument("--deep", action="store_true", help="look into all images and labels too")
    return p


def check(flags: argparse.Namespace) -> None:
    """`check`."""
    from tcl_jax.evaluation.benchmark import BENCHMARKS, load_benchmark
    from tcl_jax.evaluation.examples import describe_dataset, list_examples, verify_examples

    incomplete = 0
    benchmarks = [load_benchmark(name, split=flags.split) for name in flags.names or BENCHMARKS]
    for i, benchmark in enumerate(benchmarks):
        index = list_examples(benchmark, flags.data)
        if flags.deep:
            index = verify_examples(index, progress=True)
        print("\n" * bool(i) + describe_dataset(index), flush=True)
        incomplete += not index.is_complete
    if incomplete:
        raise RunError(f"{incomplete} of {len(benchmarks)} are incomplete, see above")


def prepare(flags: argparse.Namespace) -> None:
    """`prepare`."""
    from tcl_jax.evaluation.benchmark import load_benchmark
    from tcl_jax.evaluation.prepare import find_sources, make_labels, needs_preparation

    wrong = []
    benchmarks = [load_benchmark(name, split=flags.split) for name in flags.names]
    sources = [
        find_sources(one, flags.data) if needs_preparation(one) else {} for one in benchmarks
    ]
    for benchmark, found in zip(benchmarks, sources, strict=True):
        title = f"{benchmark.name} {benchmark.split}"
        if not found:
            print(f"{title}: nothing to prepare, its labels are published")
            continue
        try:
            made = make_labels(benchmark, found)
            print(f"{title}: {len(found)} labels are there, of which {made} were made now")
        except RunError as error:
            wrong.append(str(error))
    if wrong:
        raise RunError("; ".join(wrong) + ". All others are done")


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    flags = parser().parse_args(argv)
    {"check": check, "prepare": prepare}[flags.command](flags)


if __name__ == "__main__":
    run_command(run)
