"""The part that one process has in an evaluation of the reference model on the golden pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.examples import list_examples
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.evaluation.run import evaluate
from tests.reference import GOLDEN, load, reference_torch_model

NAMES = ("voc", "cityscapes")


def evaluation_counts(folder: Path) -> dict[str, np.ndarray]:
    """Pixels of each picture; every process knows those of all.

    Of two benchmarks by TCL's masks, and of one by NACLIP's cosines with PAMR at the pictures' own
    size.
    """
    listings = [list_examples(load_benchmark(name), GOLDEN / "eval/data") for name in NAMES]
    model, rng = reference_torch_model(), np.random.default_rng(0)
    naclip = make_protocol(model.with_method("naclip"))
    texts = {
        "tcl": {name: load("eval/text_emb_and_pred")[name] for name in NAMES},
        "naclip": {
            index.benchmark.name: rng.standard_normal((len(naclip.texts_of(index.benchmark)), 32))
            for index in listings[:1]
        },
    }
    counts = {}
    for method, embeddings in texts.items():
        found = evaluate(
            model,
            listings[: len(embeddings)],
            folder / method,
            methods=[method],
            text_embeddings=embeddings,
            progress=False,
            pamr=method == "naclip",
        )
        assert (folder / method / "results.json").is_file()
        for name, result in next(iter(found.values())).results.items():
            for image in result.images:
                counts[f"{method}/{name}/{image.key}"] = np.stack(
                    [image.counts.intersection, image.counts.predicted, image.counts.labelled]
                )
    return counts
