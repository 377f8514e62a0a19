"""An evaluation from a model and data to a report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from tcl_jax.checkpoints.leaves import hash_leaves
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.evaluator import Evaluator, evaluate_benchmark, remaining, share_of
from tcl_jax.evaluation.examples import DatasetIndex, describe_problems, verify_examples
from tcl_jax.evaluation.label_coding import coding_problems
from tcl_jax.evaluation.protocol import fingerprint, make_protocol
from tcl_jax.evaluation.report import write_report
from tcl_jax.evaluation.report_pictures import write_pictures
from tcl_jax.evaluation.results import RESULTS_FILE, Evaluated, write_results
from tcl_jax.evaluation.score_log import ScoreLog
from tcl_jax.files import short_hash, user_path, why_unwritable
from tcl_jax.inference.model import Model
from tcl_jax.inference.texts import embed_class_names
from tcl_jax.models.layers import compute_dtype
from tcl_jax.models.method import Method
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.parallel.lock import alone_in
from tcl_jax.parallel.processes import check_same, gather_texts, raise_on_all_processes


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
    """Judges a model on benchmarks and writes the report; goes on where it was stopped.

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
        choices: other fields of `protocol.Protocol`, where they are not the model's own.

    Returns:
        What was found, by the methods' names for tables.

    Raises:
        InputError: if the data cannot be scored as it is (the message lists everything), the
            folder holds an evaluation of something else, or a choice is out of its range.
        RunError: if a file cannot be read any more; what was scored is kept.
    """
    output = user_path(output).absolute()
    embedded = _check_embeddings(text_embeddings or {}, indices, model.method.embed_dim)

    def check_output() -> None:
        if why := why_unwritable(output):
            raise InputError(f"output {str(output)!r}: {why}; choose another folder")

    raise_on_all_processes(check_output)
    check_same_images(indices)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
    model = dataclasses.replace(model, params=params)
    models = [model.with_method(method) for method in methods or [model.method.name]]
    protocols = [make_protocol(chosen, **choices) for chosen in models]
    if len({chosen.method.name for chosen in models}) < len(models):
        raise InputError(f"methods {', '.join(methods or ())}: one is given more than once")
    for protocol in protocols:
        for index in indices:
            protocol.sizes(index.benchmark)
    progress = progress and jax.process_index() == 0

    made: dict[tuple[str, TextEncoder], np.ndarray] = {}

    def texts_of(method: Method, benchmark: Benchmark) -> np.ndarray:
        if benchmark.name in embedded:
            return embedded[benchmark.name]
        # Methods on one CLIP have its texts in common.
        key = benchmark.name, method.text_encoder
        if key not in made:
            made[key] = embed_class_names(
                method.text_encoder,
                method.text_params(params),
                benchmark.texts,
                protocols[0].templates,
                tokenizer=method.text_encoder.tokenizer(tokenizer_file),
                progress=progress,
            )
        return made[key]

    found: dict[str, Evaluated] = {}
    with alone_in(output, f"output {str(output)!r}"):
        for chosen, protocol in zip(models, protocols, strict=True):
            described = fingerprint(
                protocol,
                chosen,
                hash_leaves(chosen.params),
                indices,
                tokenizer_file=tokenizer_file,
                text_embeddings=text_embeddings,
            )
            folder = output / chosen.method.name if len(models) > 1 else output
            method = chosen.method_in(compute_dtype(protocol.dtype))
            found[protocol.title] = _evaluate_method(
                Evaluator(method, chosen.params, protocol, batch_size),
                indices,
                functools.partial(texts_of, method),
                described,
                folder,
                progress=progress,
                warn=not found,
            )
        _write_on_process_0(output, lambda: write_report(output, found))
    return found


def _check_embeddings(
    given: Mapping[str, np.ndarray], indices: Sequence[DatasetIndex], dim: int
) -> dict[str, np.ndarray]:
    """Embeddings by name of a benchmark, if each fits its benchmark's texts."""
    counts = {index.benchmark.name: len(index.benchmark.texts) for index in indices}
    for name, texts in given.items():
        if name not in counts:
            raise InputError(f"text_embeddings of {name!r}: evaluated are {', '.join(counts)}")
        if np.shape(texts) != (counts[name], dim) or not np.isfinite(texts).all():
            raise InputError(
                f"text_embeddings of {name!r} must be finite and of shape ({counts[name]}, {dim}), "
                f"a row for each of the benchmark's texts; theirs is {np.shape(texts)}"
            )
    return dict(given)


def _evaluate_method(
    evaluator: Evaluator,
    indices: Sequence[DatasetIndex],
    texts_of: Callable[[Benchmark], np.ndarray],
    described: dict[str, Any],
    folder: Path,
    *,
    progress: bool,
    warn: bool,
) -> Evaluated:
    """One method, to results.json and pictures."""
    check_same("weights", described["weights"], "Give every process the same, by their path")
    logs = _open_logs(folder / "progress", indices, described)
    check(indices, logs, progress=progress, warn=warn)
    results = {}
    for index in indices:
        benchmark = index.benchmark
        with contextlib.closing(logs[benchmark.name]) as log:
            texts = raise_on_all_processes(functools.partial(texts_of, benchmark))
            results[benchmark.name] = evaluate_benchmark(
                evaluator, index, texts, log, progress=progress
            )

    pictures: dict[str, dict[str, Path]] = {}

    def write() -> None:
        for name, result in results.items():
            pictures[name] = write_pictures(folder / "pictures", result)
        write_results(folder / RESULTS_FILE, list(results.values()), described)

    _write_on_process_0(folder, write)
    return Evaluated(results, described, pictures)


def check(
    indices: Sequence[DatasetIndex],
    logs: Mapping[str, ScoreLog],
    *,
    progress: bool,
    warn: bool = True,
) -> None:
    """Looks for problems of the data before anything is computed; every process calls it.

    Args:
        indices: the benchmarks and their files.
        logs: by name; what is scored already is not looked into again.
        progress: whether to show bars.
        warn: whether to log what can be scored all the same.

    Raises:
        InputError: if something cannot be scored; the message lists all that was found.
    """
    problems = [problem for index in indices for problem in index.problems]
    seen: dict[str, Counter[int]] = {}

    def look() -> None:
        for index in indices:
            log, mine = logs[index.benchmark.name], share_of(index.examples)
            todo = remaining(mine, log)
            found, values = verify_examples(
                dataclasses.replace(index, examples=tuple(todo)), progress=progress
            )
            problems.extend(found)
            for key in {example.key for example in mine} - {example.key for example in todo}:
                labelled = log.records[key].counts.labelled.tolist()
                values.update(dict(zip(index.benchmark.label_values, labelled, strict=True)))
            seen[index.benchmark.name] = +values

    def refuse() -> None:
        for index in indices:
            name = index.benchmark.name
            values = sum((Counter(dict(one[name])) for one in everyones), Counter())
            problems.extend(coding_problems(index.benchmark, values, index.label_folder))
        if any(problem.fatal for problem in problems):
            raise InputError(f"the data cannot be scored as it is:\n{describe_problems(problems)}")

    raise_on_all_processes(look)
    texts = gather_texts(json.dumps({name: [*counts.items()] for name, counts in seen.items()}))
    everyones = [json.loads(text) for text in texts]
    raise_on_all_processes(refuse)
    if warn and problems:
        logging.warning("of the data:\n%s", describe_problems(problems))


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


def _open_logs(
    folder: Path, indices: Sequence[DatasetIndex], described: Mapping[str, Any]
) -> dict[str, ScoreLog]:
    common = {k: v for k, v in described.items() if k not in ("hash", "benchmarks")}
    logs = {}
    for index in indices:
        name = index.benchmark.name
        # Which images there are does not change the counts of one.
        own = {
            field: value
            for field, value in described["benchmarks"][name].items()
            if field not in ("images", "image_list", "split")
        }
        logs[name] = ScoreLog(folder, name, len(index.benchmark.names), {**common, name: own})
    return logs
