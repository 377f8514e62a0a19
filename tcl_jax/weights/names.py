"""Names of CLIP's tensors in the wild (OpenAI's, OpenCLIP's, Hugging Face's), told by the keys.

A model is found by its structure, wherever it lies in a file: a few signs, names that each of its
kind has, end the names of its tensors, and what stands before them is its prefix.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from tcl_jax.errors import shorten
from tcl_jax.models.clip import INITIAL_LOGIT_SCALE
from tcl_jax.weights.mapping import WeightError, blocks_up_to_last
from tcl_jax.weights.tensor_file import LazyTensors, TensorSpec

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

_LAYERS = {
    "attn.in_proj_": [f"self_attn.{x}_proj." for x in "qkv"],
    "attn.out_proj.": ["self_attn.out_proj."],
    "ln_1.": ["layer_norm1."],
    "mlp.c_fc.": ["mlp.fc1."],
    "mlp.c_proj.": ["mlp.fc2."],
    "ln_2.": ["layer_norm2."],
}
HUGGING_FACE_BLOCK = {
    f"{ours}{kind}": [f"{layer}{kind}" for layer in theirs]
    for ours, theirs in _LAYERS.items()
    for kind in ("weight", "bias")
}
"""The same of one block; the first two are joined of three."""

TRANSPOSED = frozenset({"visual.proj", "text_projection"})
"""Matrices [in, out] at OpenAI that are weights [out, in] of a linear layer at Hugging Face."""

_BLOCKS = {"visual.transformer.resblocks.": "vision_model.encoder.layers.",
           "transformer.resblocks.": "text_model.encoder.layers."}  # fmt: skip
_PARTS = (
    "visual.", "transformer.", "text.", "vision_model.", "text_model.", "visual_projection.",
    "text_projection.",
)  # fmt: skip
_BUFFERS = re.compile(
    r"(.*\.)?(attn_mask|position_ids)|(visual\.)?input_resolution|context_length|vocab_size"
)
_OPENCLIP_FILE = "open_clip_"  # how OpenCLIP begins the names of its files on the hub

# Parts of names that a tool puts between those of the model: DDP, torch.compile, FSDP and its
# checkpointing; TinyCLIP and OpenCLIP's CustomTextCLIP put each tower into a module of its own.
WRAPPERS = r"(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_OF_TEXT = r"token_embedding|positional_embedding|ln_final|text_projection|transformer|attn_mask"
_TOWER_MODULES = rf"_?(?:image_encoder|text_encoder|logit_scale)\.|text\.(?=(?:{_OF_TEXT})\b)"
_SIGNS = {  # by style, of the vision and the text tower
    "huggingface": (HUGGING_FACE["visual.conv1.weight"], HUGGING_FACE["token_embedding.weight"]),
    "openai": ("visual.conv1.weight", "token_embedding.weight"),
}

_START = {"logit_scale": np.array(INITIAL_LOGIT_SCALE, np.float32)}
"""What a CLIP begins with and does not need to make masks; its two towers alone lack it."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Renamed(LazyTensors):
    """Tensors under other names; each is read when it is asked for, and not kept.

    Attributes:
        names: of each new name, the names in `source` to join along the first axis; of none, the
            tensor is that of `_START`.
        transposed: new names of matrices to transpose.
        prefix: under which they were found, with the dot; see `choose_prefix`.
    """

    source: Mapping[str, np.ndarray]
    names: Parts
    transposed: frozenset[str] = frozenset()
    prefix: str = ""

    def __getitem__(self, name: str) -> np.ndarray:
        if not self.names[name]:
            return _START[name]
        arrays = [self.source[part] for part in self.names[name]]
        array = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        return array.T if name in self.transposed else array

    @property
    def unused(self) -> int:
        """How many tensors of `source` belong to none of these."""
        return len(set(self.source) - {part for parts in self.names.values() for part in parts})

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of each tensor; none is read if `source` has `specs` of its own."""
        source = getattr(self.source, "specs", self.source)
        specs = {}
        for name, parts in self.names.items():
            if not parts:
                specs[name] = TensorSpec(_START[name].shape, _START[name].dtype)
                continue
            shapes = [tuple(source[part].shape) for part in parts]
            shape = shapes[0]
            if len(shapes) > 1:
                if not shape or len(set(shapes)) > 1:
                    raise WeightError(
                        f"tensors {', '.join(parts)} have the shapes "
                        f"{', '.join(map(str, shapes))}, which must be the same and not scalars; "
                        "the file is damaged or no CLIP, so get it again or choose another"
                    )
                shape = (len(shapes) * shape[0], *shape[1:])
            shape = shape[::-1] if name in self.transposed else shape
            specs[name] = TensorSpec(shape, source[parts[0]].dtype)
        return specs


def to_openai_names(tensors: Mapping[str, np.ndarray], prefix: str = "") -> tuple[Renamed, str]:
    """A vision-transformer CLIP under OpenAI's names, whoever named it, and under any prefix.

    Args:
        tensors: by name, of which none is read here; where they have a `path`, its name tells
            OpenCLIP's files with OpenAI's names from OpenAI's own. Others beside a CLIP's are
            passed over.
        prefix: of the names of the one that is meant, where there are several.

    Returns:
        The tensors that a CLIP needs, as a lazy mapping, and the style of the names: "openai",
        "openclip" (OpenAI's too, or with `text.` before the text tower) or "huggingface".

    Raises:
        WeightError: if they hold no whole CLIP of this kind, or several that the prefix does not
            tell apart; says what they look like.
    """
    plain = plain_names(tensors, f"{WRAPPERS}|{_TOWER_MODULES}")
    towers = {
        (style, name.removesuffix(sign), sign)
        for style, signs in _SIGNS.items()
        for sign in signs
        for name in plain
        if f".{name}".endswith(f".{sign}")
        and not name.endswith(f"embeddings.{sign}")  # is part of Hugging Face's
    }
    count = Counter((style, before) for style, before, _ in towers)
    found = {before: style for (style, before), number in count.items() if number == 2}
    if not found:
        there = " and ".join(f"{sign} under {before!r}" for _, before, sign in sorted(towers))
        signs = " or ".join(" with ".join(pair) for pair in _SIGNS.values())
        raise WeightError(
            f"it holds no CLIP: of its {len(plain)} tensors, such as "
            f"{there or _examples(sorted(plain)) or 'none'}, no prefix has {signs}; give a CLIP "
            "with both towers and the names of OpenAI's, OpenCLIP's or Hugging Face's CLIPModel"
        )
    chosen = choose_prefix(sorted(found), prefix, "CLIP")
    style = found[chosen]
    names = {
        name.removeprefix(chosen): theirs
        for name, theirs in plain.items()
        if name.startswith(chosen)
    }
    parts = _clip_parts(names, style)
    _check_complete(names, parts)
    own = {ours: [names[x] for x in group if x in names] for ours, group in parts.items()}
    if lacking := [ours for ours, group in own.items() if not group]:
        logging.info("this CLIP has no %s; it is taken as at the start of training", *lacking)
    if style == "huggingface":
        return Renamed(tensors, own, TRANSPOSED, chosen), style
    file = Path(getattr(tensors, "path", "")).name
    openclip = "attn_mask" in names or file.startswith(_OPENCLIP_FILE)
    openclip |= ".text." in f".{names['token_embedding.weight']}"
    return Renamed(tensors, own, prefix=chosen), "openclip" if openclip else style


def plain_names(names: Iterable[str], wrappers: str) -> dict[str, str]:
    """Names without the parts that wrappers put into them, and the whole name of each.

    Args:
        names: with dots.
        wrappers: regular expression of the parts to leave out, each with its dot. Where two names
            would become one, as of a model beside its copy under `module.`, all stay as they are.
    """
    whole = list(names)
    plain = {_strip_wrappers(wrappers, name): name for name in whole}
    return plain if len(plain) == len(whole) else dict(zip(whole, whole, strict=True))


def dotted_names(names: Iterable[str]) -> dict[str, str]:
    """`plain_names` with dots of names that may have "/" in their place, as Flax's do."""
    whole = {name.replace("/", "."): name for name in names}
    return {short: whole[name] for short, name in plain_names(whole, WRAPPERS).items()}


def _strip_wrappers(wrappers: str, name: str) -> str:
    return re.sub(rf"(?<![^.])(?:{wrappers})", "", name)


def starts_of(names: Collection[str], signs: Sequence[str], without: Sequence[str]) -> list[str]:
    """Prefixes under which names with dots have all of these signs, and none of the others."""
    starts = [x.removesuffix(signs[0]) for x in names if f".{x}".endswith(f".{signs[0]}")]
    return [
        start
        for start in starts
        if all(start + sign in names for sign in signs)
        and not any(start + sign in names for sign in without)
    ]


def find_part(
    tensors: Mapping[str, np.ndarray], prefix: str, what: str, sign: str, kept: str, missing: str
) -> Renamed:
    """What one sign tells, by its official names, under any prefix in a file.

    Args:
        tensors: by name, of which none is read here; others beside it are passed over.
        prefix: of the names of the one that is meant, where there are several.
        sign, kept: patterns of a name by which it is known, and of all that belong to it.
        missing: what is said where there is none.

    Raises:
        WeightError: if there is none, or several that the prefix does not tell apart.
    """
    plain = plain_names(tensors, WRAPPERS)
    found = sorted({start for name in plain if (start := _before(sign, name)) is not None})
    if not found:
        raise WeightError(missing)
    start = choose_prefix(found, prefix, what)
    own = {x.removeprefix(start): [y] for x, y in plain.items() if x.startswith(start)}
    return Renamed(tensors, {x: y for x, y in own.items() if re.match(kept, x)}, prefix=start)


def holds_part(names: Iterable[str], sign: str) -> bool:
    """Whether there is a tensor by which `find_part` begins."""
    return any(_before(sign, name) is not None for name in names)


def _before(sign: str, name: str) -> str | None:
    """What stands before a sign in a name."""
    match = re.match(rf"((?:.*\.)?){sign}", name)
    return match[1] if match else None


def choose_prefix(found: Sequence[str], asked: str, what: str) -> str:
    """The prefix of the model that is meant among those that are there.

    Args:
        found: prefixes with their dots, without the parts of wrappers; "" is none.
        asked: the prefix, or its beginning, with or without the last dot; "." for none and "" if
            nothing was asked. Where there is but one model, it need not fit.

    Raises:
        WeightError: if several are meant, or none of several.
    """
    if len(found) == 1:
        return found[0]
    exact = [x for x in _spellings(asked) if x in found]
    fitting = exact[:1] or [x for x in found if matches_prefix(x, asked)]
    if asked and len(fitting) == 1:
        return fitting[0]
    wrong = f"and the prefix {asked!r} fits {len(fitting) or 'none'} of them; " if asked else ""
    shown = _examples([repr(x.rstrip(".")) if x else "'.' (no prefix)" for x in found])
    raise WeightError(
        f"it holds {len(found)} {what}s, with names that begin with {shown}; "
        f"{wrong}choose one with --prefix=NAME, model.prefix in a config, or prefix= in Python"
    )


def matches_prefix(prefix: str, asked: str) -> bool:
    """Whether a prefix begins as was asked for, or nothing was."""
    if not asked.strip("."):
        return not asked or not prefix
    return prefix.startswith(tuple(_spellings(asked)))


def _spellings(asked: str) -> list[str]:
    """A prefix with its last dot, as it is asked for and without the parts of wrappers."""
    whole = f"{asked.strip('.')}.".lstrip(".")
    return [whole, _strip_wrappers(f"{WRAPPERS}|{_TOWER_MODULES}", whole)]


def _clip_parts(names: Iterable[str], style: str) -> Parts:
    """OpenAI's name of each tensor of a CLIP, and the names in a file of what it is joined of."""
    theirs = style == "huggingface"
    parts = {ours: [other if theirs else ours] for ours, other in HUGGING_FACE.items()}
    for ours, other in _BLOCKS.items():
        blocks = other if theirs else ours
        for i in blocks_up_to_last(names, blocks):
            for leaf, leaves in HUGGING_FACE_BLOCK.items():
                joined = leaves if theirs else [leaf]
                parts[f"{ours}{i}.{leaf}"] = [f"{blocks}{i}.{x}" for x in joined]
    return parts


def _check_complete(names: Mapping[str, str], parts: Parts) -> None:
    """Refuses a CLIP that lacks tensors, or whose parts have some that OpenAI's have not."""
    needed = {part for group in parts.values() for part in group}
    missing = sorted(needed - names.keys() - _START.keys())
    extra = sorted(
        n for n in names.keys() - needed if n.startswith(_PARTS) and not _BUFFERS.fullmatch(n)
    )
    wrong = [f"lacks {len(missing)} of {len(needed)} tensors: {_examples(missing)}"] * bool(missing)
    wrong += [f"has {len(extra)} that OpenAI's lacks: {_examples(extra)}"] * bool(extra)
    if wrong:
        raise WeightError(
            f"this looks like a CLIP, but it {', and it '.join(wrong)}; choose a whole CLIP of "
            "plain vision and text transformers, not quantised, with adapters (LoRA) merged into "
            "its weights"
        )


def _examples(names: Sequence[str]) -> str:
    return shorten([name[:80] for name in names], 4)
