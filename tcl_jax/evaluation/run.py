"""An evaluation from a model and data to a report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from tcl_jax.checkpoints.leaves import hash_leaves
from tcl_jax.errors import InputError, as_input_error, shorten
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.evaluator import Evaluator, evaluate_benchmark, share_of
from tcl_jax.evaluation.examples import DatasetIndex, describe_dataset, verify_examples
from tcl_jax.evaluation.protocol import (
    Protocol,
    differences,
    embed_texts,
    fingerprint,
    make_protocol,
)
from tcl_jax.evaluation.report import write_report
from tcl_jax.evaluation.report_pictures import write_pictures
from tcl_jax.evaluation.results import (
    PAIRS_FILE,
    RESULTS_FILE,
    BenchmarkResult,
    Evaluated,
    read_results,
    write_results,
)
from tcl_jax.evaluation.score_log import ScoreLog
from tcl_jax.evaluation.thresholds import BEST
from tcl_jax.files import short_hash, user_path, why_unwritable
from tcl_jax.inference.model import Model
from tcl_jax.inference.texts import text_encoder_of
from tcl_jax.models.layers import compute_dtype
from tcl_jax.models.method import Method
from tcl_jax.models.methods import METHODS
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.parallel.lock import alone_in
from tcl_jax.parallel.processes import check_same, raise_on_all_processes


def evaluate(
    model: Model,
    indices: Sequence[DatasetIndex],
    output: str | Path,
    *,
    methods: Sequence[str] | None = None,
    batch_size: int | None = None,
    tokenizer_file: str | None = None,
    text_embeddings: Mapping[str, np.ndarray] | None = None,
    progress: bool = True,
    **choices: Any,
) -> dict[str, Evaluated]:
    """Evaluates a model on benchmarks and writes the report; goes on where it was stopped.

    With several processes, each calls it and scores a share of the images.

    Args:
        model: from `inference.model.load_model` or `model_from_torch`.
        indices: the benchmarks and their files, from `examples.list_examples`.
        output: folder for results.md and report.html, and of each method (in a folder of its name
            if there are several) results.json, pictures and the counts so far.
        methods: keys of `models.methods.METHODS`; None: the model's own.
        batch_size: windows that a device computes together.
        tokenizer_file: see `inference.segmenter.Segmenter`.
        text_embeddings: [n, d] by name of a benchmark, instead of embeddings of its class names.
        progress: whether to show bars.
        choices: see `protocol.make_protocol`: a named protocol, and fields that are not the
            model's own, each for all methods or as a dict by method.

    Returns:
        What was found, by the methods' names for tables.

    Raises:
        InputError: if the data cannot be scored as it is (the message lists everything), a choice
            is out of its range, or `output` holds a best threshold, or
            the results of a run on drawn scenes, that would be lost.
        RunError: if a file cannot be read any more; what was scored is kept.
    """
    output = user_path(output).absolute()

    def check_output() -> None:
        if why := why_unwritable(output):
            raise InputError(f"output {str(output)!r}: {why}; choose another folder")

    raise_on_all_processes(check_output)
    check_same_images(indices)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
    model = dataclasses.replace(model, params=params)
    models = [model.with_method(method) for method in methods or [model.method.name]]
    evaluated = [chosen.method.name for chosen in models]
    for name, value in choices.items():
        if isinstance(value, Mapping) and (others := [x for x in value if x not in evaluated]):
            raise InputError(
                f"{name} is given for {', '.join(others)}; evaluated are {', '.join(evaluated)}"
            )
    _check_kept(choices.get("threshold"), output)
    protocols = raise_on_all_processes(
        lambda: [
            make_protocol(chosen, **_choices_of(name, choices))
            for chosen, name in zip(models, evaluated, strict=True)
        ]
    )
    if len({chosen.method.name for chosen in models}) < len(models):
        raise InputError(f"methods {', '.join(methods or ())}: one is given more than once")
    if protocols[0].search and not any(index.benchmark.background for index in indices):
        names = ", ".join(index.benchmark.name for index in indices)
        raise InputError(
            f"threshold 'best': there is none to choose where no benchmark has a background, as "
            f"{names}; leave it out, or say with --background that label 0 is none of the classes"
        )
    embedded = text_embeddings or {}
    for protocol in protocols:
        for index in indices:
            protocol.of(index.benchmark)
        _check_embeddings(embedded, indices, protocol, model.method.embed_dim)
    progress = progress and jax.process_index() == 0

    made: dict[tuple[TextEncoder, Any, tuple[str, ...]], np.ndarray] = {}

    def texts_of(method: Method, protocol: Protocol, benchmark: Benchmark) -> np.ndarray:
        if benchmark.name in embedded:
            return np.asarray(embedded[benchmark.name], np.float32)
        # Methods on one CLIP have its texts in common.
        encoder = text_encoder_of(method, protocol)
        key = encoder, protocol.templates, protocol.texts_of(benchmark)
        if key not in made:
            made[key] = embed_texts(
                protocol,
                method,
                params,
                benchmark,
                tokenizer_file=tokenizer_file,
                progress=progress,
            )
        return made[key]

    found: dict[str, Evaluated] = {}
    first: dict[str, BenchmarkResult] = {}
    with alone_in(output, f"output {str(output)!r}"):
        runs = []
        for chosen, protocol in zip(models, protocols, strict=True):
            identity = fingerprint(
                protocol,
                chosen,
                hash_leaves(chosen.params),
                indices,
                tokenizer_file=tokenizer_file,
                text_embeddings=text_embeddings,
            )
            check_same("weights", identity["weights"], "Give every process the same, by their path")
            check_same("protocol", identity["hash"], "Give every process the same flags and files")
            folder = output / chosen.method.name if len(models) > 1 else output
            raise_on_all_processes(
                functools.partial(_check_replaced, folder, identity, searches=protocol.search)
            )
            logs = {
                index.benchmark.name: _open_log(
                    folder / "progress", index.benchmark, identity, protocol
                )
                for index in indices
            }
            runs.append(_MethodRun(chosen, protocol, identity, folder, logs))
        check(indices, [run.logs for run in runs], progress=progress)
        for run in runs:
            one = _evaluate_method(run, indices, texts_of, batch_size, first, progress=progress)
            found[run.protocol.title], first = one, first or one.results
        _write_on_process_0(output, lambda: write_report(output, found))
    return found


def _check_kept(threshold: Any, output: Path) -> None:
    """Refuses to write where the thresholds are read, which would be gone then."""
    if not str(threshold).startswith(f"{BEST}:"):
        return
    found = user_path(threshold.removeprefix(f"{BEST}:")).absolute()
    of_method = found.name in METHODS and not (found / PAIRS_FILE).is_file()
    above = found.parent if of_method else found
    if output in (found, above) or (output.parent == found and output.name in METHODS):
        raise InputError(
            f"threshold {threshold!r} is read from what output {str(output)!r} would overwrite; "
            "choose another output"
        )


def _check_replaced(folder: Path, identity: Mapping[str, Any], *, searches: bool) -> None:
    """Says that results of other settings are replaced; refuses to lose a run's or a threshold."""
    if _draws_scenes(folder):
        raise InputError(
            f"output {str(folder)!r} is the workdir of a run on drawn scenes, whose {RESULTS_FILE} "
            "this evaluation would replace; choose another output, such as "
            f"{f'{folder}_scores'!r}"
        )
    try:
        stored = read_results(folder)
    except InputError:  # there are none, or none that can be taken
        return
    others = differences(stored["fingerprint"], identity)
    if others and not searches and stored.get("best_threshold") is not None:
        raise InputError(
            f"output {str(folder)!r} has the best threshold that an evaluation found, and this one "
            f"looks for none and would overwrite it; choose another output, or threshold {BEST!r}"
        )
    if others:
        fields = [".".join(map(str, field)) for field in others]
        logging.warning("results in %s of other settings are replaced: %s", folder, shorten(fields))


def _draws_scenes(workdir: Path) -> bool:
    try:
        return "shapes" in json.loads((workdir / "config.json").read_text())["eval"]["tasks"]
    except (OSError, ValueError, LookupError, TypeError):
        return False  # another folder


def _choices_of(method: str, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a method; None where others have their own and it has not."""
    return {k: x.get(method) if isinstance(x, Mapping) else x for k, x in choices.items()}


@dataclasses.dataclass(frozen=True)
class _MethodRun:
    """One method of an evaluation: its fingerprint, its folder, and what is scored by benchmark."""

    model: Model
    protocol: Protocol
    identity: dict[str, Any]
    folder: Path
    logs: dict[str, ScoreLog]


def _check_embeddings(
    given: Mapping[str, np.ndarray], indices: Sequence[DatasetIndex], protocol: Protocol, dim: int
) -> None:
    """Refuses embeddings by name of a benchmark that do not fit its texts."""
    counts = {index.benchmark.name: len(protocol.texts_of(index.benchmark)) for index in indices}
    for name, texts in given.items():
        if name not in counts:
            raise InputError(f"text_embeddings of {name!r}: evaluated are {', '.join(counts)}")
        if np.shape(texts) != (counts[name], dim) or not np.isfinite(texts).all():
            raise InputError(
                f"text_embeddings of {name!r} must be finite and of shape ({counts[name]}, {dim}), "
                f"a row for each text of protocol {protocol.protocol!r}; theirs is "
                f"{np.shape(texts)}"
            )


def _evaluate_method(
    run: _MethodRun,
    indices: Sequence[DatasetIndex],
    texts_of: Callable[[Method, Protocol, Benchmark], np.ndarray],
    batch_size: int | None,
    first: Mapping[str, BenchmarkResult],
    *,
    progress: bool,
) -> Evaluated:
    """One method, to results.json and pictures, which are of the images that the first shows."""
    model = dataclasses.replace(run.model, settings=run.protocol)
    method = model.method_in(compute_dtype(run.protocol.dtype))
    evaluator = Evaluator(method, run.model.params, run.protocol, batch_size)
    results = {}
    for index in indices:
        name = index.benchmark.name
        with contextlib.closing(run.logs[name]) as log:
            texts = raise_on_all_processes(
                functools.partial(texts_of, method, run.protocol, index.benchmark)
            )
            results[name] = evaluate_benchmark(
                evaluator, index, texts, log, beside=first.get(name), progress=progress
            )

    def write() -> None:
        for result in results.values():
            write_pictures(run.folder / "pictures", result)
        write_results(run.folder / RESULTS_FILE, list(results.values()), run.identity)

    _write_on_process_0(run.folder, write)
    return Evaluated(results, run.identity)


def check(
    indices: Sequence[DatasetIndex], logs: Sequence[Mapping[str, ScoreLog]], *, progress: bool
) -> None:
    """Looks for problems of the data before anything is computed; every process calls it.

    What can be scored all the same is logged.

    Args:
        indices: the benchmarks and their files.
        logs: of every method by name; what is scored by all is not looked into again.
        progress: whether to show bars.

    Raises:
        InputError: if something cannot be scored; the message lists all that was found.
    """
    verified: list[DatasetIndex] = []

    def description() -> str:
        return "\n".join(describe_dataset(index) for index in verified if index.problems)

    def look() -> None:
        for index in indices:
            mine = share_of(index.examples)
            rest = {
                example for one in logs for example in one[index.benchmark.name].remaining(mine)
            }
            todo = [example for example in mine if example in rest]
            verified.append(verify_examples(index, todo, progress=progress))
        if any(problem.fatal for index in verified for problem in index.problems):
            raise InputError(f"the data cannot be scored as it is:\n{description()}")

    raise_on_all_processes(look)
    if description():
        logging.warning("of the data:\n%s", description())


def _write_on_process_0(folder: Path, write: Callable[[], None]) -> None:
    def write_here() -> None:
        if jax.process_index() == 0:
            with as_input_error(f"the results cannot be written to {str(folder)!r}"):
                write()

    raise_on_all_processes(write_here)


def check_same_images(indices: Sequence[DatasetIndex]) -> None:
    """Refuses to go on where processes see different images; every process calls it.

    Raises:
        InputError: on all processes.
    """
    keys = {one.benchmark.name: [example.key for example in one.examples] for one in indices}
    check_same(
        "benchmarks",
        ", ".join(
            f"{name} with {len(k)} images (hash {short_hash(k)})" for name, k in keys.items()
        ),
        "Every process must see the same: use a shared folder, or copy all to every machine",
    )


def _open_log(
    folder: Path, benchmark: Benchmark, identity: Mapping[str, Any], protocol: Protocol
) -> ScoreLog:
    """What is scored of a benchmark already, by the same model and protocol."""
    depends_on = {k: v for k, v in identity.items() if k not in ("hash", "benchmarks")}
    # Which images there are does not change the counts of one.
    own = identity["benchmarks"][benchmark.name].items()
    depends_on |= {k: v for k, v in own if k not in ("images", "image_list", "split")}
    if tried := protocol.tried_on(benchmark):
        depends_on |= {"threshold": tried}
    return ScoreLog(folder, benchmark.name, depends_on)
