"""From a config to a model, its initial parameters, and the objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from tcl_jax.convert.identity import Identity, identify_clip
from tcl_jax.convert.load import load_configured, sizes_of
from tcl_jax.errors import InputError
from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.grounder import grounder_from_clip
from tcl_jax.models.layers import REMAT, compute_dtype
from tcl_jax.models.tcl import TCL
from tcl_jax.ops.losses import LossWeights
from tcl_jax.training.objectives import CLIPObjective, Objective, TCLObjective
from tcl_jax.training.optim import AdamW, Schedule, warmup_cosine
from tcl_jax.training.step import PhasedStep

REFERENCE_BATCH = 4096
"""Batch for which TCL states its learning rates; others scale linearly."""

Run = Callable[..., Any]
"""(function, arguments) -> its result on the host, or that result's shapes."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        objective: the loss.
        params: initial learned parameters, on the host; shapes if the task is abstract.
        frozen: frozen parameters (CLIP's for TCL, empty for CLIP), likewise.
        clip: the CLIP inside, for text embeddings and the baseline.
        identity: of the pretrained CLIP; None where there is none.
    """

    objective: Objective
    params: Any
    frozen: Any
    clip: CLIP
    identity: Identity | None = None

    @property
    def network(self) -> TCL | CLIP:
        """What is judged: TCL, or the CLIP where that is what is trained."""
        objective = self.objective
        return objective.model if isinstance(objective, TCLObjective) else self.clip

    def join(self, params: Any, frozen: Any) -> tuple[Any, Any]:
        """All parameters of `network`, and CLIP's alone, of learned and frozen ones."""
        if isinstance(self.network, TCL):
            return {**params, "clip": frozen}, frozen
        return params, params


def clip_config(config: ConfigDict) -> CLIPConfig:
    """Sizes of the CLIP, see `convert.load.sizes_of`; no weights are read."""
    return sizes_of(config.model.to_dict(), config.objective)


def build_clip(config: ConfigDict) -> Task:
    """CLIP from scratch, everything learned."""
    return _clip_task(config, _on_host)


def build_frozen_clip(config: ConfigDict) -> tuple[CLIP, Any]:
    """The pretrained CLIP that TCL builds on, and its parameters on the host.

    Raises:
        InputError: if it cannot be read or is of other sizes.
    """
    pretrained = load_configured(config.model.to_dict())
    dtype = compute_dtype(config.model.dtype, "model.dtype")
    return CLIP(pretrained.config, dtype=dtype), pretrained.params


def build_tcl(config: ConfigDict) -> Task:
    """TCL on a pretrained CLIP, the grounder's blocks and projection copied from it."""
    clip = load_configured(config.model.to_dict())
    task = _tcl_task(config, clip.config, clip.params, _on_host)
    return dataclasses.replace(task, identity=identify_clip(config.model.weights, clip))


def abstract_task(config: ConfigDict) -> Task:
    """`build_task` with shapes in place of parameters; no weights are read or made.

    Raises:
        InputError: if something in the config does not fit.
    """
    return _fresh_task(config, jax.eval_shape)


def random_task(config: ConfigDict) -> Task:
    """`build_task` with random weights in place of pretrained ones; none are read.

    All are numbers that float16 has, too, as published CLIPs have them.

    Raises:
        InputError: if something in the config does not fit.
    """

    def rounded(function: Callable[..., Any], *arguments: Any) -> Any:
        params = _on_host(function, *arguments)
        return jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)

    return _fresh_task(config, rounded)


def _fresh_task(config: ConfigDict, run: Run) -> Task:
    if _known_objective(config) == "clip":
        return _clip_task(config, run)
    sizes = clip_config(config)
    image, tokens = _smallest_batch(sizes)
    clip = run(CLIP(sizes).init, jax.random.key(config.seed), image, tokens)["params"]
    return _tcl_task(config, sizes, clip, run)


def _clip_task(config: ConfigDict, run: Run) -> Task:
    model = CLIP(
        clip_config(config),
        dtype=compute_dtype(config.model.dtype, "model.dtype"),
        remat=_remat(config),
    )
    image, tokens = _smallest_batch(model.config)
    params = run(model.init, jax.random.key(config.seed), image, tokens)["params"]
    return Task(CLIPObjective(model), params, {}, model)


def _tcl_task(config: ConfigDict, sizes: CLIPConfig, clip: Any, run: Run) -> Task:
    dtype = compute_dtype(config.model.dtype, "model.dtype")
    tap = sizes.tap_of(config.model.tap_layer)
    if not 0 < tap < sizes.vision_layers:
        raise InputError(
            f"model.tap_layer={tap} leaves the grounder nothing to copy; choose 1 to "
            f"{sizes.vision_layers - 1}, or 0 for the block before the last"
        )
    model = TCL(sizes, tap, dtype, _remat(config))
    image, tokens = _smallest_batch(sizes)

    def init(key: jax.Array) -> Any:
        params = model.init(key, image, tokens, method=TCL.initialize)["params"]
        return {name: tree for name, tree in params.items() if name != "clip"}

    params = run(init, jax.random.key(config.seed))
    params["grounder"] = grounder_from_clip(params["grounder"], clip, tap)
    weights = {field.name: config.loss[field.name] for field in dataclasses.fields(LossWeights)}
    objective = TCLObjective(model, LossWeights(**weights), config.loss.temperature)
    return Task(objective, params, clip, CLIP(sizes, tap, dtype))


def _remat(config: ConfigDict) -> str:
    remat = config.train.remat
    if remat not in REMAT:
        raise InputError(f"train.remat={remat!r} is unknown; choose one of {', '.join(REMAT)}")
    return remat


def _on_host(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.device_get(jax.jit(function)(*arguments))


def _smallest_batch(sizes: CLIPConfig) -> tuple[jax.Array, jax.Array]:
    """An image and a text, to initialise with."""
    image = jnp.zeros((1, sizes.resolution, sizes.resolution, 3))
    return image, jnp.zeros((1, sizes.context_length), jnp.int32)


TASKS = {"tcl": build_tcl, "clip": build_clip}


def build_task(config: ConfigDict) -> Task:
    """Model, parameters and objective of `config.objective`.

    Raises:
        InputError: if something in the config or the weights does not fit.
    """
    return TASKS[_known_objective(config)](config)


def _known_objective(config: ConfigDict) -> str:
    if config.objective not in TASKS:
        raise InputError(
            f"objective={config.objective!r} is unknown; choose one of {', '.join(TASKS)}"
        )
    return str(config.objective)


def build_adamw(config: ConfigDict) -> AdamW:
    """AdamW with the settings of `optim`."""
    c = config.optim
    return AdamW(b1=c.b1, b2=c.b2, eps=c.eps, weight_decay=c.weight_decay, clip_norm=c.clip_norm)


def build_schedule(config: ConfigDict) -> Schedule:
    """The learning rate by step, scaled with the batch where `optim.scale_with_batch` says so."""
    c = config.optim
    scale = config.train.global_batch_size / REFERENCE_BATCH if c.scale_with_batch else 1.0
    return warmup_cosine(
        c.base_lr * scale, c.min_lr * scale, c.warmup_steps, config.train.total_steps
    )


def build_step(config: ConfigDict, objective: Objective) -> PhasedStep:
    """The step of a run, in both phases."""
    return PhasedStep(
        objective,
        build_adamw(config),
        build_schedule(config),
        backbone_from_step=config.train.backbone_from_step,
        accumulation_steps=config.train.accumulation_steps,
    )
