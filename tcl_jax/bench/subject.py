"""From flags to what is measured: a TCL with random weights, or a released model."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

from tcl_jax.commands import load_named
from tcl_jax.errors import InputError
from tcl_jax.inference.model import Model
from tcl_jax.inference.settings import default_settings
from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.clip_method import CLIPMethod
from tcl_jax.models.methods import METHODS
from tcl_jax.models.shapes import shapes_of, to_json
from tcl_jax.parallel.mesh import find_devices
from tcl_jax.training.build import random_experiment
from tcl_jax.training.check import check_config

RANDOM = ("second", "head")
"""What methods on a CLIP need besides, as far as it is random where it is not there."""
SECOND_PATCH, HEAD_CHANNELS = 8, 256
"""Side of a patch of ProxyCLIP's second encoder, and channels of CLIP-DINOiser's head."""
GATE = 0.5
"""Of the decoder's layers; at 0, where training starts, they would not change the results."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        model: with its parameters on the host.
        dtype: to compute in.
        about: what a report says of it.
        experiment, config: how it is trained; None of a released model.
    """

    model: Model
    dtype: str
    about: dict[str, str]
    experiment: Any = None
    config: Any = None


def read_segmenting(flags: argparse.Namespace) -> Subject:
    """The model of --model, or `read_subject` without it.

    Raises:
        InputError: if it cannot be loaded.
    """
    if flags.model is None:
        return read_subject(flags)
    usual = "float32" if find_devices()[0].platform == "cpu" else "bfloat16"
    dtype = flags.dtype or usual
    model = load_named(flags.model, flags.weights)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
    about = {"model": model.method.summary, "dtype": dtype}
    return Subject(dataclasses.replace(model, params=params), dtype, about)


def read_subject(flags: argparse.Namespace) -> Subject:
    """The model of the flags' config, with random weights, which take as long as trained ones.

    float16 can represent all of them, as the official loader rounds CLIP's to it.

    Raises:
        InputError: if the config cannot be used.
    """
    config = flags.config
    check_config(config)
    usual = "float32" if find_devices()[0].platform == "cpu" else config.model.dtype
    with config.unlocked():
        config.model.dtype = flags.dtype or usual
    if config.objective != "tcl":
        raise InputError(f"bench measures TCL; objective={config.objective!r} is another")
    experiment = random_experiment(config)
    for layer in experiment.params["grounder"]["decoder"].values():
        layer["gate"] = np.float32(GATE)
    method, given, dtype = experiment.method, config.model, str(config.model.dtype)
    params = experiment.join(experiment.params, experiment.frozen)
    sizes = given.weights if given.variant == "auto" else given.variant
    model = Model(method, params, default_settings(method))
    return Subject(model, dtype, {"sizes": str(sizes), "dtype": dtype}, experiment, config)


def methods_on(model: Model, names: str) -> list[Model]:
    """Methods on the CLIP of a model, MaskCLIP first.

    What a method needs besides is random: ProxyCLIP's second encoder is a tower as wide and deep as
    CLIP's with the patches of DINO B/8, CLIP-DINOiser's head has as many channels as the released.

    Args:
        names: keys of `METHODS`, separated by commas, or "all".

    Raises:
        InputError: if one of them is no method on such a CLIP, or the model lacks what it has
            learned.
    """
    have = {*model.params, *RANDOM} if "clip" in model.params else set()
    known = [
        name
        for name, kind in METHODS.items()
        if issubclass(kind, CLIPMethod) and {*kind.parameters} <= have
    ]
    chosen = known if names == "all" else names.split(",")
    if wrong := [name for name in chosen if name not in known]:
        raise InputError(
            f"--method={names}: {wrong[0]!r} is none of the methods on the CLIP of "
            f"{model.method.name}; those are {', '.join(known) or 'not there'}"
        )
    fields, key, models = model.method.describe(), jax.random.key(0), []
    sizes = dataclasses.replace(CLIPConfig(**fields["clip"]), patch_size=SECOND_PATCH)
    tower = jax.eval_shape(CLIP(sizes).init, key)["visual"]
    second = {"second": {name: x for name, x in tower.items() if name not in ("ln_pre", "proj")}}
    fields |= {"second": "dino", "shapes": to_json(shapes_of(second)), "channels": HEAD_CHANNELS}
    for name in dict.fromkeys(["maskclip", *chosen]):
        try:
            method = METHODS[name].from_description(fields)
        except ValueError as error:
            raise InputError(f"--method={names}: {name}: {error}") from error
        drawn = {part: method.init(key)[part] for part in RANDOM if part in method.parameters}
        params = {part: model.params.get(part, drawn.get(part)) for part in method.parameters}
        models.append(Model(method, params, default_settings(method)))
    return models
