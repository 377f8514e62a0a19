"""Names of CLIP's tensors in the wild (OpenAI's, OpenCLIP's, Hugging Face's), told by the keys."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcl_jax.convert.mapping import WeightError, block_numbers
from tcl_jax.convert.tensor_file import TensorSpec
from tcl_jax.models.clip import HEAD_SIZE
from tcl_jax.models.layers import ACTIVATIONS

Parts = dict[str, list[str]]

HUGGING_FACE = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # spelt so there
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
"""OpenAI's names outside the blocks, and what `transformers` calls the same tensors."""

HUGGING_FACE_BLOCK = {
    "attn.in_proj_weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
    "attn.in_proj_bias": [f"self_attn.{x}_proj.bias" for x in "qkv"],
    "attn.out_proj.weight": ["self_attn.out_proj.weight"],
    "attn.out_proj.bias": ["self_attn.out_proj.bias"],
    "ln_1.weight": ["layer_norm1.weight"],
    "ln_1.bias": ["layer_norm1.bias"],
    "mlp.c_fc.weight": ["mlp.fc1.weight"],
    "mlp.c_fc.bias": ["mlp.fc1.bias"],
    "mlp.c_proj.weight": ["mlp.fc2.weight"],
    "mlp.c_proj.bias": ["mlp.fc2.bias"],
    "ln_2.weight": ["layer_norm2.weight"],
    "ln_2.bias": ["layer_norm2.bias"],
}
"""The same of one block; the first two are joined of three."""

TRANSPOSED = frozenset({"visual.proj", "text_projection"})
"""Matrices [in, out] at OpenAI that are weights [out, in] of a linear layer at Hugging Face."""

_BLOCKS = {"visual.transformer.resblocks.": "vision_model.encoder.layers.",
           "transformer.resblocks.": "text_model.encoder.layers."}  # fmt: skip
_TOWERS = ("visual.", "transformer.", "text.", "vision_model.", "text_model.")
_BUFFERS = re.compile(
    r"(.*\.)?(attn_mask|position_ids)|(visual\.)?input_resolution|context_length|vocab_size"
)
_OPENCLIP_FILE = "open_clip_"  # how OpenCLIP begins the names of its files on the hub
_MAX_CONFIG = 1 << 20
_RELATIVES = {
    "a CLIP with a ResNet, which TCL cannot be built on": ("visual.attnpool.", "visual.layer1."),
    "a SigLIP, which has no class token and another loss": ("logit_bias", "vision_model.head."),
    "an OpenCLIP model with an image tower of timm's": ("visual.trunk.",),
    "a CoCa": ("text_decoder.",),
}
_OTHERS = {
    "what TCL learned, without CLIP (the official tcl.pth)": ("masker.",),
    "the vision tower of a CLIP, without the text tower": ("pre_layrnorm.", "ln_pre."),
    "the text tower of a CLIP, without the vision tower": ("embeddings.token_embedding.",),
    "an image model of timm's, without a text tower": ("blocks.0.attn.qkv.",),
}


class Renamed(Mapping[str, np.ndarray]):
    """Tensors under other names; each is read when it is asked for, and not kept.

    Args:
        source: the tensors.
        parts: of each new name, the names in `source` to join along the first axis.
        transposed: new names of matrices to transpose.
    """

    def __init__(
        self,
        source: Mapping[str, np.ndarray],
        parts: Parts,
        transposed: frozenset[str] = frozenset(),
    ) -> None:
        self._source, self._parts, self._transposed = source, parts, transposed

    def __getitem__(self, name: str) -> np.ndarray:
        arrays = [self._source[part] for part in self._parts[name]]
        self._check([array.shape for array in arrays], name)
        array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        return array.T if name in self._transposed else array

    def __contains__(self, name: object) -> bool:
        return name in self._parts  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of each tensor; none is read if `source` has `specs` of its own."""
        source = getattr(self._source, "specs", self._source)
        specs = {}
        for name, parts in self._parts.items():
            shapes = [tuple(source[part].shape) for part in parts]
            self._check(shapes, name)
            shape = shapes[0]
            if len(shapes) > 1:
                shape = (sum(s[0] for s in shapes), *shape[1:])
            specs[name] = TensorSpec(
                shape[::-1] if name in self._transposed else shape, source[parts[0]].dtype
            )
        return specs

    def _check(self, shapes: list[tuple[int, ...]], name: str) -> None:
        if len(shapes) > 1 and (not shapes[0] or len(set(shapes)) > 1):
            raise WeightError(
                f"tensors {', '.join(self._parts[name])} have the shapes "
                f"{', '.join(map(str, shapes))}, which must be the same and not scalars; the file "
                "is damaged or no CLIP, so get it again or choose another"
            )


def to_openai_names(tensors: Mapping[str, np.ndarray]) -> tuple[Renamed, str]:
    """A vision-transformer CLIP under OpenAI's names, whoever named it.

    Args:
        tensors: by name, of which none is read here; where they have a `path`, its name tells
            OpenCLIP's files with OpenAI's names from OpenAI's own.

    Returns:
        The tensors that a CLIP needs, as a lazy mapping, and the style of the names: "openai",
        "openclip" (OpenAI's too, or with `text.` before the text tower) or "huggingface".

    Raises:
        WeightError: if they are not a whole CLIP of this kind; says what they look like.
    """
    names = set(tensors)
    _refuse_relatives(names)
    text = "text." if "text.token_embedding.weight" in names else ""
    if names & {HUGGING_FACE["visual.conv1.weight"], HUGGING_FACE["token_embedding.weight"]}:
        _check_towers(names, HUGGING_FACE)
        parts = _hugging_face_parts(names)
        _check_complete(names, parts)
        return Renamed(tensors, parts, TRANSPOSED), "huggingface"
    if names & {"visual.conv1.weight", f"{text}token_embedding.weight"}:
        _check_towers(names, {name: _prefixed(name, text) for name in HUGGING_FACE})
        parts = _openai_parts(names, text)
        _check_complete(names, parts)
        file = Path(getattr(tensors, "path", "")).name
        openclip = text or "attn_mask" in names or file.startswith(_OPENCLIP_FILE)
        return Renamed(tensors, parts), "openclip" if openclip else "openai"
    raise WeightError(
        f"this is no CLIP: it holds {_describe(names)}; give a CLIP with the names of OpenAI's, "
        "OpenCLIP or Hugging Face's CLIPModel"
    )


def read_activation(path: str | os.PathLike[str], style: str) -> str | None:
    """The GELU that a CLIP was trained with, told by the config file beside its weights.

    That is config.json for Hugging Face's names and open_clip_config.json for the others. Tensors
    do not tell it: OpenAI's models have "quick_gelu", most others "gelu".

    Args:
        path: of the weights.
        style: of their names, from `to_openai_names`.

    Returns:
        A key of `models.layers.ACTIVATIONS`; None if there is no config file.

    Raises:
        WeightError: if the config file is damaged or tells of an architecture that is not CLIP's.
    """
    if style == "huggingface":
        config = Path(path).parent / "config.json"
        read = _hugging_face_activation
    else:
        config = Path(path).parent / "open_clip_config.json"
        read = _openclip_activation
    if not os.path.isfile(config):
        return None
    try:
        if config.stat().st_size > _MAX_CONFIG:
            raise ValueError(f"it has more than {_MAX_CONFIG} bytes")
        return read(json.loads(config.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise WeightError(
            f"config {str(config)!r}, which lies beside the weights, cannot be used: {error}; get "
            "it again with its weights, or choose another CLIP"
        ) from error


def _hugging_face_activation(config: Any) -> str:
    # What a config leaves out has the default of transformers' CLIPConfig.
    towers = (
        ("vision_config", _section(config, "vision_config"), 768, 12),
        ("text_config", _section(config, "text_config"), 512, 8),
    )
    if config.get("model_type", "clip") != "clip":
        raise ValueError(f"its model_type is {config['model_type']!r}, not 'clip'")
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


def _hugging_face_parts(names: set[str]) -> Parts:
    parts = {ours: [theirs] for ours, theirs in HUGGING_FACE.items()}
    for ours, theirs in _BLOCKS.items():
        for i in range(_count_blocks(names, theirs)):
            for leaf, leaves in HUGGING_FACE_BLOCK.items():
                parts[f"{ours}{i}.{leaf}"] = [f"{theirs}{i}.{x}" for x in leaves]
    return parts


def _openai_parts(names: set[str], text: str) -> Parts:
    ours = list(HUGGING_FACE)
    for blocks in _BLOCKS:
        for i in range(_count_blocks(names, _prefixed(blocks, text))):
            ours += [f"{blocks}{i}.{leaf}" for leaf in HUGGING_FACE_BLOCK]
    return {name: [_prefixed(name, text)] for name in ours}


def _prefixed(name: str, text: str) -> str:
    return name if name.startswith(("visual.", "logit_scale")) else text + name


def _count_blocks(names: set[str], prefix: str) -> int:
    found = block_numbers(names, prefix)
    if not found or found != list(range(len(found))):
        raise WeightError(
            f"the blocks {prefix}N of this CLIP are numbered {found}, which leaves some "
            "out; the file is a part of a CLIP, so choose the whole one"
        )
    return len(found)


def _check_towers(names: set[str], theirs: Mapping[str, str]) -> None:
    towers = {"vision": "visual.conv1.weight", "text": "token_embedding.weight"}
    for tower, sign in towers.items():
        if theirs[sign] not in names:
            raise WeightError(
                f"the {tower} tower of this CLIP is missing: there is no {theirs[sign]}; choose a "
                "file with both towers, as Hugging Face's CLIPModel has"
            )


def _check_complete(names: set[str], parts: Parts) -> None:
    """Refuses a CLIP that lacks tensors, and towers with tensors that CLIP's have not."""
    needed = {part for group in parts.values() for part in group}
    missing = sorted(needed - names)
    if missing:
        raise WeightError(
            f"this looks like a CLIP, but it lacks {len(missing)} of {len(needed)} tensors: "
            f"{_some(missing)}; choose a file with both towers, all blocks and the projections"
        )
    extra = sorted(n for n in names - needed if n.startswith(_TOWERS) and not _BUFFERS.fullmatch(n))
    if extra:
        raise WeightError(
            f"this looks like a CLIP, but its towers have {len(extra)} tensors that OpenAI's CLIP "
            f"lacks: {_some(extra)}; that architecture is not supported, so choose a CLIP of plain "
            "vision and text transformers"
        )


def _refuse_relatives(names: set[str]) -> None:
    """Refuses models that share some of CLIP's names and compute something else."""
    for what, signs in _RELATIVES.items():
        if any(name.startswith(signs) for name in names):
            raise WeightError(
                f"this looks like {what}; choose a CLIP with a vision transformer, such as "
                "ViT-B/16 of OpenAI, OpenCLIP or Hugging Face"
            )


def _describe(names: set[str]) -> str:
    """What a file without CLIP's names holds, as far as they tell."""
    if not names:
        return "no tensors"
    for what, signs in _OTHERS.items():
        if any(name.startswith(signs) for name in names):
            return what
    return f"{len(names)} tensors such as {_some(sorted(names))}"


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if names[4:] else "")
