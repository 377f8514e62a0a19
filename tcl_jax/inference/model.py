"""A model to segment with: from a checkpoint of ours, from a run, or from PyTorch's files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
from absl import logging

from tcl_jax.checkpoints.model import is_model, read_model, write_model
from tcl_jax.checkpoints.trained import Trained, find_store, read_trained
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.files import user_path
from tcl_jax.inference.settings import THRESHOLDS, InferenceSettings, default_settings
from tcl_jax.models.clip_dinoiser import CLIPDINOiser
from tcl_jax.models.dense import MaskCLIP
from tcl_jax.models.families import PRETRAINED
from tcl_jax.models.method import BY_PAMR, Method
from tcl_jax.models.methods import METHODS, describe_method, method_of, read_method
from tcl_jax.models.proxyclip import ProxyCLIP
from tcl_jax.models.shapes import shapes_of
from tcl_jax.models.tcl import TCL
from tcl_jax.parallel.mesh import find_devices
from tcl_jax.weights.backbones import hint_of_backbone, load_backbone
from tcl_jax.weights.clip_dinoiser import load_head
from tcl_jax.weights.hub import locate_texts
from tcl_jax.weights.identity import load_frozen
from tcl_jax.weights.load import Source, check_prefix, load_clip, load_tcl
from tcl_jax.weights.mapping import WeightError

# What a method has beside CLIP, by the argument that gives it.
_PARTS = {
    "second": (
        ProxyCLIP.name,
        "another encoder beside CLIP; give second=, a file or a name such as 'dino:B/8' or "
        "'dinov2-reg:B/14'",
    ),
    "head": (
        CLIPDINOiser.name,
        "a head beside CLIP; give head=, its last.pt or 'official', which downloads the released "
        "one",
    ),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything that segmenting needs.

    Attributes:
        method: what makes the masks, computing in float32.
        params: nested dict of arrays of any floating dtype, see `Method.parameters`.
        settings: how the model is meant to be used.
        origin: where the parameters are from, for people.
    """

    method: Method
    params: dict[str, Any]
    settings: InferenceSettings
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Names of the methods that these weights are enough for."""
        return [name for name, kind in METHODS.items() if {*kind.parameters} <= {*self.params}]

    def method_in(self, dtype: Any = jnp.float32) -> Method:
        """`method` with `settings.pixels`, computing in a dtype; parameters stay float32."""
        fields = {"dtype": dtype}
        if self.method.own_pixels:
            fields["pixels"] = self.settings.pixels
        method: Method = dataclasses.replace(cast(Any, self.method), **fields)
        return method

    def with_method(self, method: str) -> Model:
        """The same weights used by another method, such as a baseline on TCL's CLIP alone.

        Raises:
            InputError: if the method is unknown, or needs weights that are not there.
        """
        if method == self.method.name:
            return self
        kind: type[Method] = method_of(method, "method")
        if lacking := [name for name in kind.parameters if name not in self.params]:
            raise InputError(
                f"method {method!r} needs {kind.title}'s weights, of which {', '.join(lacking)} "
                f"are missing; give its files (--model, --weights) or a checkpoint, or choose "
                f"one of {', '.join(self.methods)}"
            )
        made = kind.from_description(self.method.describe())
        # A threshold that is not the protocol's was chosen for the masks of this method.
        refine = self.settings.refine if self.settings.refine in kind.refinements else "none"
        settings = dataclasses.replace(self.settings, threshold=None, refine=refine)
        if kind.protocol != self.method.protocol:
            settings = default_settings(made)
        params = {name: self.params[name] for name in kind.parameters}
        return dataclasses.replace(self, method=made, params=params, settings=settings)


def model_from_torch(
    clip: Source,
    tcl: Source | None = None,
    *,
    method: str | None = None,
    second: Source | None = None,
    head: Source | None = None,
    activation: str | None = None,
    prefix: str = "",
) -> Model:
    """CLIP, and TCL or another encoder with it, from published files, in the dtypes of these.

    Args:
        clip: path, name or `builtin:NAME`; see `weights.load.load_clip`.
        tcl: "official" or the path of a TCL checkpoint with the official names; None: CLIP alone.
        method: what segments, a key of `models.methods.METHODS`; None: TCL if it is given, else
            MaskCLIP.
        second: of method "proxyclip", the encoder whose similarities patches attend by: file, or
            name such as "dino:B/8", see `weights.backbones.load_backbone`.
        head: of the method "clip_dinoiser": "official" or the path of its last.pt. A CLIP of which
            nothing tells the activation has the exact GELU then, as that of the released head.
        activation: see `weights.load.load_clip`.
        prefix: of the names of the model that is meant, in each file that holds several.

    Raises:
        InputError: if a file cannot be used; it is named.
        RunError: if JAX has no device.
    """
    if method is not None:
        method_of(method, "method")  # before files are read
    for part, given in (("second", second), ("head", head)):
        owner, need = _PARTS[part]
        if method == owner and given is None:
            raise InputError(f"method {owner!r} needs {need}")
        if given is not None and (method != owner or tcl is not None):
            raise InputError(
                f"{part}={os.fspath(given)!r} belongs to method {owner!r}, on CLIP alone; choose "
                f"method={owner!r} without tcl=, or leave {part}= out"
            )
    find_devices()
    usual = "quick_gelu" if head is None else "gelu"
    try:
        pretrained = load_clip(clip, activation=activation, prefix=prefix, dtype=None, usual=usual)
    except WeightError as error:
        raise WeightError(f"{error}{hint_of_backbone(clip)}") from error
    made: Method = MaskCLIP(pretrained.config)
    params = {"clip": pretrained.params}
    origin: dict[str, Any] = {"clip": pretrained.origin}
    if tcl is not None:
        learned, feature_layer = load_tcl(tcl, pretrained.config, prefix)
        made = TCL(pretrained.config, feature_layer)
        params |= learned.params
        origin["tcl"] = learned.origin
    if second is not None:
        loaded = load_backbone(second, prefix=prefix, dtype=None)
        params = {"clip": pretrained.params, "second": loaded.params}
        shapes = shapes_of({"second": loaded.params})
        made = ProxyCLIP(pretrained.config, second=loaded.family.name, shapes=shapes)
        origin["second"] = loaded.origin
    if head is not None:
        params["head"], origin["head"] = load_head(head, pretrained.config, prefix, None)
        with as_input_error("clip"):
            made = CLIPDINOiser(pretrained.config, len(params["head"]["projection"]["bias"]))
        if pretrained.config.activation == "quick_gelu":
            logging.warning(
                "this CLIP has the activation quick_gelu, and the released head of CLIP-DINOiser "
                "is for LAION-2B's, which has the exact GELU; masks are wrong with another CLIP "
                "than a head was trained on"
            )
    check_prefix(prefix, [one["prefix"] for one in origin.values()])
    model = Model(made, params, default_settings(made), origin)
    return model if method is None else model.with_method(method)


def model_from_backbone(
    source: Source,
    *,
    text: Source | Sequence[Source] = (),
    family: str | None = None,
    heads: int | None = None,
    text_heads: int | None = None,
    prefix: str = "",
    own_patches: bool = False,
    name: str = "",
) -> Model:
    """TIPS or dino.txt from published files, in the dtypes of these.

    Args:
        source: the vision tower's file, or a name such as "tips:B/14"; see
            `weights.backbones.load_backbone`, also for the other arguments.
        text: files with the text tower, and dino.txt's head; not needed with a name.
        family, heads, text_heads, prefix, name: see there.
        own_patches: see `models.dinotxt.DinoTxt`.

    Raises:
        InputError: if a file cannot be used or a tower is not there; it is named.
        RunError: if JAX has no device.
    """
    find_devices()
    if not text and str(source) in PRETRAINED:
        text = locate_texts(str(source))
    loaded = load_backbone(
        source, family, heads, text=text, text_heads=text_heads, prefix=prefix, dtype=None,
        name=name,
    )  # fmt: skip
    check_prefix(prefix, [loaded.origin["prefix"]])
    if own_patches and loaded.family.name == "tips":
        raise InputError("own_patches is of dino.txt alone, and not of TIPS")
    fields: dict[str, Any] = {"own_patches": True} if own_patches else {}
    method, params = loaded.zero_shot(**fields)
    return Model(method, params, default_settings(method), {"backbone": loaded.origin})


def load_model(path: Source) -> Model:
    """A model directory, or a run of `tcl_jax.main`.

    Args:
        path: what `save_model` wrote; or a workdir (its newest checkpoint), or one checkpoint of
            it, such as runs/tcl/checkpoints/50001.

    Raises:
        InputError: if it is none of these, is damaged, or a run's CLIP is missing or not
            the one that it was trained on.
        RunError: if JAX has no device.
    """
    find_devices()
    name = os.fspath(path)
    with as_input_error(f"checkpoint {name!r}"):
        if is_model(path):
            return _from_directory(user_path(path), *read_model(path))
        if find_store(path) is not None:
            return _from_run(read_trained(path))
    there = user_path(path)
    what = "is a file" if there.is_file() else "holds neither" if there.is_dir() else "is not there"
    raise InputError(
        f"checkpoint {name!r} {what}; give a directory that `python -m tcl_jax.convert` or "
        "`python -m tcl_jax.export` wrote, or the workdir of a run of `python -m tcl_jax.main`. "
        "PyTorch's files are given as CLIP and TCL instead (--clip, --tcl), or as parts of a model "
        "by name (--model, --weights)"
    )


def save_model(directory: Source, model: Model) -> None:
    """Writes a model directory, whole or not at all; parameters keep their dtypes.

    Raises:
        InputError: if something is there already.
        CheckpointWriteError: if it cannot be written.
    """
    description = {
        **describe_method(model.method),
        "inference": model.settings.to_json(),
        "origin": model.origin,
    }
    # So that the directory can go to another machine.
    tokenizer = model.method.text_encoder.tokenizer_file
    write_model(directory, model.params, description, [tokenizer] if tokenizer else [])


def _from_directory(folder: Path, params: dict[str, Any], description: Mapping[str, Any]) -> Model:
    method = read_method({**description, "folder": str(folder)})
    if "inference" not in description:
        raise InputError("its config.json lacks 'inference'; write it again")
    settings = InferenceSettings.from_json(description["inference"])
    if "scores" not in description["inference"] and default_settings(method).scores != "masks":
        raise InputError(
            f"its config.json has TCL's settings for {method.title}, as before this method had its "
            "authors'; write it again"
        )
    return Model(method, params, settings, dict(description.get("origin", {})))


def _from_run(trained: Trained) -> Model:
    try:
        described, recorded = trained.config["trained"], trained.config["frozen"]
        eval_ = trained.config["eval"]
        threshold = eval_["background"]
        own = {name: eval_[name] for name in ("kp_weight", "templates")}
        own["refine"] = BY_PAMR[eval_["pamr"]]
    except KeyError as error:
        raise InputError(f"its config has no field {error}; another version wrote it") from error
    frozen, origin = load_frozen(recorded)
    method = read_method({**described, "folder": origin.get("text", {}).get("folder", "")})
    settings = dataclasses.replace(
        default_settings(method),
        threshold=None if threshold == THRESHOLDS[own["refine"]] else threshold,
        **own,
    )
    origin = {"run": {"step": trained.step, "config": trained.config}, **origin}
    return Model(method, {**trained.params, **frozen}, settings, origin)
