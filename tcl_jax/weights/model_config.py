"""Config files beside a CLIP's weights, which say what its tensors do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tcl_jax.errors import raise_machine_fault
from tcl_jax.files import read_json
from tcl_jax.models.clip import HEAD_SIZE
from tcl_jax.models.layers import ACTIVATIONS
from tcl_jax.weights.mapping import WeightError

_MAX_CONFIG = 1 << 20
T = TypeVar("T")
_MODEL_TYPES = ("clip", "clipseg")
"""Of Hugging Face's configs: CLIP, and a model that holds one and describes it in the same way."""


def read_activation(path: str | os.PathLike[str], style: str) -> str | None:
    """The GELU that a CLIP was trained with, told by the config file beside its weights.

    That is config.json for Hugging Face's names and open_clip_config.json for the others. Tensors
    do not tell it: OpenAI's models have "quick_gelu", most others "gelu".

    Args:
        style: of their names, from `to_openai_names`.

    Returns:
        A key of `models.layers.ACTIVATIONS`; None if no config file describes a model.

    Raises:
        WeightError: if the config file is damaged or tells of an architecture that is not CLIP's.
    """
    if style == "huggingface":
        config = Path(path).parent / "config.json"
        read, signs = _hugging_face_activation, {"model_type", "vision_config", "text_config"}
    else:
        config = Path(path).parent / "open_clip_config.json"
        read, signs = _openclip_activation, {"model_cfg", "vision_cfg"}

    def find(content: Any) -> str | None:
        # A file of this name may also be the config of whoever trained the model.
        return read(content) if isinstance(content, dict) and signs & content.keys() else None

    return read_beside(config, find, "choose another CLIP")


def read_beside(path: Path, read: Callable[[Any], T], instead: str) -> T | None:
    """What is read of the content of a config file beside weights; None if there is no file.

    Args:
        read: of its content; may raise as Python does of values of other kinds.
        instead: what to do, as the end of a sentence, where another file cannot be got.

    Raises:
        WeightError: if it is damaged, or `read` fails.
    """
    if not path.is_file():
        return None
    try:
        return read(read_json(path, _MAX_CONFIG))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise_machine_fault(f"config {str(path)!r} could not be read", error)
        raise WeightError(
            f"config {str(path)!r}, which lies beside the weights, cannot be used: {error}; get it "
            f"again with its weights, or {instead}"
        ) from error


def _hugging_face_activation(config: Any) -> str:
    # What a config leaves out has the default of transformers' CLIPConfig.
    towers = (
        ("vision_config", _section(config, "vision_config"), 768, 12),
        ("text_config", _section(config, "text_config"), 512, 8),
    )
    if (kind := config.get("model_type", "clip")) not in _MODEL_TYPES:
        raise ValueError(f"its model_type is {kind!r}, not 'clip'")
    found = set()
    for tower, sizes, width, heads in towers:
        found.add(sizes.get("hidden_act", "quick_gelu"))
        width, heads = sizes.get("hidden_size", width), sizes.get("num_attention_heads", heads)
        _expect(f"{tower}.num_attention_heads", heads, width / HEAD_SIZE)
        _expect(f"{tower}.layer_norm_eps", sizes.get("layer_norm_eps", 1e-5), 1e-5)
    if len(found) > 1:
        raise ValueError(f"its towers differ in hidden_act: {', '.join(map(str, found))}")
    activation = found.pop()
    if activation not in ACTIVATIONS:
        raise ValueError(f"its hidden_act is {activation!r}, not one of {', '.join(ACTIVATIONS)}")
    return activation


def _openclip_activation(config: Any) -> str:
    # What a config leaves out has the default of OpenCLIP's CLIPVisionCfg and CLIPTextCfg.
    config = _section(config, "model_cfg") if "model_cfg" in config else config
    vision, text = _section(config, "vision_cfg"), _section(config, "text_cfg")
    _expect("vision_cfg.head_width", vision.get("head_width", HEAD_SIZE), HEAD_SIZE)
    _expect("vision_cfg.pool_type", vision.get("pool_type", "tok"), "tok")
    _expect("text_cfg.heads", text.get("heads", 8), text.get("width", 512) / HEAD_SIZE)
    _expect("text_cfg.pool_type", text.get("pool_type", "argmax"), "argmax")
    _expect("text_cfg.no_causal_mask", text.get("no_causal_mask", False), False)
    for name, tower in (("vision_cfg", vision), ("text_cfg", text)):
        _expect(f"{name}.final_ln_after_pool", tower.get("final_ln_after_pool", False), False)
        _expect(f"{name}.act_kwargs", tower.get("act_kwargs") or {}, {})
        _expect(f"{name}.norm_kwargs", tower.get("norm_kwargs") or {}, {})
    quick = config.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise ValueError(f"its quick_gelu is {quick!r}, neither true nor false")
    return "quick_gelu" if quick else "gelu"


def _section(config: Any, name: str) -> dict[str, Any]:
    section = config.get(name) if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"it has no section {name!r}")
    return section


def _expect(name: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise ValueError(
            f"its {name} is {value!r} where CLIP's is {expected!r}; that architecture is not "
            "supported"
        )
