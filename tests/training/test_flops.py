"""FLOPs by formula against the compiler's count, those of traces, and published figures."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from configs.tcl import get_config
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.models.clip import VARIANTS, encode_image, encode_text
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.models.flops import decoder, image_tower, text_tower, total
from tcl_jax.models.tcl import TCL
from tcl_jax.parallel.mesh import DATA_AXIS, data_mesh
from tcl_jax.plan.plan import with_batch
from tcl_jax.plan.traced_flops import traced_flops
from tcl_jax.plan.training_program import trace_step
from tcl_jax.training.build import Experiment, abstract_experiment
from tcl_jax.training.chips import mfu
from tests.tiny import tiny_clip_config

B16 = VARIANTS["ViT-B/16"]


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    """The paper's."""
    return abstract_experiment(get_config())


def shallow() -> ConfigDict:
    """ViT-B/16 of few blocks."""
    config = get_config()
    sizes = dataclasses.replace(B16, vision_layers=3, text_layers=1)
    config.model.variant = "custom"
    config.model.sizes.update(dataclasses.asdict(sizes))
    config.model.feature_layer = 0
    return with_batch(config, 16)


def traced(function: Any, *shapes: Any) -> jax.stages.Traced:
    return jax.jit(function).trace(*shapes)


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def xla_flops(program: jax.stages.Traced) -> float:
    return program.lower().cost_analysis()["flops"]


def test_vit_b_16_takes_what_is_known_of_it() -> None:
    assert image_tower(B16.tower) / 1e9 == pytest.approx(35, rel=0.01)
    assert text_tower(B16) / 1e9 == pytest.approx(6, rel=0.01)
    assert decoder(B16.tower) / 1e9 == pytest.approx(83, rel=0.01)


def test_towers_agree_with_the_compiler_s_count(experiment: Experiment) -> None:
    # Elementwise operations, which the compiler counts too, are a share of 1 / width.
    clip, params = experiment.objective.text_encoder, experiment.frozen["clip"]
    images = traced(lambda p, x: encode_image(clip, p, x).embedding, params, floats(1, 224, 224, 3))
    tokens = jax.ShapeDtypeStruct((1, 77), jnp.int32)
    texts = traced(lambda p, x: encode_text(clip, p, x), params, tokens)
    for program, formula in ((images, image_tower(B16.tower)), (texts, text_tower(B16))):
        assert xla_flops(program) == pytest.approx(formula, rel=0.02)
        assert traced_flops(program.jaxpr) == pytest.approx(formula, rel=1e-6)


@pytest.mark.parametrize("phase", [1, 2])
def test_a_step_of_the_paper_computes_what_the_formula_says(phase: int) -> None:
    config = shallow()
    experiment = abstract_experiment(config)
    step = trace_step(config, experiment, data_mesh(), phase)
    needed = experiment.objective.training_flops(16, phase == 2)
    whole, convolutions = 16 * total(needed), 16 * needed["decoder"]
    # Half of the decoder's convolutions are of upsampled maps. Tiles of masks and the queries that
    # attend to nothing are computed over and above, and on CPUs the transforms.
    for platform, upsampled, ordinary in (("tpu", 4 / 9, 1.0), ("cpu", 25 / 144, 1 / 4)):
        computed = whole - (1 - (upsampled + ordinary) / 2) * convolutions
        assert 1.0 <= traced_flops(step.jaxpr, platform) / computed < 1.06, platform


def test_phases_and_batches_differ_as_they_should(experiment: Experiment) -> None:
    objective = experiment.objective
    first, second = (objective.training_flops(1024, both) for both in (False, True))
    differing = {name for name in first if first[name] != second[name]}
    assert differing == {"grounder's blocks"}
    assert second["grounder's blocks"] == 3 * first["grounder's blocks"]
    larger = objective.training_flops(2048, False)
    pairs = "masks of all pairs"
    assert larger[pairs] == 2 * first[pairs] == 4 * 5 * 3136 * 512 * 1024
    assert larger["decoder"] == first["decoder"] == 3 * decoder(B16.tower)


def test_clip_s_own_step() -> None:
    config = tiny_clip_config()
    experiment = abstract_experiment(config)
    step = trace_step(config, experiment, data_mesh(), 2)
    needed = 8 * total(experiment.objective.training_flops(8, True))
    # Pixels and the first block's input have no gradient, and measures compare once more.
    assert traced_flops(step.jaxpr) == pytest.approx(needed, rel=0.1)


def test_evaluation_counts_texts_and_window(experiment: Experiment) -> None:
    model, mixed = experiment.method, MaskOptions(kp_weight=0.3)
    few, many = (model.flops(448, texts, mixed) for texts in (20, 40))
    assert {name for name in few if few[name] != many[name]} == {"masks"}
    assert many["masks"] == 2 * few["masks"] == 17 * 2 * 784 * 512 * 40
    assert few["decoder"] == 4 * decoder(B16.tower)
    alone = MaskCLIP(model.config).flops(448, 20, mixed)
    assert alone["image tower"] == few["image tower"] and "decoder" not in alone
    early = TCL(B16, feature_layer=3).flops(448, 20, MaskOptions(kp_weight=0.0))
    assert early["image tower"] == image_tower(B16.tower, 3, 448) < few["image tower"]


def test_loops_count_as_often_as_they_run() -> None:
    def looped(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda y, _: (y @ x, None), x, length=7)[0]

    program = traced(looped, floats(16, 16))
    assert traced_flops(program.jaxpr) == 7 * 2 * 16**3
    assert xla_flops(program) < 2 * 2 * 16**3


def test_what_no_result_needs_does_not_count_and_what_is_recomputed_does() -> None:
    def unused(x: jax.Array) -> jax.Array:
        del_me = x @ x
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x) + 0 * del_me.shape[0]

    assert traced_flops(traced(unused, floats(8, 8)).jaxpr) == 2 * 8**3

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(x @ w) @ w)

    plain = traced(jax.value_and_grad(loss), floats(8, 8), floats(8, 8))
    again = traced(jax.value_and_grad(jax.checkpoint(loss)), floats(8, 8), floats(8, 8))
    assert traced_flops(again.jaxpr) == traced_flops(plain.jaxpr) + 2 * 8**3


def test_the_branch_of_the_platform_counts() -> None:
    def product(x: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(
            x, cpu=lambda x: x @ x, tpu=lambda x: x, default=lambda x: x @ x @ x
        )

    program = traced(product, floats(8, 8)).jaxpr
    counts = {name: traced_flops(program, name) for name in ("cpu", "tpu", "cuda")}
    assert counts == {"cpu": 2 * 8**3, "tpu": 0, "cuda": 4 * 8**3}


def test_each_device_s_part_counts() -> None:
    mesh = AbstractMesh((4,), (DATA_AXIS,), axis_types=(AxisType.Auto,))
    rows, everywhere = PartitionSpec(DATA_AXIS), PartitionSpec()

    def placed(spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=NamedSharding(mesh, spec))

    product = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, everywhere), out_specs=rows)
    program = traced(product, placed(rows), placed(everywhere))
    assert traced_flops(program.jaxpr) == 2 * 8**3


def test_convolutions_and_their_gradients() -> None:
    def convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    shapes = floats(2, 6, 6, 4), floats(3, 3, 4, 5)
    forward = 2 * 9 * 4 * 5 * 2 * 36
    assert traced_flops(traced(convolved, *shapes).jaxpr) == forward
    both = jax.grad(lambda x, k: jnp.sum(convolved(x, k) ** 2), argnums=(0, 1))
    assert traced_flops(traced(both, *shapes).jaxpr) == 3 * forward


def test_zeros_of_a_transposed_convolution_do_not_count() -> None:
    def transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((2, 2), (2, 2)), (2, 2), dimension_numbers=dimensions
        )

    shapes = floats(1, 6, 6, 4), floats(4, 4, 4, 5)
    assert traced_flops(traced(transposed, *shapes).jaxpr) == 2 * 12 * 12 * 4 * 4 * 5
    both = jax.grad(lambda x, k: jnp.sum(transposed(x, k) ** 2), argnums=(0, 1))
    counted = traced_flops(traced(both, *shapes).jaxpr)
    assert counted == pytest.approx(3 * 2 * 12 * 12 * 4 * 4 * 5, rel=0.2)


def test_mfu() -> None:
    def device(kind: str) -> Any:
        return SimpleNamespace(device_kind=kind)

    chips = [device("TPU v4")] * 4
    assert mfu(275e12, 0.5, chips) == pytest.approx(0.5)
    assert mfu(275e12, 0.5, [*chips, device("cpu")]) is None
    assert mfu(1.0, 0.0, chips) is None
    assert mfu(1.0, 1.0, []) is None
