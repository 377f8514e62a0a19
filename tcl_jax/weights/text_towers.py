"""Text towers that belong to a vision tower of `models.families`: TIPS's, and dino.txt's with its
vision head; found by the names in one file or several.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from tcl_jax.files import user_path
from tcl_jax.models.clip import CLIP
from tcl_jax.models.families import FAMILIES, HEAD_SIZE, PRETRAINED, Sizes
from tcl_jax.models.methods import METHODS
from tcl_jax.models.shapes import shapes_of
from tcl_jax.models.talk2dino_method import TEXT_TOWERS
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.weights import dinov2, mapping, tips
from tcl_jax.weights.folders import find_weights, open_model, trained_clip
from tcl_jax.weights.hub import CLIP_FILES, locate_text_tower
from tcl_jax.weights.load import Source, load_clip, origin_of, prepending_path
from tcl_jax.weights.mapping import Rule, WeightError, all_blocks, linear
from tcl_jax.weights.names import Renamed, choose_prefix, dotted_names, starts_of
from tcl_jax.weights.tensor_file import TensorFile

Rules = Callable[[Mapping[str, Any]], list[Rule]]


@dataclasses.dataclass(frozen=True)
class TextTower:
    """One way in which a part of a model is named in files.

    Attributes:
        part: key of its parameters, "text" or "head".
        method: the method in `models.methods.METHODS` that it is of.
        signs: names that all have.
        rules: of names without their prefix.
        without: names that none has, as a CLIP would.
    """

    part: str
    method: str
    signs: tuple[str, ...]
    rules: Rules
    without: tuple[str, ...] = ()


def flax_rules(names: Mapping[str, Any]) -> list[Rule]:
    """TIPS's text tower in Flax."""
    return [
        Rule("token_emb.emb_var", ("token_embedding",)),
        *tips.layer_norm("text_encoder_norm", ("ln_final",)),
        *all_blocks(names, "transformer.encoderblock_", partial(tips.block, names)),
    ]


def torch_rules(names: Mapping[str, Any]) -> list[Rule]:
    """The same in PyTorch, whose blocks have the names of CLIP's."""
    return [
        Rule("token_embedding.weight", ("token_embedding",)),
        *mapping.layer_norm("ln_final", ("ln_final",)),
        *all_blocks(names, "transformer.resblocks.", mapping.block),
    ]


def dinotxt_rules(names: Mapping[str, Any]) -> list[Rule]:
    """dino.txt's text tower."""

    def block(name: str, path: tuple[str, ...]) -> list[Rule]:
        return [
            *mapping.layer_norm(f"{name}.attention_norm", (*path, "ln_1")),
            Rule(f"{name}.attention.qkv.weight", (*path, "attn", "in_proj", "kernel"), (1, 0)),
            *linear(f"{name}.attention.proj", (*path, "attn", "out_proj")),
            *mapping.layer_norm(f"{name}.ffn_norm", (*path, "ln_2")),
            *linear(f"{name}.feed_forward.fc1", (*path, "mlp", "c_fc")),
            *linear(f"{name}.feed_forward.fc2", (*path, "mlp", "c_proj")),
        ]

    return [
        Rule("backbone.token_embedding.weight", ("token_embedding",)),
        Rule("backbone.positional_embedding", ("positional_embedding",)),
        *mapping.layer_norm("backbone.ln_final", ("ln_final",)),
        Rule("head.linear_projection.weight", ("text_projection",), (1, 0)),
        *all_blocks(names, "backbone.blocks.", block),
    ]


def head_rules(blocks: str, names: Mapping[str, Any]) -> list[Rule]:
    """dino.txt's vision head, whose blocks are DINOv3's but for a bias of queries and others."""
    norm = mapping.layer_norm("ln_final", ("ln_post",))
    return norm + all_blocks(names, blocks, partial(dinov2.block, names))


TOWERS = (
    TextTower("text", "tips", ("token_emb.emb_var", "text_encoder_norm.scale"), flax_rules),
    TextTower(
        "text", "tips", ("token_embedding.weight", "transformer.resblocks.0.ln_1.weight"),
        torch_rules, ("positional_embedding",),
    ),
    TextTower(
        "text", "dinotxt", ("backbone.token_embedding.weight", "head.linear_projection.weight"),
        dinotxt_rules,
    ),
    *(
        TextTower("head", "dinotxt", ("ln_final.weight", f"{blocks}0.ls1.gamma"),
                  partial(head_rules, blocks))
        for blocks in ("blocks.", "block_list.")
    ),
)  # fmt: skip


METHOD_OF = {"tips": "tips", "dinov3": "dinotxt", "dinov2-reg": "dinotxt"}
"""The method in `models.methods.METHODS` that compares texts with vision towers of a family."""


def find_text_towers(names: Collection[str]) -> dict[TextTower, list[str]]:
    """Rows of `TOWERS` that names with dots are of, and the prefixes of each."""
    found = {tower: starts_of(names, tower.signs, tower.without) for tower in TOWERS}
    return {tower: starts for tower, starts in found.items() if starts}


def name_text_towers(plain: Collection[str]) -> str:
    """The parts in a file with these plain names, for people; empty if there is none."""
    found = [(x.part, x.method) for x in find_text_towers(plain)]
    return " and ".join(
        f"the {'vision head' if part == 'head' else 'text tower'} of {METHODS[method].title}"
        for part, method in dict.fromkeys(found)
    )


def read_text_towers(
    files: Sequence[TensorFile],
    method: str,
    width: int,
    heads: int,
    text_heads: int | None = None,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Parameters of a method's towers besides the vision tower.

    Args:
        files: any of which may hold them.
        method: a key of `models.methods.METHODS`, "tips" or "dinotxt".
        width, heads: of the vision tower, and of dino.txt's head.
        text_heads: those of the text tower; None: as its kernels say; else, of TIPS as the vision
            tower has, and of dino.txt of 64 channels each, if these are several, or as the vision
            tower has.
        dtype: of the parameters; None keeps each tensor's own.

    Returns:
        `text`, and dino.txt's `head`, in so far as they are there.

    Raises:
        WeightError: if a tower lacks tensors or is not of this vision tower, or a file holds
            several of a kind.
    """
    params: dict[str, Any] = {}
    for file in files:
        for tower, starts in find_text_towers(dotted_names(file.names)).items():
            if tower.method != method or tower.part in params:
                continue
            with prepending_path(file.path):
                tensors = _tensors(file, tower, starts, "")
                given = heads if tower.part == "head" else text_heads
                found = _read(tower, tensors, given, heads, dtype)
                if (own := _width_of(found)) != width:
                    raise WeightError(
                        f"its {tower.part} tower is for patches of width {own}, and the vision "
                        f"tower's have {width}; give the files of one model"
                    )
                params[tower.part] = found
    return params


@dataclasses.dataclass(frozen=True)
class LoadedTexts:
    """A text tower for its own sake.

    Attributes:
        origin: where they are from, see `load.Pretrained.origin`, and the `folder` of the file.
    """

    encoder: TextEncoder
    params: dict[str, Any]
    origin: dict[str, str]


def load_text_tower(
    source: Source, prefix: str = "", dtype: Any = np.float32
) -> LoadedTexts | None:
    """The text tower of TIPS or dino.txt by name ("tips:B/14") or in a file.

    Args:
        source: a name of `families.PRETRAINED`, a file or a folder.
        prefix: see `names.choose_prefix`.
        dtype: of the parameters; None keeps each tensor's own.

    Returns:
        None where the source is another, as that of a CLIP is.

    Raises:
        InputError: if a tower of this name has no texts, or a file is damaged or not to be had.
    """
    name, path = os.fspath(source), user_path(source)
    named = ":" in name and name.partition(":")[0] in FAMILIES
    if not named and (name in CLIP_FILES or not os.path.exists(path) or trained_clip(path)):
        return None
    path = locate_text_tower(name) if named else find_weights(path)
    with open_model(path) as file, prepending_path(path):
        found = find_text_towers(dotted_names(file.names))
        texts = [tower for tower in found if tower.part == "text"]
        if not texts and not named:
            return None
        if len(texts) != 1:
            raise WeightError(
                f"it holds {len(texts)} kinds of text towers of TIPS or dino.txt, "
                "and one is needed; choose another file"
            )
        tensors = _tensors(file, texts[0], found[texts[0]], prefix)
        params = _read(texts[0], tensors, None, None, dtype)
        if named:
            family, size = PRETRAINED[name]
            if (own := _width_of(params)) != (wanted := family.sizes[size].width):
                raise WeightError(
                    f"its text tower is for patches of width {own}, and those of {name} have "
                    f"{wanted}; get that file again"
                )
        origin = origin_of(file, texts[0].method, tensors.prefix)
    encoder = TEXT_TOWERS[texts[0].method].of_shapes(shapes_of({"text": params}), str(path.parent))
    return LoadedTexts(encoder, params, {**origin, "folder": str(path.parent)})


def load_texts(source: Source, dtype: Any = np.float32) -> LoadedTexts:
    """`load_text_tower`, or else a CLIP's by `load.load_clip`."""
    if (tower := load_text_tower(source, dtype=dtype)) is not None:
        return tower
    clip = load_clip(source, dtype=dtype)
    return LoadedTexts(CLIP(clip.config), clip.params["text"], clip.origin)


def _tensors(file: TensorFile, tower: TextTower, starts: Sequence[str], prefix: str) -> Renamed:
    """A tower's tensors without their prefix, one of those that there are."""
    start = choose_prefix(sorted(starts), prefix, f"{tower.part} tower")
    plain = dotted_names(file.names).items()
    names = {x.removeprefix(start): [y] for x, y in plain if x.startswith(start)}
    return Renamed(file, names, prefix=start)


def _width_of(params: Any) -> int:
    """Width of the patches that a tower's embeddings are for."""
    if "text_projection" in params:  # of the class token, and of patches
        return params["text_projection"].shape[1] // 2
    return params["ln_final" if "ln_final" in params else "ln_post"]["norm"]["scale"].shape[0]


def _read(
    tower: TextTower, tensors: Renamed, heads: int | None, usual: int | None, dtype: Any
) -> dict[str, Any]:
    """Parameters; of `usual` heads, or as the released TIPS of this width, if nothing tells."""
    specs = tensors.specs
    rules = {rule.path: rule for rule in tower.rules(specs)}

    def shape(*path: str) -> tuple[int, ...]:
        rule = rules[path]
        if rule.name not in specs:
            raise WeightError(f"its {tower.part} tower lacks {rule.name}; choose a whole one")
        return specs[rule.name].shape

    (width,) = shape("blocks_0", "ln_1", "norm", "scale")
    hidden = shape("blocks_0", "mlp", "c_fc", "bias")[0]
    hidden //= 1 if rules["blocks_0", "mlp", "c_fc", "bias"].combine is None else 2
    kernel = shape("blocks_0", "attn", "in_proj", "kernel")
    # The published text tower of dino.txt has heads of 64 channels, and others than its vision
    # tower; a width of 64 is of a tiny model, whose towers are alike.
    of_64 = tower.part == "text" and tower.method == "dinotxt" and width > HEAD_SIZE
    told = kernel[1] if len(kernel) == 3 else heads
    if usual is None:
        released = {size.width: size.heads for size in FAMILIES["tips"].sizes.values()}
        usual = released.get(width, -(-width // HEAD_SIZE))
    number = told if told is not None else usual
    if told is None and of_64 and width % HEAD_SIZE == 0:
        number = width // HEAD_SIZE
    if number < 1 or width % number:
        raise WeightError(
            f"the width of {width} of its {tower.part} tower is not that of {number} attention "
            "heads; give their number as text_heads="
        )
    depth = len({path[0] for path in rules if path[0].startswith("blocks_")})
    template = Sizes(width, depth, hidden, patch=1).shapes(number)
    template["ln_final"] = template["ln_post"]
    for name in ("token_embedding", "positional_embedding", "text_projection"):
        if (name,) in rules:
            rule, size = rules[name,], shape(name)
            size = size if rule.axes is None else tuple(size[axis] for axis in rule.axes)
            at = 1 if name != "text_projection" else 0
            size = (*size[:at], width, *size[at + 1 :])
            template[name] = jax.ShapeDtypeStruct(size, np.float32)
    return mapping.to_params([*rules.values()], tensors, template, dtype)
