"""Training TCL on a backbone, from its config to a model that segments."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from ml_collections import ConfigDict

from configs.tcl import get_config as paper_config
from configs.tcl_dino import get_config
from tcl_jax.data.bad_samples import BadSampleLog
from tcl_jax.errors import InputError
from tcl_jax.inference.export import export_masks
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.model import load_model, save_model
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.models.clip import encode_image
from tcl_jax.models.flops import total
from tcl_jax.models.tcl import mean_patches
from tcl_jax.models.tcl_dino import TCLDINO
from tcl_jax.ops.images import normalize
from tcl_jax.ops.masking import l2_normalize
from tcl_jax.parallel.mesh import data_mesh, put_replicated
from tcl_jax.plan.plan import with_batch
from tcl_jax.plan.traced_flops import traced_flops
from tcl_jax.plan.training_program import trace_step
from tcl_jax.training import loop, projection
from tcl_jax.training.batches import open_batches
from tcl_jax.training.build import abstract_experiment, build_experiment
from tcl_jax.training.loop import Outcome, train
from tests.devices import run_on_eight_devices
from tests.dino_run import tiny_dino_config
from tests.talk2dino_files import write_golden


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    monkeypatch.setattr(projection, "IMAGES", 24)
    config = tiny_dino_config(tmp_path)
    config.train.update(total_steps=4, backbone_from_step=0)
    return config


def run(config: ConfigDict, workdir: Path) -> Outcome:
    return train(config, str(workdir), build_experiment(config), {})


@pytest.mark.slow
def test_a_run_is_resumed_and_segments(
    config: ConfigDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = build_experiment(config)
    whole = run(config, tmp_path / "whole")
    real, begun = loop.put_batch, 0

    def interrupting(*args: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == 5:  # after the checkpoint of step 3
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "put_batch", interrupting)
        run(config, tmp_path / "parts")
    resumed = run(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, *jax.device_get((resumed.params, whole.params)))
    for name in ("proj", "decoder", "blocks_0"):
        before, after = (x["backbone_grounder"][name] for x in (start.params, whole.params))
        same = jax.tree.map(np.array_equal, before, jax.device_get(after))
        assert not all(jax.tree.leaves(same)), name

    model = load_model(tmp_path / "whole")
    assert model.method.summary.startswith("TCL on DINOv2 with registers of width 128")
    assert {"maskclip", "tcl_dino"} <= {*model.methods} and "tcl" not in model.methods
    segmenter = Segmenter(model)
    image = np.random.default_rng(0).integers(0, 256, (56, 70, 3), np.uint8)
    masks = segmenter.masks(image, texts := segmenter.embed_texts(["a red disk", "grass"]))
    assert masks.shape == (56, 70, 2) and np.ptp(masks) > 0
    similar = segmenter.masks(image, texts, refine="affinity")
    assert similar.shape == (56, 70, 2) and np.abs(similar - masks).max() > 1e-4
    save_model(tmp_path / "model", model)
    assert Segmenter(load_model(tmp_path / "model")).fingerprint == segmenter.fingerprint
    program = export_masks(
        model.method, model.params, image_size=(56, 70), options=MaskOptions(), platforms=["cpu"]
    )
    exported = export.deserialize(program.serialized).call(image[None], texts)
    plain = segmenter.masks(image, texts, mode="whole", pamr=False)
    np.testing.assert_allclose(exported[0], plain, atol=1e-4)

    write_golden(tmp_path / "dino.safetensors", "dinov2", mask_token=np.ones((1, 128), np.float32))
    with pytest.raises(InputError, match="weights of 'backbone' are not those"):
        load_model(tmp_path / "whole")


def test_the_projection_begins_at_clip_s_embeddings(config: ConfigDict) -> None:
    experiment, mesh = build_experiment(config), data_mesh()
    model = experiment.method
    assert experiment.begin is not None and isinstance(model, TCLDINO)
    with contextlib.closing(open_batches(config, experiment, BadSampleLog())) as batches:
        begun = experiment.begin(
            *put_replicated((experiment.params, experiment.frozen), mesh),
            batches, mesh, loop.noise_key(config.seed, mesh),
        )  # fmt: skip
        assert batches.get_state()["next_batch"] == 0
        image = normalize(jnp.asarray(next(batches)["image"]))

    def cosines(params: Any) -> np.ndarray:
        everything = experiment.join(params, experiment.frozen)
        means = jax.jit(partial(mean_patches, model))(everything, image)
        found = means @ params["backbone_grounder"]["proj"]
        wanted = jax.jit(partial(encode_image, model.clip_model))(everything["clip"], image)
        return np.asarray(jnp.sum(l2_normalize(found) * l2_normalize(wanted.embedding), axis=-1))

    assert cosines(begun).min() > 0.9 > np.abs(cosines(experiment.params)).max()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "model.projection=''"),
        ({"projection": "zeros"}, "model.projection='zeros'"),
        ({"projection": "random"}, "model.backbone=''"),
        ({"projection": "random", "backbone": "dinov2-reg:B/14"}, "image_size=0"),
    ],
)
def test_fields_that_configs_tcl_py_leaves_open(fields: dict[str, str], message: str) -> None:
    config = paper_config()
    config.objective = "tcl_dino"
    config.model.update(fields)
    with pytest.raises(InputError, match=message):
        abstract_experiment(config)


def test_sizes_that_do_not_fit_are_refused(config: ConfigDict) -> None:
    config.model.image_size = 64
    with pytest.raises(InputError, match="image_size=64 .*the backbone's 14 and CLIP's 8 pixels"):
        build_experiment(config)
    config.model.image_size, config.model.feature_layer = 56, 4
    with pytest.raises(InputError, match="feature_layer=4"):
        build_experiment(config)


@pytest.mark.slow
def test_eight_devices_are_one(tmp_path: Path) -> None:
    run_on_eight_devices(f"""
from pathlib import Path
import jax, numpy as np
from tcl_jax.parallel.mesh import data_mesh, put_batch, put_replicated
from tcl_jax.training.build import build_experiment
from tcl_jax.training.objectives import with_keys
from tcl_jax.training.step import loss_and_gradient
from tests.dino_run import tiny_dino_config

config = tiny_dino_config(Path({str(tmp_path)!r}))
experiment = build_experiment(config)
rng = np.random.default_rng(0)
rows = {{"image": rng.integers(0, 256, (8, 56, 56, 3), np.uint8),
         "text_embedding": rng.normal(size=(8, 16)).astype(np.float32)}}

def gradient(params, frozen, batch):
    batch = with_keys(batch, jax.random.key(0))
    return loss_and_gradient(experiment.objective, lambda p: p, params, frozen, batch)

found = []
for devices in (jax.devices()[:1], jax.devices()):
    mesh = data_mesh(devices)
    trees = put_replicated((experiment.params, experiment.frozen), mesh)
    found.append(jax.device_get(jax.jit(gradient)(*trees, put_batch(rows, mesh))))
(one, alone), (eight, several) = found
assert len(jax.devices()) == 8
for name, term in one.terms.items():
    np.testing.assert_allclose(eight.terms[name], term, rtol=1e-5)
norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(alone)))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * norm), several, alone)
""")


@pytest.mark.parametrize("phase", [1, 2])
def test_a_step_computes_what_the_formula_says(phase: int) -> None:
    """No weights are needed to plan a run on a released DINOv2."""
    config = with_batch(get_config(), 16)
    config.loss.area_group = 0
    experiment = abstract_experiment(config)
    step = trace_step(config, experiment, data_mesh(), phase)
    needed = experiment.objective.training_flops(16, phase == 2)
    # See tests/training/test_flops.py: what a TPU computes of the decoder's convolutions.
    computed = 16 * (total(needed) - (1 - (4 / 9 + 1) / 2) * needed["decoder"])
    assert 1.0 <= traced_flops(step.jaxpr, "tpu") / computed < 1.06
