"""One process of an evaluation of the reference model on the golden pictures.

usage: python -m tests.parallel.evaluation_worker OUTPUT COUNTS.npz [PORT PROCESSES INDEX]
"""

from __future__ import annotations

import sys

import jax
import numpy as np

from tcl_jax.evaluation.benchmark import load_benchmark
from tcl_jax.evaluation.examples import list_examples
from tcl_jax.evaluation.run import evaluate
from tcl_jax.parallel.processes import start_processes
from tests.reference import GOLDEN, load, reference_torch_model

NAMES = ("voc", "cityscapes")


def main(output: str, counts: str, port: str = "", processes: str = "1", index: str = "0") -> None:
    jax.config.update("jax_platforms", "cpu")
    if port:
        start_processes(f"localhost:{port}", int(processes), int(index))
    listings = [list_examples(load_benchmark(name), GOLDEN / "eval/data") for name in NAMES]
    found = evaluate(
        reference_torch_model(),
        listings,
        output,
        text_embeddings={name: load("eval/text_emb_and_pred")[name] for name in NAMES},
        progress=False,
        pamr=False,
    )
    results = found["TCL"].results
    # Every process knows the counts of all.
    np.savez(
        f"{counts}.{index}.npz",
        devices=len(jax.devices()),
        **{
            f"{name}/{image.key}": np.stack(
                [image.counts.intersection, image.counts.predicted, image.counts.labelled]
            )
            for name, result in results.items()
            for image in result.images
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
