r"""Evaluates a model on segmentation benchmarks, as published scores are made.

    python -m tcl_jax.evaluate --clip=ViT-B/16 --tcl=official --data=data --output=results
    python -m tcl_jax.evaluate --checkpoint=runs/tcl --data=data --output=results \
        --benchmarks=voc20,ade20k --method=tcl,maskclip --no-pamr
    python -m tcl_jax.evaluate --model=tips:B/14 --protocol=tcl --data=data --output=results
    python -m tcl_jax.evaluate --checkpoint=runs/tcl --output=mine --benchmark=mine.toml
    python -m tcl_jax.evaluate --checkpoint=runs/tcl --output=mine --images=photos \
        --labels=masks --classes=names.txt
    python -m tcl_jax.evaluate --checkpoint=runs/tcl --output=chosen --benchmark=mine.toml \
        --threshold=best --split=val
    python -m tcl_jax.evaluate --checkpoint=runs/tcl --output=final --benchmark=mine.toml \
        --threshold=best:chosen --split=test
    python -m tcl_jax.evaluate --compare results/tcl results/maskclip

The data folder holds the usual trees (VOCdevkit, ade, cityscapes, coco_stuff164k): see
`python -m tcl_jax.benchmarks check`. Without --benchmarks all that are there are taken. The output
folder gets results.json, results.md, report.html and pictures; with several methods there is a
folder for each, and the report shows what all of them find in the same images. Stop it and give the
same command again to go on. Exit codes: 0 done, 1 failure, 2 bad input.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tcl_jax.commands import (
    add_model_flags,
    add_process_flags,
    add_refine_flags,
    add_templates_flag,
    command_parser,
    read_templates,
    share,
)
from tcl_jax.errors import InputError, run_command
from tcl_jax.inference.presets import PROTOCOLS, load_preset

if TYPE_CHECKING:
    from tcl_jax.evaluation.benchmark import Benchmark
    from tcl_jax.evaluation.examples import DatasetIndex

PROTOCOL = (
    "protocol", "refine", "kp_weight", "threshold", "logit_scale", "area_threshold", "templates",
    "normalize_sentences", "short_side", "window", "stride", "resize", "pixels", "scores", "dtype",
)  # fmt: skip
MODEL = (
    "checkpoint", "model", "clip", "tcl", "activation", "prefix", "tokenizer_file", "refine",
    "kp_weight", "short_side",
)  # fmt: skip
"""Flags of the model and its masks that `segment` has, too."""
UNKNOWN = {*PROTOCOL} - {*MODEL, "threshold", "templates", "dtype"}
"""Flags of a protocol that `segment` has not, and by which thresholds differ."""
FOLDERS = ("images", "labels", "classes")
CODING = ("background", "reduce_zero_label", "ignore", "exif")
"""Flags of a benchmark that is made of folders: what it needs, and what it may have."""


def names(text: str) -> list[str]:
    """A flag's values between commas."""
    return text.split(",")


def label_values(text: str) -> list[int]:
    """A flag's numbers between commas."""
    return [int(value) for value in names(text)]


def thresholds(text: str) -> float | str | dict[str, float]:
    """A flag's `commands.threshold`, or "best", or one for each of several methods, as tcl=0.5."""
    if text == "best" or (text.startswith("best:") and text != "best:"):
        return text
    pairs = [part.partition("=")[::2] for part in names(text)]
    if "=" in text and len(dict(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text} names a method more than once")
    try:
        by_method = {method.strip(): share(value) for method, value in pairs if "=" in text}
        return by_method or share(text)
    except ValueError as error:
        kinds = "a number, METHOD=N,..., best and best:DIR"
        raise argparse.ArgumentTypeError(f"{text} is none of {kinds}") from error


def positive(text: str) -> float:
    """A flag's number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("evaluate", __doc__)
    add_model_flags(p, several_methods=True)
    p.add_argument("--output", metavar="DIR", help="folder for the results")
    p.add_argument("--compare", nargs=2, metavar="DIR", help="two results, instead of a model")
    data = p.add_argument_group("data")
    data.add_argument("--data", metavar="DIR", default="data", help="folder of the benchmarks")
    data.add_argument(
        "--benchmarks", type=names, metavar="NAMES", help="built-in ones, separated by commas"
    )
    data.add_argument("--split", help="another part than val, such as train")
    own = p.add_argument_group("your own benchmark")
    own.add_argument(
        "--benchmark",
        action="extend",
        nargs="+",
        default=[],
        metavar="FILE.toml",
        help="its description (tcl_jax/evaluation/benchmark_schema.py has the schema); or else:",
    )
    own.add_argument("--images", metavar="DIR", help="its images")
    own.add_argument("--labels", metavar="DIR", help="its labels, PNGs with a class a pixel")
    own.add_argument(
        "--classes",
        metavar="FILE",
        help="a class a line, synonyms after commas; its label value before a colon, as `7: cat`, "
        "if they do not count on from 0 (tcl_jax/data/name_file.py has the format)",
    )
    own.add_argument("--background", action="store_true", help="label 0 is none of the classes")
    own.add_argument("--reduce_zero_label", action="store_true", help="label 0 is ignored")
    own.add_argument(
        "--ignore",
        type=label_values,
        metavar="N",
        help="label values that are ignored, with commas, instead of 255",
    )
    own.add_argument(
        "--exif", choices=("apply", "ignore"), help="of photos' EXIF orientation; default: apply"
    )
    how = p.add_argument_group("protocol, by default the model's own")
    how.add_argument(
        "--protocol",
        metavar="NAME",
        help="own (default), or whose authors' sizes, windows, prompts, words and label rule: "
        f"{', '.join(PROTOCOLS)}; the flags below go before it",
    )
    add_refine_flags(how)
    how.add_argument("--kp_weight", type=share, help="share of CLIP's own dense prediction")
    how.add_argument(
        "--threshold",
        type=thresholds,
        metavar="N|METHOD=N,...|best|best:DIR",
        help="score of the background, or least probability of a class; of several methods each "
        "may have its own, as tcl=0.5,maskclip=0.4; best: all are counted at once and the best is "
        "taken, for every method; best:DIR: those in these results, or of a run that was judged on "
        "held-out pairs",
    )
    how.add_argument(
        "--logit_scale", type=positive, help="what cosines are multiplied by before the softmax"
    )
    how.add_argument(
        "--area_threshold",
        type=share,
        help="share of what is not background that a class must exceed",
    )
    add_templates_flag(how)
    how.add_argument("--short_side", type=int, help="pixels the short side is resized to")
    how.add_argument(
        "--window", type=int, help="side of the sliding windows, 0 for whole images; the short side"
    )
    how.add_argument("--stride", type=int, help="their distance; half a window")
    how.add_argument("--resize", help="of images: opencv (bilinear) or pillow (bicubic)")
    how.add_argument("--pixels", help="whose mean and deviation CLIP's pixels have: imagenet, clip")
    how.add_argument(
        "--normalize_sentences",
        action=argparse.BooleanOptionalAction,
        help="whether CLIP's prompts of a name are normalised before their mean is taken",
    )
    how.add_argument("--scores", help="what windows are merged of: masks, cosines, probabilities")
    how.add_argument("--dtype", choices=("float32", "bfloat16"), help="default float32")
    p.add_argument("--batch_size", type=int, help="windows that a device computes together")
    add_process_flags(p)
    return p


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to a report."""
    flags = parser().parse_args(argv)
    if flags.compare is not None:
        from tcl_jax.evaluation.comparison import compare

        print(compare(*(Path(path) for path in flags.compare)))
        return
    if not flags.output:
        raise InputError(
            "--output is needed, as in\n  python -m tcl_jax.evaluate --checkpoint=runs/tcl "
            "--data=data --output=results"
        )
    if flags.batch_size is not None and flags.batch_size < 1:
        raise InputError(f"--batch_size={flags.batch_size} must be at least 1")
    # Imported here so that --help and mistakes in flags are answered at once.
    from tcl_jax.commands import load_model_from
    from tcl_jax.evaluation.report import summary_table, threshold_tables
    from tcl_jax.evaluation.run import evaluate
    from tcl_jax.models.methods import method_of
    from tcl_jax.parallel.processes import raise_on_all_processes, start_processes

    # Before weights are downloaded.
    if flags.protocol not in (None, "own"):
        load_preset(flags.protocol)
    prompts, flags.templates = flags.templates, read_templates(flags.templates)
    methods = names(flags.method) if flags.method else None
    for method in methods or ():
        method_of(method, "--method")
    for method in flags.threshold if isinstance(flags.threshold, dict) else ():
        method_of(method, "--threshold")
    start_processes(flags.coordinator, flags.num_processes, flags.process_id)
    indices = raise_on_all_processes(lambda: find_benchmarks(flags))
    import jax

    found = evaluate(
        raise_on_all_processes(lambda: load_model_from(flags)),
        indices,
        flags.output,
        methods=methods,
        batch_size=flags.batch_size,
        tokenizer_file=flags.tokenizer_file,
        **{name: getattr(flags, name) for name in PROTOCOL},
    )
    if jax.process_index() == 0:
        print(summary_table(found))
        if thresholds := threshold_tables(found):
            print(thresholds)
        print(f"results: {Path(flags.output) / 'report.html'}")
        if thresholds:
            flags.templates = prompts
            print(_next_command(flags, indices))


def _next_command(flags: argparse.Namespace, indices: Sequence[DatasetIndex]) -> str:
    """What takes the thresholds that were found: `segment`, of which an own protocol is known."""
    best = f"--threshold=best:{flags.output}"
    splits = any(index.benchmark.has_splits for index in indices)
    where = "on another --split" if splits else "on other images"
    if any(getattr(flags, name) not in (None, "own") for name in UNKNOWN):
        return f"next: `evaluate` takes these thresholds with {best} {where}"
    index = next(index for index in indices if index.benchmark.background)
    words = [f"--{x}={value}" for x in MODEL if (value := getattr(flags, x)) not in (None, "")]
    words += [f"--weights={part}={file}" for part, file in flags.weights]
    words += [f"--templates={prompt}" for prompt in flags.templates or ()]
    words += [f"--method={names(flags.method)[0]}"] if flags.method else []
    words += [best, f"--image={index.examples[0].image}"]
    words += [f"--text={synonyms[0]}" for synonyms in index.benchmark.classes[:3]]
    return (
        f"next, masks by these thresholds, which `evaluate` takes by the same flag {where}:\n"
        f"  python -m tcl_jax.segment {shlex.join(words)} --output=out"
    )


# -------------------------------------------------------------------------------------- benchmarks


def find_benchmarks(flags: argparse.Namespace) -> list[DatasetIndex]:
    """The benchmarks that the flags name and their files; by default all built-in ones there are.

    Raises:
        InputError: if one is unknown or not there, or there is none.
    """
    from tcl_jax.evaluation.benchmark import BENCHMARKS, describe_labels, load_benchmark
    from tcl_jax.evaluation.examples import list_examples

    own = [load_benchmark(path, split=flags.split) for path in flags.benchmark]
    own += _from_folders(flags)
    for benchmark in own:
        print(describe_labels(benchmark))
        if flags.split and not benchmark.has_splits:
            raise InputError(
                f"--split={flags.split!r}: benchmark {benchmark.name!r} has no {{split}} in its "
                "paths, so there is no other part of it"
            )
    built_in = flags.benchmarks or ([] if own else BENCHMARKS)
    benchmarks = [*(load_benchmark(name, split=flags.split) for name in built_in), *own]
    sources = [f"--benchmarks={name}" for name in built_in]
    sources += [f"--benchmark={path}" for path in flags.benchmark]
    known: dict[str, str] = {}
    for benchmark, source in zip(benchmarks, [*sources, "--images"], strict=False):
        if other := known.get(benchmark.name):
            raise InputError(
                f"{other} and {source} are both {benchmark.name!r}, by which results are told "
                "apart; leave one out, or give one of two .toml files another name, in its key "
                "name or as a file"
            )
        known[benchmark.name] = source
    indices = [list_examples(benchmark, flags.data) for benchmark in benchmarks]
    if flags.benchmarks or own:
        return indices
    there = [index for index in indices if index.examples]
    how = f"`python -m tcl_jax.benchmarks check --data={flags.data}` says where files belong"
    if not there:
        raise InputError(f"--data={flags.data!r} holds none of the benchmarks; {how}")
    if absent := [index.benchmark.name for index in indices if not index.examples]:
        print(f"not there and left out: {', '.join(absent)} ({how})")
    return there


def _from_folders(flags: argparse.Namespace) -> list[Benchmark]:
    """The benchmark that --images, --labels and --classes make, if they are given."""
    from tcl_jax.evaluation.benchmark import custom_benchmark

    folders = {name: getattr(flags, name) for name in FOLDERS}
    coding = {name: getattr(flags, name) for name in CODING}
    given = [f"--{name}" for name, value in {**folders, **coding}.items() if value]
    missing = [f"--{name}" for name, value in folders.items() if value is None]
    if given and missing:
        raise InputError(
            f"{', '.join(given)} without {', '.join(missing)}: a benchmark of your own needs "
            "--images, --labels and --classes; in a TOML file, keys have these names"
        )
    return [custom_benchmark(**folders, split=flags.split, **coding)] if given else []


if __name__ == "__main__":
    run_command(run)
