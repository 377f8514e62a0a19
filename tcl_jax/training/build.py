"""From a config to a model, its initial parameters, and the objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from tcl_jax.errors import InputError, as_input_error
from tcl_jax.models.clip import CLIP, CLIPConfig, choose_sizes
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.models.layers import REMAT, compute_dtype
from tcl_jax.models.method import Method
from tcl_jax.models.methods import METHODS, describe_method
from tcl_jax.models.shapes import init_params, shapes_of
from tcl_jax.models.talk2dino import init_projection
from tcl_jax.models.talk2dino_method import Talk2DINO, usual_side
from tcl_jax.models.tcl import TCL
from tcl_jax.models.tcl_dino import TCLDINO
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.ops.losses import LossWeights
from tcl_jax.training.objectives import (
    CLIPObjective,
    Objective,
    Talk2DINOObjective,
    TCLObjective,
)
from tcl_jax.training.optim import AdamW, Schedule, warmup_cosine
from tcl_jax.training.projection import fit_projection
from tcl_jax.training.step import PhasedStep
from tcl_jax.weights.backbones import backbone_shapes, load_backbone
from tcl_jax.weights.identity import (
    Identity,
    identify_backbone,
    identify_clip,
    identify_texts,
    text_tower_of,
)
from tcl_jax.weights.load import load_configured, sizes_of
from tcl_jax.weights.text_towers import load_text_tower

REFERENCE_BATCH = 4096
"""Batch for which TCL states its learning rates; others scale linearly."""

PROJECTIONS = ("least_squares", "random")
"""How the projection of TCL on a backbone begins, see `projection.fit_projection`."""

Run = Callable[..., Any]
"""(function, arguments) -> its result on the host, or that result's shapes."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained.

    Attributes:
        objective: the loss.
        method: the method that segments with the current parameters, and is evaluated.
        params: initial learned parameters, some entries of the method's tree, on the host; shapes
            if the experiment is abstract.
        frozen: its other entries, which stay as they are, likewise.
        identities: of the pretrained weights, by their entries of `frozen`.
        begun_from: of those that are trained further, by their entries of `params`.
        begin: of a new run, (params, frozen, batches, mesh, key) -> params that its first images
            tell, see `projection.fit_projection`; None: `params` stay as they are.
    """

    objective: Objective
    method: Method
    params: dict[str, Any]
    frozen: dict[str, Any]
    identities: Mapping[str, Identity] = dataclasses.field(default_factory=dict)
    begun_from: Mapping[str, Identity] = dataclasses.field(default_factory=dict)
    begin: Callable[..., Any] | None = None

    @property
    def learns_texts(self) -> bool:
        """Whether the embeddings of class names change while it is trained."""
        learned = jax.tree.map(lambda _: True, self.params)
        marked = self.join(learned, jax.tree.map(lambda _: False, self.frozen))
        return any(jax.tree.leaves(self.method.text_params(marked)))

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint says besides the config, so that it can be used without one."""
        return {
            "trained": describe_method(self.method),
            "frozen": dict(self.identities),
            "begun_from": dict(self.begun_from),
        }

    def join(self, params: Any, frozen: Any) -> dict[str, Any]:
        """The parameter tree of `method`, of learned and frozen entries."""
        return {**params, **frozen}


# --------------------------------------------------------------------------------- the objectives


def _clip_experiment(config: ConfigDict, run: Run, pretrained: bool) -> Experiment:
    """CLIP, everything learned: from scratch, or further from `model.weights`, of their sizes."""
    c, begun_from = config.model, dict[str, Identity]()
    if c.weights:
        own = {**c.to_dict(), "variant": "auto", "sizes": {"activation": c.sizes.activation}}
        given = ConfigDict({"seed": config.seed, "model": own})
        sizes, clip, begun_from = _pretrained_clip(given, run, pretrained)
    else:
        sizes = choose_sizes(c.variant, c.sizes.to_dict())
        clip = run(CLIP(sizes).init, jax.random.key(config.seed))
    model = CLIP(sizes, _dtype(config), _remat(config))
    method = MaskCLIP(sizes, model.dtype)
    return Experiment(CLIPObjective(model), method, {"clip": clip}, {}, begun_from=begun_from)


def _tcl_experiment(config: ConfigDict, run: Run, pretrained: bool) -> Experiment:
    """TCL on a frozen CLIP, the grounder's blocks and projection copied from it."""
    sizes, clip, identities = _pretrained_clip(config, run, pretrained)
    with as_input_error("model"):
        model = TCL(sizes, config.model.feature_layer, _dtype(config), _remat(config))
    return _grounding(config, run, model, {"clip": clip}, identities)


def _tcl_dino_experiment(config: ConfigDict, run: Run, pretrained: bool) -> Experiment:
    """TCL on a frozen backbone, from which the grounder's blocks are copied, and a frozen CLIP."""
    c = config.model
    if c.projection not in PROJECTIONS:
        raise InputError(
            f"model.projection={c.projection!r} is unknown; choose one of {', '.join(PROJECTIONS)}"
        )
    family, backbone, identities = _frozen_backbone(config, run, pretrained)
    sizes, clip, of_clip = _pretrained_clip(config, run, pretrained)
    with as_input_error("model"):
        model = TCLDINO(
            sizes, c.feature_layer, _dtype(config), _remat(config),
            family=family, shapes=shapes_of({"backbone": backbone}), image_size=c.image_size,
        )  # fmt: skip
    frozen = {"clip": clip, "backbone": backbone}
    experiment = _grounding(config, run, model, frozen, {**of_clip, **identities})
    fit = partial(fit_projection, model) if c.projection == "least_squares" else None
    return dataclasses.replace(experiment, begin=fit)


def _pretrained_clip(
    config: ConfigDict, run: Run, pretrained: bool, entry: str = "clip"
) -> tuple[CLIPConfig, Any, dict[str, Identity]]:
    """Sizes of the CLIP of `config.model`; parameters and identity of it or of its `text`."""
    if not pretrained:
        sizes = sizes_of(config.model.to_dict())
        params = run(CLIP(sizes).init, jax.random.key(config.seed))
        return sizes, params if entry == "clip" else params[entry], {}
    loaded = load_configured(config.model.to_dict())
    loaded = loaded if entry == "clip" else text_tower_of(loaded)
    return loaded.config, loaded.params, {entry: identify_clip(config.model.weights, loaded)}


def _frozen_texts(
    config: ConfigDict, run: Run, pretrained: bool
) -> tuple[TextEncoder, Any, dict[str, Identity]]:
    """The text tower that `config.model.weights` means, its parameters and identity."""
    c = config.model
    if (loaded := load_text_tower(c.weights, c.prefix)) is None:
        sizes, params, identities = _pretrained_clip(config, run, pretrained, "text")
        return CLIP(sizes), params, identities
    if c.variant != "auto" or any(c.sizes.values()):
        raise InputError(
            f"model.variant={c.variant!r} and model.sizes are of a CLIP, and model.weights="
            f"{c.weights!r} are the text tower of {METHODS[loaded.origin['style']].title}; leave "
            "them at 'auto' and without values"
        )
    if not pretrained:
        start = partial(init_params, shapes=shapes_of({"text": loaded.params}))
        return loaded.encoder, run(start, jax.random.key(config.seed))["text"], {}
    return loaded.encoder, loaded.params, {"text": identify_texts(c.weights, loaded)}


def _frozen_backbone(
    config: ConfigDict, run: Run, pretrained: bool
) -> tuple[str, Any, dict[str, Identity]]:
    """Family, parameters and identity of the backbone of `config.model`."""
    weights, heads = config.model.backbone, config.model.backbone_heads or None
    if not weights:
        raise InputError(
            f"model.backbone='' names none, and objective={config.objective!r} builds on one; give "
            "a name such as dinov2-reg:B/14, or the path of a file"
        )
    if not pretrained:
        family, shapes = backbone_shapes(weights, heads)
        start = partial(init_params, shapes=shapes)
        return family, run(start, jax.random.key(config.seed))["backbone"], {}
    loaded = load_backbone(weights, heads=heads)
    identity = identify_backbone(weights, loaded)
    return loaded.family.name, loaded.params, {"backbone": identity}


def _grounding(
    config: ConfigDict,
    run: Run,
    model: TCL,
    frozen: dict[str, Any],
    identities: Mapping[str, Identity],
) -> Experiment:
    """TCL's objective on frozen towers."""
    tower = model.tower_params(frozen)
    params = run(model.init_learned, jax.random.key(config.seed), tower)
    weights = LossWeights(**{f.name: config.loss[f.name] for f in dataclasses.fields(LossWeights)})
    objective = TCLObjective(model, weights, config.loss.temperature)
    return Experiment(objective, model, params, frozen, identities)


def _talk2dino_experiment(config: ConfigDict, run: Run, pretrained: bool) -> Experiment:
    """Talk2DINO's projection, from a frozen tower's texts to a frozen backbone's patches."""
    if not config.data.features:
        raise InputError(
            "objective='talk2dino' trains on features of images and captions, and data.features "
            "is ''; name a folder for them, such as data/features"
        )
    family, backbone, identities = _frozen_backbone(config, run, pretrained)
    if "class_embedding" not in backbone:
        raise InputError(
            f"model.backbone={config.model.backbone!r} ({family}) has no class token, and "
            "Talk2DINO asks what its heads look at; choose another, such as dinov2-reg:B/14"
        )
    tower, text, of_text = _frozen_texts(config, run, pretrained)
    frozen = {"text": text, "backbone": backbone}
    width = backbone["patch_kernel"].shape[-1]
    init = partial(init_projection, text_width=tower.embed_dim, width=width)
    params = {"projection": run(init, jax.random.key(config.seed))}
    with as_input_error("model"):
        method = Talk2DINO(
            family, shapes_of({**params, **frozen}), tower, usual_side(backbone),
            dtype=_dtype(config),
        )  # fmt: skip
    identities = {**of_text, **identities}
    return Experiment(Talk2DINOObjective(method), method, params, frozen, identities)


OBJECTIVES: dict[str, Callable[[ConfigDict, Run, bool], Experiment]] = {
    "tcl": _tcl_experiment,
    "tcl_dino": _tcl_dino_experiment,
    "clip": _clip_experiment,
    "talk2dino": _talk2dino_experiment,
}
"""By `config.objective`, functions of the config, of how to run initialisation, and of whether to
read pretrained weights."""


def build_experiment(config: ConfigDict) -> Experiment:
    """Model, parameters and objective of `config.objective`.

    Raises:
        InputError: if something in the config or the weights does not fit.
    """
    return _build(config, _on_host, pretrained=True)


def abstract_experiment(config: ConfigDict) -> Experiment:
    """`build_experiment` with shapes in place of parameters; no weights are read or made.

    Raises:
        InputError: if something in the config does not fit.
    """
    return _build(config, jax.eval_shape, pretrained=False)


def random_experiment(config: ConfigDict) -> Experiment:
    """`build_experiment` with random weights in place of pretrained ones; none are read.

    All are numbers that float16 has, too, as published CLIPs have them.

    Raises:
        InputError: if something in the config does not fit.
    """

    def rounded(function: Callable[..., Any], *arguments: Any) -> Any:
        params = _on_host(function, *arguments)
        return jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)

    return _build(config, rounded, pretrained=False)


def _build(config: ConfigDict, run: Run, *, pretrained: bool) -> Experiment:
    if config.objective not in OBJECTIVES:
        raise InputError(
            f"objective={config.objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}"
        )
    return OBJECTIVES[config.objective](config, run, pretrained)


def _on_host(function: Callable[..., Any], *arguments: Any) -> Any:
    return jax.device_get(jax.jit(function)(*arguments))


def _dtype(config: ConfigDict) -> Any:
    return compute_dtype(config.model.dtype, "model.dtype")


def _remat(config: ConfigDict) -> str:
    remat = config.train.remat
    if remat not in REMAT:
        raise InputError(f"train.remat={remat!r} is unknown; choose one of {', '.join(REMAT)}")
    return str(remat)


# ------------------------------------------------------------------------------------- the update


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
