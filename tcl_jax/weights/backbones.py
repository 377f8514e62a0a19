"""Pretrained vision towers of `models.families`, told apart by the names in their files."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tcl_jax.errors import shorten
from tcl_jax.files import user_path
from tcl_jax.models.families import FAMILIES, HEAD_SIZE, PRETRAINED, Family, Sizes
from tcl_jax.models.methods import METHODS
from tcl_jax.models.shapes import Shapes, shapes_of
from tcl_jax.models.vit import ViT
from tcl_jax.models.zero_shot import ZeroShot
from tcl_jax.weights import dinov2, dinov3, tips
from tcl_jax.weights.folders import find_weights, open_model
from tcl_jax.weights.hub import locate_backbone
from tcl_jax.weights.load import Source, origin_of, prepending_path
from tcl_jax.weights.mapping import StateDict, WeightError
from tcl_jax.weights.model_config import read_beside
from tcl_jax.weights.names import Renamed, choose_prefix, dotted_names, starts_of
from tcl_jax.weights.tensor_file import TensorFile
from tcl_jax.weights.text_towers import METHOD_OF, name_text_towers, read_text_towers


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which a family's tensors are named in files.

    Attributes:
        family: a key of `FAMILIES`.
        style: whose names they are.
        signs: names that all have, the patch embedding's kernel first.
        without: names that none has.
        sizes: what shapes say, by the names that `to_params` takes.
        to_params: parameters of the tower.
        parts: of names, and what they are replaced by to be those that `to_params` takes.
    """

    family: str
    style: str
    signs: tuple[str, ...]
    without: tuple[str, ...]
    sizes: Callable[[Mapping[str, Any]], Sizes]
    to_params: Callable[[StateDict, Sizes, int, Any], dict[str, Any]]
    parts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def rename(self, names: Mapping[str, str]) -> dict[str, str]:
        """The names that `to_params` takes, and the whole name of each."""
        renamed = {}
        for name, whole in names.items():
            for theirs, ours in self.parts.items():
                name = name.replace(theirs, ours)
            renamed[name] = whole
        return renamed


_OWN = (dinov2.PATCHES, "blocks.0.ls1.gamma")
_REGISTERS = ("register_tokens", "storage_tokens")
_HF = "embeddings.patch_embeddings"
_HF_OWN = (f"{_HF}.projection.weight", "encoder.layer.0.layer_scale1.lambda1")
_HF_PARTS = dinov2.HUGGING_FACE

LAYOUTS = (
    Layout("dino", "dino", (dinov2.PATCHES, "pos_embed", "cls_token"), (_OWN[1], *_REGISTERS),
           dinov2.sizes, dinov2.to_params),
    Layout("dino", "huggingface",
           (_HF_OWN[0], "embeddings.position_embeddings", "embeddings.cls_token"),
           (_HF_OWN[1], "embeddings.register_tokens"),
           dinov2.sizes, dinov2.to_params, _HF_PARTS),
    Layout("dinov2-reg", "dinov2", (*_OWN, "pos_embed", "register_tokens"), (),
           dinov2.sizes, dinov2.to_params),
    Layout("dinov2", "dinov2", (*_OWN, "pos_embed"), _REGISTERS,
           dinov2.sizes, dinov2.to_params),
    Layout("dinov2-reg", "huggingface", (*_HF_OWN, "embeddings.register_tokens"), (),
           dinov2.sizes, dinov2.to_params, _HF_PARTS),
    Layout("dinov2", "huggingface", _HF_OWN, ("embeddings.register_tokens",),
           dinov2.sizes, dinov2.to_params, _HF_PARTS),
    Layout("dinov3", "dinov3", (*_OWN, "storage_tokens"), ("pos_embed",),
           dinov3.sizes, dinov3.to_params),
    Layout("dinov3", "huggingface", (f"{_HF}.weight", "embeddings.register_tokens"), (),
           dinov3.sizes, dinov3.to_params, dinov3.HUGGING_FACE),
    Layout("tips", "flax", (tips.PATCHES, f"{tips.TOKENS}.cls"), (), tips.sizes, tips.to_params),
    Layout("tips", "pytorch", (dinov2.PATCHES, "pos_embed", "register_tokens"), (),
           tips.torch_sizes, tips.torch_to_params),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FoundBackbone:
    """A vision tower in a file, whose tensors are not read yet.

    Attributes:
        layout: how its tensors are named.
        tensors: by the names that the layout's `to_params` takes.
        sizes, heads: of its blocks.
        other: a tensor beside it that no DINO has, if its names are DINO's.
    """

    layout: Layout
    tensors: Renamed
    sizes: Sizes
    heads: int
    other: str = ""

    @property
    def family(self) -> Family:
        """What it has in common with others."""
        return FAMILIES[self.layout.family]

    @property
    def released(self) -> list[str]:
        """The sizes of its family that it may be."""
        own, patch = self.sizes, f"/{self.sizes.patch}"
        return [
            size
            for size, row in self.family.sizes.items()
            if (row.width, row.depth, row.gated) == (own.width, own.depth, own.gated)
            and size.endswith(patch)
        ]

    @property
    def title(self) -> str:
        """What it is, in words."""
        found, named = self.sizes, self.released
        size = f"of the size of {' or '.join(named)}" if named else "of a size of its own"
        grid = round(found.positions**0.5)
        other = (
            f", but with {self.other}, as classifiers of timm and MAE have" if self.other else ""
        )
        trained = f", positions of {grid}x{grid} patches" if found.positions else ""
        mlp = "SwiGLU" if found.gated else "MLP"
        return (
            f"{self.family.title} {size} ({found.depth} blocks, width {found.width}, "
            f"{self.heads} heads, {mlp} {found.hidden}, patch {found.patch}, "
            f"{found.registers} registers{trained}), {self.layout.style} names{other}"
        )


@dataclasses.dataclass(frozen=True)
class LoadedBackbone:
    """A vision tower read from a file.

    Attributes:
        family: what it has in common with others.
        vit: settings for `models.vit.encode`.
        params: nested dict of arrays.
        origin: where they are from: `file`, `sha256`, `format`, `style`, `prefix`.
        texts: of other towers, see `text_towers.read_text_towers`; empty if there are none.
        folder: where the file is.
    """

    family: Family
    vit: ViT
    params: dict[str, Any]
    origin: dict[str, str]
    texts: dict[str, Any] = dataclasses.field(default_factory=dict)
    folder: str = ""

    def zero_shot(
        self, needed: Sequence[str] = (), **fields: Any
    ) -> tuple[ZeroShot, dict[str, Any]]:
        """The method that compares patches with texts, and its parameters.

        Args:
            needed: its towers, in so far as they are needed; (): all.

        Raises:
            WeightError: if a tower that it needs is not there.
        """
        towers = self.family.towers or self.family.name
        method = METHODS.get(METHOD_OF.get(towers, ""))
        kind = method if method is not None and issubclass(method, ZeroShot) else None
        parts = {"vision": self.params, **self.texts}
        needed = needed or (kind.towers if kind else ("text",))
        lacking = [x for x in needed if x not in parts]
        if kind is None or lacking:
            raise WeightError(
                f"weights {self.origin.get('file', '')!r} are a vision tower of "
                f"{self.family.name} and come with no {' and no '.join(lacking)} tower; give the "
                "files with these as text= (--weights text=FILE), or choose another model, of TIPS "
                "or dino.txt"
            )
        found = kind.of_towers(parts, backbone=towers, folder=self.folder, **fields)
        return found, {kind.name: parts}


def load_backbone(
    source: Source,
    family: str | None = None,
    heads: int | None = None,
    *,
    text: Source | Sequence[Source] = (),
    text_heads: int | None = None,
    prefix: str = "",
    dtype: Any = np.float32,
    name: str = "",
    sure: bool = False,
) -> LoadedBackbone:
    """A pretrained vision tower by path, or by name ("dinov2-reg:B/14").

    Weights of DINOv2 without registers are used as its authors' code does, also if Hugging Face's
    names are in the file, whose own code resamples positions a little differently. A plain ViT of
    another training is taken for DINO's, with a warning where something tells it, as a classifier.

    Args:
        source: see `hub.locate_backbone`; a file or a folder.
        family: a key of `FAMILIES`, where the names in the file fit two; None: what they say.
        heads: of the attention; None: as the shapes of the kernels or the periods of the rotary
            embedding say, or Hugging Face's config.json beside the file, or as the released tower
            of this width has, or of 64 channels each.
        text: files with TIPS's text tower, or dino.txt's and its vision head, where they are not in
            the same file.
        text_heads: see `text_towers.read_text_towers`.
        prefix: see `names.choose_prefix`.
        dtype: of the parameters; None keeps each tensor's own.
        name: of a released tower, whose size it must have if it has that of any; "": `source`.
        sure: whether a plain ViT is refused in which something tells that it is no DINO, unless
            `family` says that it is taken for one.

    Raises:
        InputError: if a file is missing, damaged, or holds no such tower; it is named.
    """
    name = name or str(source)
    row, size = PRETRAINED.get(name, (None, ""))
    path = locate_backbone(source)
    others = [text] if isinstance(text, (str, os.PathLike)) else [*text]
    with open_model(path) as file:
        with prepending_path(path):
            found = find_backbone(file, family or (row.name if row else None), heads, prefix)
            if found.other and not (family or row):
                if sure:
                    how = "choose another file, or have it taken for a DINO by family='dino'"
                    raise WeightError(f"it is {found.title}; {how}")
                logging.warning("%s is taken for %s: no DINO has that tensor", path, found.title)
            # A file that is given may be of a size of its own, but not of another's.
            if row and size not in found.released and (found.released or name == str(source)):
                raise WeightError(
                    f"it is {found.title}, and not {name}; choose another file, or the name of "
                    "its size"
                )
            params = found.layout.to_params(found.tensors, found.sizes, found.heads, dtype)
            origin = origin_of(file, found.layout.style, found.tensors.prefix)
        own, texts = found.family, {}
        if method := METHOD_OF.get(own.name):
            with contextlib.ExitStack() as stack:
                files = [
                    stack.enter_context(open_model(find_weights(user_path(x)))) for x in others
                ]
                texts = read_text_towers(
                    [*files, file], method, found.sizes.width, found.heads, text_heads, dtype
                )
    if others and "text" not in texts:
        raise WeightError(
            f"weights {', '.join(repr(os.fspath(x)) for x in others)}: there is no text tower for "
            f"{own.title} in it, nor in {os.fspath(path)!r}; give its file as text=, or leave "
            "text= out"
        )
    if method == "dinotxt" and "text" in texts:
        own = next(x for x in FAMILIES.values() if x.towers == own.name)
    return LoadedBackbone(own, own.vit, params, origin, texts, str(path.parent))


def backbone_shapes(source: Source, heads: int | None = None) -> tuple[str, Shapes]:
    """Family of a tower, and shapes of its parameters under `backbone`.

    Of a released DINOv2 they are known without its file; others are read, see `load_backbone`.
    """
    family, size = PRETRAINED.get(str(source), (None, ""))
    if family is None or family.name not in ("dinov2", "dinov2-reg"):
        loaded = load_backbone(source, heads=heads)
        return loaded.family.name, shapes_of({"backbone": loaded.params})
    row = family.sizes[size]
    known = Sizes(
        width=row.width,
        depth=row.depth,
        hidden=4096 if row.gated else 4 * row.width,
        patch=14,
        registers=4,
        positions=1 + 37**2,
    )
    absent = [] if row.gated else ["/gate/"]
    absent += [] if family.name == "dinov2-reg" else ["/register_tokens"]
    shapes = shapes_of({"backbone": known.shapes(row.heads)})
    return family.name, tuple(x for x in shapes if not any(part in x[0] for part in absent))


def find_backbone(
    file: TensorFile, family: str | None = None, heads: int | None = None, prefix: str = ""
) -> FoundBackbone:
    """The vision tower in a file, of which no large tensor is read.

    Args:
        family, heads, prefix: as in `load_backbone`.

    Raises:
        WeightError: if there is none, several, or one that lacks what tells its sizes.
    """
    if family is not None and family not in FAMILIES:
        raise WeightError(f"family={family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    towers = family and (FAMILIES[family].towers or family)
    layouts = [x for x in LAYOUTS if towers in (None, x.family)]
    plain, fitting = _find_layouts(file, layouts)
    if not fitting:
        if family is not None and holds_backbone(file):
            other = find_backbone(file, heads=heads, prefix=prefix)
            same = [x for x, row in FAMILIES.items() if other.layout.family in (x, row.towers)]
            raise WeightError(
                f"it holds no {family}, but {other.title}; choose another file, or one of "
                f"{', '.join(same)} in place of {family} (family=, or the --model)"
            )
        if part := name_text_towers(plain):
            raise WeightError(
                f"it holds {part}, and no {family or 'vision tower'}; give the file with the "
                "vision tower first, and this one as text="
            )
        looked = ", ".join(dict.fromkeys(layout.signs[0] for layout in layouts))
        raise WeightError(
            f"it holds no {family or 'vision tower of DINO, DINOv2, DINOv3 or TIPS'}: of its "
            f"{len(plain)} tensors, such as {shorten(sorted(x[:80] for x in plain), 4)}, none are "
            f"named so under any prefix; looked for {looked} and the names beside them. Choose "
            "another file, or a family of " + ", ".join(FAMILIES)
        )
    start = choose_prefix(sorted(fitting), prefix, "backbone")
    own = {name.removeprefix(start): x for name, x in plain.items() if name.startswith(start)}
    layout = _choose(fitting[start], own, file)
    beside = dinov2.find_other(plain, start) if layout.family == "dino" else ""
    names = {ours: [theirs] for ours, theirs in layout.rename(own).items()}
    tensors = Renamed(file, names, prefix=start)
    try:
        sizes = layout.sizes(tensors.specs)
    except (KeyError, IndexError, ValueError) as error:
        raise WeightError(
            f"this looks like {FAMILIES[layout.family].title}, but the tensors that tell its sizes "
            f"are missing or of other shapes ({error}); choose a whole one"
        ) from error
    return FoundBackbone(layout, tensors, sizes, _count_heads(layout, sizes, heads, file), beside)


def holds_backbone(file: TensorFile) -> bool:
    """Whether a file has the names of a vision tower, or of several."""
    return bool(_find_layouts(file, LAYOUTS)[1])


def hint_of_backbone(source: Source) -> str:
    """How else a file can be used in which a CLIP was looked for; "" if it has no tower."""
    path = user_path(source)
    if not path.exists():
        return ""
    with open_model(find_weights(path)) as file:
        try:
            found = find_backbone(file)
        except WeightError:  # there is none, or several
            return ""
    if found.other:
        return ""
    uses = {"tips": "--model=tips --weights=backbone", "dino": "--model=proxyclip --weights=second"}
    use = uses.get(found.family.name, "--model=talk2dino --weights=backbone")
    return f". It is {found.title}: give it as a part of a model, such as {use}={os.fspath(source)}"


def _find_layouts(
    file: TensorFile, layouts: Sequence[Layout]
) -> tuple[dict[str, str], dict[str, list[Layout]]]:
    """Plain names and the whole name of each; and the layouts that fit those after a prefix."""
    plain = dotted_names(file.names)
    fitting: dict[str, list[Layout]] = {}
    for layout in layouts:
        for start in starts_of(plain, layout.signs, layout.without):
            fitting.setdefault(start, []).append(layout)
    return plain, fitting


def _choose(layouts: list[Layout], own: Mapping[str, str], file: TensorFile) -> Layout:
    """Of DINOv2 with registers and TIPS in PyTorch, which have the same names, the one it is.

    TIPS's second class token is called a register there, and its LayerScale does nothing: the
    Flax code, of which it is a copy, has none.
    """
    if len(layouts) == 1:
        return layouts[0]
    one = file.specs[own["register_tokens"]].shape[-2:-1] == (1,)
    tips = one and bool((file[own["blocks.0.ls1.gamma"]] == 1).all())
    return next(x for x in layouts if x.family == ("tips" if tips else "dinov2-reg"))


def _count_heads(layout: Layout, sizes: Sizes, heads: int | None, file: TensorFile) -> int:
    width = sizes.width
    usual = {size.width: size.heads for size in FAMILIES[layout.family].sizes.values()}
    if None not in (heads, sizes.heads) and heads != sizes.heads:
        raise WeightError(f"heads={heads}, but its tensors are of {sizes.heads}; leave it out")
    known = (heads, sizes.heads, _configured_heads(file, layout), usual.get(width))
    number = next((x for x in known if x is not None), width / HEAD_SIZE)
    if number < 1 or number % 1 or width % number:
        raise WeightError(
            f"its width of {width} is not that of {number:g} attention heads; give their number "
            "as heads="
        )
    return int(number)


def _configured_heads(file: TensorFile, layout: Layout) -> int | None:
    """The number of heads in the config file beside Hugging Face's weights."""
    if layout.style != "huggingface":
        return None

    def read(config: Any) -> int | None:
        number = config.get("num_attention_heads")
        return None if number is None else int(number)

    path = file.path.parent / "config.json"
    return read_beside(path, read, "take it away and give heads=")
