"""A model to segment with: from a checkpoint of ours, from a run, or from PyTorch's files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from tcl_jax.checkpoints.model import is_model, read_model, write_model
from tcl_jax.checkpoints.trained import Trained, find_store, read_trained
from tcl_jax.convert.identity import load_same_clip
from tcl_jax.convert.load import Source, check_prefix, load_clip, load_tcl, sizes_of
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.files import user_path
from tcl_jax.inference.settings import THRESHOLDS, InferenceSettings, default_settings
from tcl_jax.models.clip import CLIP, CLIPConfig
from tcl_jax.models.dense import DENSE
from tcl_jax.models.tcl import TCL
from tcl_jax.parallel.mesh import find_devices


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything that segmenting needs.

    Attributes:
        config: sizes of the CLIP.
        tap_layer: as in `models.tcl.TCL`; None: CLIP alone, the MaskCLIP baseline.
        params: nested dict of arrays of any floating dtype: `clip`, and what TCL learned beside it.
        settings: how the model is meant to be used.
        origin: where the parameters are from, for people.
        dense: how CLIP alone makes dense features, a key of `models.dense.DENSE`.
    """

    config: CLIPConfig
    tap_layer: int | None
    params: dict[str, Any]
    settings: InferenceSettings
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)
    dense: str = "maskclip"

    @property
    def method(self) -> str:
        """What makes the masks: "tcl", or how CLIP alone is used."""
        return self.dense if self.tap_layer is None else "tcl"

    def with_method(self, method: str) -> Model:
        """The same weights judged by another method: TCL, or a baseline on its CLIP alone.

        Raises:
            InputError: if the method is unknown, or it is TCL and there is only a CLIP.
        """
        if method == self.method:
            return self
        if method in DENSE:
            # A threshold that is not the protocol's was chosen for TCL's masks.
            settings = dataclasses.replace(self.settings, threshold=None)
            clip = {"clip": self.params["clip"]}
            return dataclasses.replace(
                self, tap_layer=None, params=clip, settings=settings, dense=method
            )
        if method == "tcl":
            raise InputError(
                "method 'tcl' needs TCL's weights, and this is a CLIP alone; give --tcl or a "
                f"checkpoint of TCL, or choose one of {', '.join(DENSE)}"
            )
        raise InputError(f"method {method!r} is unknown; choose one of tcl, {', '.join(DENSE)}")

    def module(self, dtype: Any = jnp.float32) -> TCL | CLIP:
        """The network, for `weights`, computing in a dtype; parameters stay float32."""
        if self.tap_layer is None:
            return CLIP(self.config, dtype=dtype, dense=self.dense)
        return TCL(self.config, self.tap_layer, dtype)

    @property
    def weights(self) -> dict[str, Any]:
        """Parameters of `module`: all of them, or CLIP's where there is nothing else."""
        return self.params["clip"] if self.tap_layer is None else self.params

    @property
    def learned(self) -> dict[str, Any]:
        """Parameters without CLIP's."""
        return {name: tree for name, tree in self.params.items() if name != "clip"}


def model_from_torch(
    clip: Source, tcl: Source | None = None, *, activation: str | None = None, prefix: str = ""
) -> Model:
    """CLIP, and TCL on it, from published files, in the dtypes of these.

    Args:
        clip: path, name or `builtin:NAME`; see `convert.load.load_clip`.
        tcl: "official" or the path of a TCL checkpoint with the official names; None: CLIP alone.
        activation: see `convert.load.load_clip`.
        prefix: of the names of the model that is meant, in each file that holds several.

    Raises:
        InputError: if a file cannot be used; it is named.
        RunError: if JAX has no device.
    """
    find_devices()
    pretrained = load_clip(clip, activation=activation, prefix=prefix, dtype=None)
    params: dict[str, Any] = {"clip": pretrained.params}
    origin: dict[str, Any] = {"clip": pretrained.origin}
    tap_layer = None
    if tcl is not None:
        learned, tap_layer = load_tcl(tcl, pretrained.config, prefix)
        params |= learned.params
        origin["tcl"] = learned.origin
    check_prefix(prefix, [one["prefix"] for one in origin.values()])
    settings = default_settings(pretrained.config)
    return Model(pretrained.config, tap_layer, params, settings, origin)


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
            return _from_directory(*read_model(path))
        if find_store(path) is not None:
            return _from_run(read_trained(path))
    there = user_path(path)
    what = "is a file" if there.is_file() else "holds neither" if there.is_dir() else "is not there"
    raise InputError(
        f"checkpoint {name!r} {what}; give a directory that `python -m tcl_jax.convert` or "
        "`python -m tcl_jax.export` wrote, or the workdir of a run of `python -m tcl_jax.main`. "
        "PyTorch's files are given as CLIP and TCL instead (--clip, --tcl)"
    )


def save_model(directory: Source, model: Model) -> None:
    """Writes a model directory, whole or not at all; parameters keep their dtypes.

    Raises:
        InputError: if something is there already.
        CheckpointWriteError: if it cannot be written.
    """
    write_model(directory, model.params, _describe(model))


def _describe(model: Model) -> dict[str, Any]:
    return {
        "method": model.method,
        "clip": dataclasses.asdict(model.config),
        "tap_layer": model.tap_layer,
        "inference": model.settings.to_json(),
        "origin": model.origin,
    }


def _from_directory(params: dict[str, Any], description: Mapping[str, Any]) -> Model:
    try:
        config = CLIPConfig(**description["clip"])
        settings = InferenceSettings.from_json(description["inference"])
        tap_layer = description["tap_layer"]
        origin = dict(description.get("origin", {}))
        method = description["method"]
    except (KeyError, TypeError) as error:
        raise InputError(f"its config.json lacks or misnames {error}; convert it again") from error
    if method not in ("tcl", *DENSE):
        raise InputError(
            f"the method of its config.json, {method!r}, is none of tcl, {', '.join(DENSE)}; "
            "convert it again"
        )
    dense = "maskclip" if method == "tcl" else method
    return Model(config, tap_layer, params, settings, origin, dense)


def _from_run(trained: Trained) -> Model:
    try:
        run, eval_ = trained.config["model"], trained.config["eval"]
        threshold, objective = eval_["background"], trained.config["objective"]
        own = {name: eval_[name] for name in ("pamr", "kp_weight", "templates")}
        tap_layer, *_ = (run[x] for x in ("tap_layer", "weights", "variant", "sizes"))
    except KeyError as error:
        raise InputError(f"its config has no field {error}; another version wrote it") from error
    origin: dict[str, Any] = {"run": {"step": trained.step, "config": trained.config}}
    if objective == "clip":
        config, tap_layer, params = sizes_of(run, objective), None, {"clip": trained.params}
    else:
        clip = load_same_clip(run, trained.config.get("clip"))
        config, tap_layer = clip.config, clip.config.tap_of(tap_layer)
        origin["clip"], params = clip.origin, {**trained.params, "clip": clip.params}
    settings = dataclasses.replace(
        default_settings(config),
        threshold=None if threshold == THRESHOLDS[own["pamr"]] else threshold,
        **own,
    )
    return Model(config, tap_layer, params, settings, origin)
