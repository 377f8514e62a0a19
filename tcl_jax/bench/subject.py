"""From flags to a TCL with random weights, which `train`, `masks` and `evaluate` measure."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tcl_jax.commands import command_parser, load_named
from tcl_jax.config_flags import add_config_flag, read_config
from tcl_jax.errors import InputError

if TYPE_CHECKING:
    from tcl_jax.inference.model import Model

CONFIG = "configs/tcl.py"
"""What is measured if nothing else is named."""
RANDOM = ("second", "head")
"""What methods on a CLIP need besides, as far as it is random where it is not there."""
SECOND_PATCH, HEAD_CHANNELS = 8, 256
"""Side of a patch of ProxyCLIP's second encoder, and channels of CLIP-DINOiser's head."""
GATE = 0.5
"""Of the decoder's layers; at 0, where training starts, they would not change the results."""


def numbers(text: str) -> tuple[int, ...]:
    """A flag's positive whole numbers, separated by commas."""
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 1")
    return values


def count(text: str) -> int:
    """A flag's positive whole number."""
    (value,) = numbers(text)
    return value


def bench_parser(name: str, doc: str | None, load: float) -> argparse.ArgumentParser:
    """The flags that `train`, `masks` and `evaluate` share."""
    p = command_parser(f"bench {name}", doc)
    add_config_flag(p)
    p.set_defaults(config=CONFIG)
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="to compute in; default: the config's, on a CPU float32",
    )
    p.add_argument("--json", metavar="FILE", help="also write all figures as JSON")
    p.add_argument(
        "--load",
        type=float,
        default=load,
        help="of the machine before the first of several measurements (default: what it is now)",
    )
    return p


def add_round_flags(p: argparse.ArgumentParser, name: str, calls: int) -> None:
    """--rounds, --warmup, and how many calls a round has."""
    p.add_argument("--rounds", type=count, default=5, help="of which the median counts (default 5)")
    p.add_argument("--warmup", type=count, default=3, help="calls that do not count (default 3)")
    p.add_argument(
        f"--{name}", type=count, default=calls, dest="calls", help=f"of a round (default {calls})"
    )


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


def read_segmenting(flags: argparse.Namespace, rest: Sequence[str], command: str) -> Subject:
    """The model of --model, or `read_subject` without it.

    Raises:
        InputError: if it cannot be loaded, or the flags are for the other kind.
    """
    if flags.model is None and not flags.weights:
        return read_subject(flags, rest, command)
    import jax
    import numpy as np

    from tcl_jax.parallel.mesh import find_devices

    if flags.model is None:
        raise InputError("--weights belongs to --model, whose parts it names")
    if rest or getattr(flags, "against", None):
        raise InputError(
            f"--model={flags.model!r} is measured with its own weights, which --weights may name, "
            f"and alone; leave {', '.join(rest) or '--against'} out"
        )
    usual = "float32" if find_devices()[0].platform == "cpu" else "bfloat16"
    dtype = flags.dtype or usual
    model = load_named(flags.model, flags.weights)
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), model.params)
    about = {"model": model.method.summary, "dtype": dtype}
    return Subject(dataclasses.replace(model, params=params), dtype, about)


def read_subject(flags: argparse.Namespace, rest: Sequence[str], command: str) -> Subject:
    """The model of the flags' config, with random weights, which take as long as trained ones.

    float16 can represent all of them, as the official loader rounds CLIP's to it.

    Args:
        flags, rest: of `bench_parser`; the rest are overrides of the config.

    Raises:
        InputError: if the config cannot be used.
    """
    config = read_config(flags.config, rest, f"bench {command}")

    import numpy as np

    from tcl_jax.inference.model import Model
    from tcl_jax.inference.settings import default_settings
    from tcl_jax.parallel.mesh import find_devices
    from tcl_jax.training.build import random_experiment
    from tcl_jax.training.check import check_config

    assert config is not None
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
    import jax

    from tcl_jax.inference.model import Model
    from tcl_jax.inference.settings import default_settings
    from tcl_jax.models.clip import CLIP, CLIPConfig
    from tcl_jax.models.clip_method import CLIPMethod
    from tcl_jax.models.methods import METHODS
    from tcl_jax.models.shapes import shapes_of, to_json

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
