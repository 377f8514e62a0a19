"""Ten steps of Talk2DINO's training against the authors' code."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.talk2dino import get_config
from tcl_jax.inference.talk2dino import talk2dino_model
from tcl_jax.models.flops import total
from tcl_jax.models.method import MaskOptions
from tcl_jax.models.talk2dino import choose_heads, project_text
from tcl_jax.models.talk2dino_method import Talk2DINO
from tcl_jax.ops.losses import image_text_similarity
from tcl_jax.parallel.mesh import data_mesh, put_replicated
from tcl_jax.plan.traced_flops import traced_flops
from tcl_jax.training.build import build_adamw, build_step
from tcl_jax.training.objectives import Talk2DINOObjective
from tcl_jax.training.state import create_state
from tcl_jax.training.step import no_failure
from tcl_jax.weights.talk2dino import projection_params, projection_state_dict
from tests.reference import load
from tests.talk2dino_files import write_talk2dino

GOLDEN = load("talk2dino")
STEPS, KEY = len(GOLDEN["train/loss"]), jax.random.key(0)
SHAPES = (
    ("backbone/blocks*1/attn/in_proj/kernel", (128, 3, 4, 32)),
    ("backbone/patch_kernel", (14, 14, 3, 128)),
    ("projection/hidden/kernel", (32, 128)),
    ("projection/out/kernel", (128, 128)),
)
OBJECTIVE = Talk2DINOObjective(Talk2DINO("dinov2-reg", SHAPES))


def start() -> dict[str, Any]:
    weights = {k.removeprefix("w/"): x for k, x in GOLDEN.items() if k.startswith("w/")}
    return {"projection": projection_params(weights)}


def batch(number: int) -> dict[str, jax.Array]:
    """One batch; heads are kept in float16, as they are stored."""
    return {
        "text_embedding": jnp.asarray(GOLDEN["train/text"][number], jnp.float32),
        "heads": jnp.asarray(GOLDEN["train/heads"][number]),
    }


@cache
def run(parts: int = 1) -> tuple[list[dict[str, float]], list[Any]]:
    """Metrics of every step of the config, and the parameters before it and at the end."""
    config = get_config()
    config.optim.base_lr = config.optim.min_lr = float(GOLDEN["train/lr"])
    config.train.accumulation_steps = parts
    step, mesh = build_step(config, OBJECTIVE), data_mesh()
    state = create_state(start(), OBJECTIVE, build_adamw(config))
    failure = put_replicated(no_failure(OBJECTIVE, state, {}, batch(0), KEY), mesh)
    state = put_replicated(state, mesh)
    records, params = [], [start()]
    for number in range(STEPS):
        state, failure, metrics = step(number, state, failure, {}, batch(number), KEY)
        records.append({name: float(value) for name, value in metrics.items()})
        params.append(jax.device_get(state.params))
    return records, params


@pytest.mark.parametrize("parts", [1, 2])
def test_losses_along_the_run_and_final_weights(parts: int) -> None:
    records, params = run(parts)
    losses = [record["total"] for record in records]
    np.testing.assert_allclose(losses, GOLDEN["train/loss"], atol=1e-6)
    final = projection_state_dict(params[-1]["projection"])
    for name, tensor in final.items():
        np.testing.assert_allclose(tensor, GOLDEN[f"train/final/{name}"], atol=1e-6, err_msg=name)


def test_heads_and_similarities_along_the_run() -> None:
    for number, params in enumerate(run()[1][:-1]):
        rows = batch(number)
        texts = project_text(params["projection"], rows["text_embedding"])
        images, heads = choose_heads(texts, rows["heads"].astype(jnp.float32))
        np.testing.assert_array_equal(heads, GOLDEN["train/head_index"][number])
        similarity = image_text_similarity(texts, images)
        np.testing.assert_allclose(similarity, GOLDEN["train/sim"][number], atol=1e-6)


def test_gradient() -> None:
    gradient = jax.jit(jax.grad(lambda params: OBJECTIVE(params, {}, batch(0), KEY).total))(start())
    for name, tensor in projection_state_dict(gradient["projection"]).items():
        expected = GOLDEN[f"train/grad0/{name}"]
        np.testing.assert_allclose(tensor, expected, atol=2e-6 * np.abs(expected).max())


def test_loss_of_validation_with_one_vector_an_image() -> None:
    final = run()[1][-1]
    rows = {**batch(0), "heads": jnp.asarray(GOLDEN["train/val_image"])[:, None]}
    found = OBJECTIVE(final, {}, rows, KEY).total
    np.testing.assert_allclose(found, GOLDEN["train/val_loss_avg"], atol=1e-6)


def test_flops_by_formula_and_of_the_step_s_trace() -> None:
    gradient = jax.jit(jax.grad(lambda params: OBJECTIVE(params, {}, batch(0), KEY).total))
    rows = len(batch(0)["heads"])
    formula = rows * total(OBJECTIVE.training_flops(rows, train_backbone=False))
    assert traced_flops(gradient.trace(start()).jaxpr) == pytest.approx(formula, rel=1e-6)


def test_frozen_towers_make_what_rows_lack(tmp_path: Path) -> None:
    model = talk2dino_model(*write_talk2dino(tmp_path))
    method, frozen = cast(Talk2DINO, model.method), jax.device_put({**model.params})
    del frozen["projection"]
    image = GOLDEN["70x70/image_bgr"][None, ..., ::-1]
    tokens = jnp.asarray(method.text_encoder.tokenizer()(["a cat on the grass"]))
    rows = {"image": jnp.asarray(image), "tokens": tokens}
    prepared = jax.jit(Talk2DINOObjective(method).prepare)(frozen, rows)
    np.testing.assert_allclose(prepared["heads"][0], GOLDEN["70x70/disentangled"], atol=2e-5)
    tower = jax.jit(lambda x: method.head_features(frozen, x).patches)
    formula = method.flops(70, 5, MaskOptions())["image tower"]
    found = traced_flops(tower.trace(np.zeros((1, 70, 70, 3), np.float32)).jaxpr)
    assert found == pytest.approx(formula, rel=1e-3)
    text = method.text_encoder.frozen.embed_texts(frozen, tokens)
    np.testing.assert_allclose(prepared["text_embedding"], text, atol=1e-6)
