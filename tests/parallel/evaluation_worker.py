"""The part that one process has in an evaluation of the reference model on the golden pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.examples import list_examples
from tcl_jax.evaluation.run import evaluate
from tests.reference import GOLDEN, load, reference_torch_model

NAMES = ("voc", "cityscapes")


def evaluation_counts(folder: Path) -> dict[str, np.ndarray]:
    """Pixels of each picture; every process knows those of all."""
    listings = [list_examples(load_benchmark(name), GOLDEN / "eval/data") for name in NAMES]
    found = evaluate(
        reference_torch_model(),
        listings,
        folder / "results",
        text_embeddings={name: load("eval/text_emb_and_pred")[name] for name in NAMES},
        progress=False,
        pamr=False,
    )
    assert (folder / "results/results.json").is_file()
    return {
        f"{name}/{image.key}": np.stack(
            [image.counts.intersection, image.counts.predicted, image.counts.labelled]
        )
        for name, result in found["TCL"].results.items()
        for image in result.images
    }
