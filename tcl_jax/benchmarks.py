r"""The data of the benchmarks: what is there, and the labels that have to be made.

    python -m tcl_jax.benchmarks check --data=data               all: what is missing where
    python -m tcl_jax.benchmarks check --data=data voc my.toml   these alone
    python -m tcl_jax.benchmarks prepare --data=data coco_object cityscapes

`check` goes by names and takes seconds; with --deep it looks into all files. `prepare` derives the
labels of context, context59, coco_object, coco_stuff and cityscapes from the published ones, into
the same folders; stopped, it goes on where it was. Exit codes: 0 all there; 1 something is missing
or could not be made, and the rest is done; 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tcl_jax.commands import command_parser
from tcl_jax.errors import InputError, RunError, run_command
from tcl_jax.parallel.cores import available_cores

if TYPE_CHECKING:
    from tcl_jax.evaluation.benchmark import Benchmark
    from tcl_jax.evaluation.prepare import Plan

_SHOWN_FAILURES = 50


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
        command.add_argument("--split", help="val, train or all; default: the benchmark's, val")
    check.add_argument("--deep", action="store_true", help="look into all images and labels too")
    prepare.add_argument("--mat", metavar="DIR", help="of context: the folder of the .mat files")
    prepare.add_argument(
        "--threads", type=int, default=available_cores(), help="default: one a processor"
    )
    return p


def load(names: Sequence[str], split: str | None) -> list[Benchmark]:
    """The benchmarks of --split; all of their splits if it is "all"."""
    from tcl_jax.evaluation.benchmark import load_benchmark

    loaded: list[Benchmark] = []
    for name in dict.fromkeys(names):
        if split != "all":
            loaded.append(load_benchmark(name, split=split))
            continue
        one = load_benchmark(name)
        splits = one.splits or one.folders or (one.split,)
        loaded += [load_benchmark(name, split=each) for each in splits]
    return loaded


def check(flags: argparse.Namespace) -> None:
    """`check`."""
    from tcl_jax.evaluation.benchmark import BENCHMARKS
    from tcl_jax.evaluation.dataset_check import check_dataset, describe_dataset, is_complete

    incomplete = 0
    benchmarks = load(flags.names or BENCHMARKS, flags.split)
    for i, benchmark in enumerate(benchmarks):
        index = check_dataset(benchmark, flags.data, deep=flags.deep)
        print("\n" * bool(i) + describe_dataset(index), flush=True)
        incomplete += not is_complete(index)
    if incomplete:
        raise RunError(f"{incomplete} of {len(benchmarks)} are incomplete, see above")


def prepare(flags: argparse.Namespace) -> None:
    """`prepare`."""
    from tcl_jax.evaluation.prepare import make_labels, needs_preparation

    if flags.threads < 1:
        raise InputError(f"--threads={flags.threads} must be 1 or more")
    plans: list[Plan] = []
    for benchmark in load(flags.names, flags.split):
        if needs_preparation(benchmark) and (plan := find_plan(benchmark, flags)) is not None:
            plans.append(plan)
        else:
            print(f"{benchmark.name} {benchmark.split}: nothing to prepare, its labels are there")
    wrong = []
    for plan in plans:
        name = f"{plan.benchmark.name} {plan.benchmark.split}"
        try:
            done = make_labels(plan, threads=flags.threads, progress=True)
        except KeyboardInterrupt:
            print(f"{name}: the same command goes on from here", file=sys.stderr)
            raise
        print(
            f"{name}: {done.made + done.kept} of {plan.expected} labels are there, {done.kept} of "
            f"them before, in {plan.folder}"
        )
        if plan.image_list is not None:
            path, keys = plan.image_list
            print(
                f"the list {path} is that of PASCAL VOC 2010 with {len(keys)} images; "
                "mmsegmentation's, made of trainval_merged.json, has "
                f"{plan.benchmark.splits[plan.benchmark.split]}: if you have it, put it there"
            )
        for message in done.failed[:_SHOWN_FAILURES]:
            print(f"failed: {message}", file=sys.stderr)
        if done.failed:
            wrong.append(
                f"{name}: {len(done.failed)} could not be made, of which the first are above"
            )
        if len(plan.sources) != plan.expected:
            wrong.append(
                f"{name}: {len(plan.sources)} sources are there, and {plan.expected} should be"
            )
    if wrong:
        raise RunError("; ".join(wrong) + ". All others are done")


def find_plan(benchmark: Benchmark, flags: argparse.Namespace) -> Plan | None:
    """How to make the labels; None if they are there while their sources are not."""
    from tcl_jax.evaluation.examples import list_examples
    from tcl_jax.evaluation.prepare import plan_labels

    try:
        return plan_labels(benchmark, flags.data, mat=flags.mat)
    except InputError:
        index = list_examples(benchmark, flags.data)
        if index.total is None or index.labels < index.total:
            raise
        return None


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    flags = parser().parse_args(argv)
    {"check": check, "prepare": prepare}[flags.command](flags)


def main() -> None:
    """Entry point."""
    run_command(run)


if __name__ == "__main__":
    main()
