"""Benchmarks while a run trains: the code of `evaluate`, on the parameters of the moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tcl_jax.evaluation.benchmark import Benchmark
from tcl_jax.evaluation.evaluator import Evaluator, evaluate_benchmark
from tcl_jax.evaluation.examples import list_examples
from tcl_jax.evaluation.protocol import Protocol, embed_texts, make_protocol
from tcl_jax.evaluation.report_pictures import shown_picture
from tcl_jax.evaluation.run import check, check_same_images
from tcl_jax.evaluation.score_log import ScoreLog
from tcl_jax.files import write_json
from tcl_jax.inference.model import Model
from tcl_jax.inference.settings import default_settings
from tcl_jax.parallel.processes import raise_on_all_processes
from tcl_jax.training.build import Experiment
from tcl_jax.training.loop import Evaluation


class BenchmarkEvaluator:
    """Zero-shot scores on a benchmark's images, and pictures of the best, median and worst.

    Every process evaluates its share on its own devices.

    Args:
        benchmark: with its split.
        config: reads `eval` and `model.dtype`.
        experiment: what is trained.

    Raises:
        InputError: if its files are not all there, or cannot be scored.
    """

    def __init__(self, benchmark: Benchmark, config: ConfigDict, experiment: Experiment) -> None:
        self._name, self._experiment = benchmark.name, experiment
        self._protocol = protocol_of(config, experiment)
        self._index = raise_on_all_processes(lambda: list_examples(benchmark, config.eval.data))
        check_same_images([self._index])
        nothing = ScoreLog(None, self._name, {})
        check([self._index], [{self._name: nothing}], progress=jax.process_index() == 0)
        self._evaluator: Evaluator | None = None
        self._texts: np.ndarray | None = None
        self._scores: dict[str, float] = {}

    def __call__(self, params: Any, frozen: Any) -> Evaluation:
        """Scores in per cent; every process calls it."""
        everything = self._experiment.join(params, frozen)
        if self._evaluator is None:
            self._evaluator = Evaluator(self._experiment.method, None, self._protocol)
        evaluator = self._evaluator.with_params(everything)
        benchmark = self._index.benchmark
        if self._texts is None or self._experiment.learns_texts:
            method = self._experiment.method
            self._texts = embed_texts(self._protocol, method, everything, benchmark)
        log = ScoreLog(None, self._name, {})
        result = evaluate_benchmark(
            evaluator, self._index, self._texts, log, progress=jax.process_index() == 0
        )
        scores = result.scores
        self._scores = {
            "miou": 100 * scores.miou, "macc": 100 * scores.macc, "aacc": 100 * scores.aacc,
        }  # fmt: skip
        pictures = {shown.rank: shown_picture(benchmark, shown) for shown in result.shown}
        return Evaluation(self._scores, pictures)

    def report(self, params: Any, frozen: Any, workdir: Path, step: int) -> None:
        """Prints the scores of the last evaluation, and writes them to NAME.json."""
        if not self._scores:  # continued after its end
            self(params, frozen)
        if jax.process_index() != 0:
            return
        split = self._index.benchmark.split
        path = workdir / f"{self._name}.json"
        scores = {name: round(value, 2) for name, value in self._scores.items()}
        write_json(path, {"split": split, **scores})
        print(f"{self._name} {split}: " + ", ".join(f"{k} {v:.2f}" for k, v in scores.items()))


def protocol_of(config: ConfigDict, experiment: Experiment) -> Protocol:
    """The protocol by which a run evaluates what it trains."""
    model = Model(experiment.method, {}, default_settings(experiment.method))
    return make_protocol(
        model,
        threshold=config.eval.background,
        pamr=config.eval.pamr,
        kp_weight=config.eval.kp_weight,
        templates=config.eval.templates,
        dtype=config.model.dtype,
    )
