"""The losses of all pairs take no more memory when the batch grows, and know their mesh."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from tcl_jax.ops import grounding, losses, masking
from tcl_jax.parallel.mesh import DATA_AXIS
from tcl_jax.training.objectives import TCLObjective, with_keys
from tcl_jax.training.step import loss_and_gradient
from tests.reference import reference_model
from tests.training.grounding_compile import ENVIRONMENT

ROOT = Path(__file__).parent.parent.parent


@cache
def on_tpu() -> dict[str, dict[str, Any]]:
    programs = ["tiled:v5e:4x4", "tiled:v5e:16x16", "plain:v5e:4x4", "grouped:v5e:4x4"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.grounding_compile", *programs],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {record["program"]: record for record in records}


needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


@needs_tpu_compiler
@pytest.mark.slow
def test_memory_on_tpu_is_flat_in_the_number_of_texts() -> None:
    few, many = on_tpu()["tiled:v5e:4x4"], on_tpu()["tiled:v5e:16x16"]
    assert (few["texts"], many["texts"]) == (1024, 16384)
    # All that the losses allocate. The temporary part alone is so small that the gathered texts
    # (32 MiB) stand out of it.
    few_bytes, many_bytes = (r["temporary"] + r["gradient"] for r in (few, many))
    assert many_bytes < 1.15 * few_bytes
    assert many["temporary"] < 64 * 2**20


@needs_tpu_compiler
@pytest.mark.slow
def test_memory_on_tpu_is_a_fraction_of_the_plain_losses() -> None:
    plain, tiled = on_tpu()["plain:v5e:4x4"], on_tpu()["tiled:v5e:4x4"]
    assert plain["texts"] == tiled["texts"] == 1024
    assert tiled["temporary"] < plain["temporary"] / 100


@needs_tpu_compiler
@pytest.mark.slow
def test_chips_exchange_texts_and_sums_only() -> None:
    for name in ("tiled:v5e:4x4", "tiled:v5e:16x16"):
        assert on_tpu()[name]["largest_collective"] == on_tpu()[name]["texts"] * 512


@needs_tpu_compiler
@pytest.mark.slow
def test_areas_of_groups_take_no_more() -> None:
    grouped, whole = on_tpu()["grouped:v5e:4x4"], on_tpu()["tiled:v5e:4x4"]
    assert grouped["temporary"] < 1.05 * whole["temporary"]
    for name in ("largest_collective", "gradient"):
        assert grouped[name] == whole[name]


def strip_losses(*arrays: jax.Array) -> jax.Array:
    """The losses of a device's eight images with any number of texts, in tiles of 32 texts."""
    pixels, texts, w, b, log_scale = arrays
    pairs = grounding.pair_statistics(pixels, texts, w, b, text_tile=32)
    return _sum_of_losses(pairs, log_scale)


def plain_strip_losses(*arrays: jax.Array) -> jax.Array:
    pixels, texts, w, b, log_scale = arrays
    masks = jax.nn.sigmoid(w * masking.pixel_text_similarity(pixels, texts) + b)
    regions = masking.l2_normalize(masking.masked_pool(pixels, masks))
    pairs = grounding.PairStatistics(
        similarity=jnp.einsum("ijd,jd->ij", regions, masking.l2_normalize(texts)),
        area=jnp.mean(masks, axis=(2, 3)),
        variation=losses.variation_of_each(masks),
    )
    return _sum_of_losses(pairs, log_scale)


def _sum_of_losses(pairs: grounding.PairStatistics, log_scale: jax.Array) -> jax.Array:
    area, neg_area, _ = losses.strip_area_losses(pairs.area, 0.4)
    contrast = losses.strip_info_nce(pairs.similarity, log_scale)
    return contrast + area + neg_area + losses.strip_mean(pairs.variation)


def temporary_on_cpu(loss: Any, texts: int) -> int:
    shapes = [(8, 28, 28, 16), (texts, 16), (), (), ()]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.jit(jax.grad(loss, argnums=(0, 2, 3, 4)))
    return gradient.lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_memory_on_cpu_is_flat_and_a_fraction() -> None:
    few, many = temporary_on_cpu(strip_losses, 256), temporary_on_cpu(strip_losses, 4096)
    plain = temporary_on_cpu(plain_strip_losses, 256)
    assert many < 1.15 * few
    assert few < plain / 4


@pytest.mark.parametrize("parts", [1, 2])
def test_objective_splits_the_pairs_over_the_mesh_of_its_batch(parts: int) -> None:
    model, learned, clip = reference_model()
    objective = TCLObjective(model)
    mesh = AbstractMesh((4,), (DATA_AXIS,), axis_types=(AxisType.Auto,))

    def placed(tree: Any, *axes: str) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    side = model.config.resolution
    batch = {
        "image": jnp.zeros((8, side, side, 3), jnp.uint8),
        "tokens": jnp.zeros((8, model.config.context_length), jnp.int32),
    }

    def gradient(params: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        rows = with_keys(batch, key)
        return loss_and_gradient(objective, lambda p: p, params, frozen, rows, parts=parts)

    traced = jax.jit(gradient).trace(
        placed(learned), placed(clip), placed(batch, DATA_AXIS), placed(jax.random.key(0))
    )
    text = str(traced.jaxpr)
    assert "shard_map" in text
    assert "all_gather" in text
