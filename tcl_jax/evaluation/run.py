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
from tcl_jax.data.tokenizer import ClipTokenizer
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.evaluator import Evaluator, evaluate_benchmark, remaining, share_of
from tcl_jax.evaluation.examples import (
    Listing,
    describe_problems,
    verify_examples,
)
from tcl_jax.evaluation.label_coding import coding_problems
from tcl_jax.evaluation.protocol import fingerprint, make_protocol
from tcl_jax.evaluation.report import write_markdown
from tcl_jax.evaluation.report_html import write_html
from tcl_jax.evaluation.report_pictures import write_pictures
from tcl_jax.evaluation.results import RESULTS_FILE, BenchmarkResult, write_results
from tcl_jax.evaluation.score_log import ScoreLog, check_folder
from tcl_jax.files import short_hash, user_path, why_unwritable
from tcl_jax.inference.model import Model
from tcl_jax.inference.texts import check_vocabulary, embed_class_names
from tcl_jax.models.clip import CLIP
from tcl_jax.models.layers import compute_dtype
from tcl_jax.parallel.lock import alone_in
from tcl_jax.parallel.processes import agreed, check_same, gather_texts


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What an evaluation of a method found.

    Attributes:
        results: by name of the benchmark.
        fingerprint: see `protocol.fingerprint`.
        pictures: files by name of the benchmark and by what they show; on process 0.
    """

    results: dict[str, BenchmarkResult]
    fingerprint: dict[str, Any]
    pictures: dict[str, dict[str, Path]]


def evaluate(
    model: Model,
    listings: Sequence[Listing],
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
        listings: the benchmarks and their files, from `examples.list_examples`.
        output: folder for results.md and report.html, and of each method (in a folder of its name
            if there are several) results.json, pictures and the counts so far.
        methods: "tcl", or baselines on its CLIP alone ("maskclip", "sclip", "naclip"); None: the
            model's own.
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
    output, embedded = user_path(output).absolute(), dict(text_embeddings or {})
    agreed(lambda: _check_output(output))
    check_same_images(listings)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
    model = dataclasses.replace(model, params=params)
    models = [model.with_method(method) for method in methods or [model.method]]
    protocols = [make_protocol(chosen, **choices) for chosen in models]
    if len({chosen.method for chosen in models}) < len(models):
        raise InputError(f"methods {', '.join(methods or ())}: one is given more than once")
    for protocol in protocols:
        for listing in listings:
            protocol.sizes(listing.benchmark)
    if notes := [p for listing in listings for p in listing.problems if not p.fatal]:
        logging.warning("of the data:\n%s", describe_problems(notes))
    progress = progress and jax.process_index() == 0

    def texts_of(benchmark: Benchmark) -> np.ndarray:
        # The methods have one CLIP, and differ in nothing that its texts depend on.
        if benchmark.name not in embedded:
            clip = CLIP(model.config, dtype=compute_dtype(protocols[0].dtype))
            templates = protocols[0].templates
            embedded[benchmark.name] = embed_texts(
                clip, params["clip"], benchmark.texts, templates, tokenizer_file, progress=progress
            )
        return embedded[benchmark.name]

    found: dict[str, Evaluated] = {}

    def report() -> None:
        if jax.process_index():
            return
        rows = {title: one.results for title, one in found.items()}
        fingerprints = {title: one.fingerprint for title, one in found.items()}
        pictures = {title: one.pictures for title, one in found.items()}
        with as_input_error(f"the report cannot be written to {str(output)!r}"):
            write_markdown(output / "results.md", rows, fingerprints)
            write_html(output / "report.html", rows, fingerprints, pictures)

    with alone_in(output, f"output {str(output)!r}"):
        for chosen, protocol in zip(models, protocols, strict=True):
            print_ = fingerprint(
                protocol,
                chosen,
                hash_leaves(chosen.weights),
                listings,
                tokenizer_file=tokenizer_file,
                text_embeddings=text_embeddings,
            )
            folder = output / chosen.method if len(models) > 1 else output
            evaluator = Evaluator(
                chosen.module(compute_dtype(protocol.dtype)), chosen.weights, protocol, batch_size
            )
            found[protocol.title] = _evaluate_method(
                evaluator, listings, texts_of, print_, folder, progress=progress, tell=not found
            )
        agreed(report)
    return found


def _evaluate_method(
    evaluator: Evaluator,
    listings: Sequence[Listing],
    texts_of: Callable[[Benchmark], np.ndarray],
    print_: dict[str, Any],
    folder: Path,
    *,
    progress: bool,
    tell: bool,
) -> Evaluated:
    """One method, to results.json and pictures."""
    check_same("weights", print_["weights"], "Give every process the same, by their path")
    logs = _open_logs(folder / "progress", listings, print_)
    check(listings, logs, progress=progress, tell=tell)
    results = {}
    for listing in listings:
        benchmark = listing.benchmark
        with contextlib.closing(logs[benchmark.name]) as log:
            texts = agreed(functools.partial(texts_of, benchmark))
            results[benchmark.name] = evaluate_benchmark(
                evaluator, listing, texts, log, progress=progress
            )

    def write() -> dict[str, dict[str, Path]]:
        if jax.process_index():
            return {}
        with as_input_error(f"the results cannot be written to {str(folder)!r}"):
            pictures = {n: write_pictures(folder / "pictures", r) for n, r in results.items()}
            write_results(folder / RESULTS_FILE, list(results.values()), print_)
        return pictures

    return Evaluated(results, print_, agreed(write))


def check(
    listings: Sequence[Listing],
    logs: Mapping[str, ScoreLog],
    *,
    progress: bool,
    tell: bool = True,
) -> None:
    """Looks for problems of the data before anything is computed; every process calls it.

    Args:
        listings: the benchmarks.
        logs: what is scored already, which is not looked into again, by name.
        progress: whether to show bars.
        tell: whether to warn of what can be scored all the same.

    Raises:
        InputError: if something cannot be scored; the message lists all that was found.
    """
    problems = [problem for listing in listings for problem in listing.problems if problem.fatal]
    seen: dict[str, Counter[int]] = {}

    def look() -> None:
        for listing in listings:
            log, mine = logs[listing.benchmark.name], share_of(listing.examples)
            todo = tuple(remaining(mine, log))
            found, values = verify_examples(
                dataclasses.replace(listing, examples=todo, problems=()), progress=progress
            )
            problems.extend(found)
            for key in {example.key for example in mine} - {example.key for example in todo}:
                labelled = log.records[key].counts.labelled.tolist()
                values.update(dict(zip(listing.benchmark.label_values, labelled, strict=True)))
            seen[listing.benchmark.name] = +values

    def judge() -> None:
        for listing in listings:
            values = sum(
                (Counter(dict(one[listing.benchmark.name])) for one in everyones), Counter()
            )
            problems.extend(coding_problems(listing.benchmark, values, listing.label_folder))
        if any(problem.fatal for problem in problems):
            raise InputError(f"the data cannot be scored as it is:\n{describe_problems(problems)}")

    agreed(look)
    texts = gather_texts(json.dumps({name: [*counts.items()] for name, counts in seen.items()}))
    everyones = [json.loads(text) for text in texts]
    agreed(judge)
    if problems and tell:
        logging.warning("of the data:\n%s", describe_problems(problems))


def check_same_images(listings: Sequence[Listing]) -> None:
    """Refuses to go on where processes see different images; every process calls it.

    Raises:
        InputError: on all processes.
    """
    keys = {one.benchmark.name: [example.key for example in one.examples] for one in listings}
    check_same(
        "benchmarks",
        ", ".join(
            f"{name} with {len(k)} images (hash {short_hash(k)})" for name, k in keys.items()
        ),
        "Every process must see the same: use a shared folder, or copy all to every machine",
    )


def _check_output(output: Path) -> None:
    if why := why_unwritable(output):
        raise InputError(f"output {str(output)!r}: {why}; choose another folder")


def embed_texts(
    clip: CLIP,
    params: Any,
    texts: Sequence[str],
    templates: str,
    tokenizer_file: str | None = None,
    *,
    progress: bool = False,
) -> np.ndarray:
    """Embeddings of class names, float32 [n, d].

    Raises:
        InputError: if the CLIP has another vocabulary than the tokenizer.
    """
    tokenizer = ClipTokenizer(clip.config.context_length, tokenizer_file=tokenizer_file)
    check_vocabulary(clip.config, tokenizer.vocab_size)
    return embed_class_names(clip, params, tokenizer, texts, templates, progress=progress)


def _open_logs(
    folder: Path, listings: Sequence[Listing], print_: Mapping[str, Any]
) -> dict[str, ScoreLog]:
    common = {k: v for k, v in print_.items() if k not in ("hash", "benchmarks")}
    agreed(lambda: check_folder(folder, common))
    logs = {}
    for listing in listings:
        name = listing.benchmark.name
        # Which images there are does not change the counts of one.
        described = {
            field: value
            for field, value in print_["benchmarks"][name].items()
            if field not in ("images", "image_list", "split")
        }
        classes = len(listing.benchmark.names)
        logs[name] = ScoreLog(folder, name, classes, {**common, name: described})
    return logs
