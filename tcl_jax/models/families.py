"""The families of vision towers besides CLIP's, and where their released weights are.

A new one is a row of `FAMILIES`, a map of names in `weights/` with its row in
`weights.backbones.LAYOUTS`, and a golden test. "dinov2-reg:B/14" names a size of a family.

Addresses, repositories and licences are as their authors' code and pages give them; they were not
opened while this was written, and no hashes of the files are known.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from tcl_jax.models.layers import tanh_gelu
from tcl_jax.models.vit import ViT, bicubic_antialias, bicubic_offset, bilinear_antialias
from tcl_jax.ops.images import IMAGENET, PixelStatistics

HEAD_SIZE = 64
"""Channels of an attention head, of nearly all released towers."""


@dataclasses.dataclass(frozen=True)
class Size:
    """One released tower.

    Attributes:
        width, depth, heads: of its blocks.
        addresses: of the file, any of which may be the one; its name there is what it is looked
            for under.
        repo: repository of the Hugging Face hub that it is downloaded from in place of these.
        texts: the same as `addresses` of each file that texts need, the text tower's last.
        gated: whether the MLPs are SwiGLUs.
    """

    width: int
    depth: int
    heads: int
    addresses: tuple[str, ...]
    repo: str = ""
    texts: tuple[tuple[str, ...], ...] = ()
    gated: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """What the towers of a family have in common.

    Attributes:
        name: in the names of towers.
        title: as papers call it.
        vit: settings that the parameters do not show.
        licence: of the weights.
        sizes: by name, the letter and the side of a patch.
        pixel_statistics: mean and deviation that RGB in [0, 1] is normalised with.
        gated: whether the licence has to be accepted before files can be downloaded.
        towers: the family that the vision tower is of, if it is another's (dino.txt).
    """

    name: str
    title: str
    vit: ViT
    licence: str
    sizes: dict[str, Size] = dataclasses.field(hash=False)
    pixel_statistics: PixelStatistics = IMAGENET
    gated: bool = False
    towers: str = ""


_META = "https://dl.fbaipublicfiles.com"
_TIPS = "https://storage.googleapis.com/tips_data/v2_0/checkpoints/scenic"
_WIDTHS = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "g": (1536, 40, 24)}


def _dino(name: str, patch: int, size: str) -> Size:
    name = f"dino_{name}{patch}_pretrain"
    return Size(*_WIDTHS[size], (f"{_META}/dino/{name}/{name}.pth",))


def _dinov2(registers: str) -> dict[str, Size]:
    sizes = {}
    for letter, size in _WIDTHS.items():
        name = f"dinov2_vit{letter.lower()}14"
        address = f"{_META}/dinov2/{name}/{name}{registers}_pretrain.pth"
        sizes[f"{letter}/14"] = Size(*size, (address,), gated=letter == "g")
    return sizes


def _dinov3(name: str, code: str, width: int, depth: int, heads: int) -> Size:
    address = f"{_META}/dinov3/dinov3_{name}/dinov3_{name}_pretrain_lvd1689m-{code}.pth"
    repo = f"facebook/dinov3-{name}-pretrain-lvd1689m"
    return Size(width, depth, heads, (address,), repo, gated=name.endswith(("plus", "7b16")))


def _tips(width: int, depth: int, heads: int, *names: str) -> Size:
    vision, text = (
        tuple(f"{_TIPS}/tips_v2_{x}_{tower}.npz" for x in names) for tower in ("vision", "text")
    )
    return Size(width, depth, heads, vision, texts=(text,), gated="g14" in names)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "dino", "DINO", ViT(resample=bicubic_offset, ragged="crop"), "Apache 2.0",
            {
                f"{size}/{patch}": _dino(name, patch, size)
                for size, name in (("S", "deitsmall"), ("B", "vitbase"))
                for patch in (8, 16)
            },
        ),
        Family(
            "dinov2-reg", "DINOv2 with registers", ViT(resample=bicubic_antialias),
            "Apache 2.0", _dinov2("_reg4"),
        ),
        Family("dinov2", "DINOv2", ViT(resample=bicubic_offset), "Apache 2.0", _dinov2("")),
        Family(
            "dinov3", "DINOv3", ViT(eps=1e-5, ragged="crop"), "DINOv3 License",
            {
                "S/16": _dinov3("vits16", "08c60483", 384, 12, 6),
                "S+/16": _dinov3("vits16plus", "4057cbaa", 384, 12, 6),
                "B/16": _dinov3("vitb16", "73cec8be", 768, 12, 12),
                "L/16": _dinov3("vitl16", "8aa4cbdd", 1024, 24, 16),
                "H+/16": _dinov3("vith16plus", "7c1da9a5", 1280, 32, 20),
                "7B/16": _dinov3("vit7b16", "a955f4ea", 4096, 40, 32),
            },
            gated=True,
        ),
        Family(
            "tips", "TIPSv2",
            ViT(activation=tanh_gelu, resample=bilinear_antialias, ragged="pad"),
            "Apache 2.0 (software) and CC-BY 4.0",
            {
                "B/14": _tips(768, 12, 12, "b14"),
                "L/14": _tips(1024, 24, 16, "l14"),
                "So400m/14": _tips(1152, 27, 16, "so14", "so400m14"),
                "g/14": _tips(1536, 40, 24, "g14"),
            },
            pixel_statistics=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        ),
    )
}  # fmt: skip


def _dinotxt(name: str, towers: str, size: str, *addresses: str) -> Family:
    """A family with texts for the towers of another."""
    family = FAMILIES[towers]
    own = dataclasses.replace(family.sizes[size], texts=tuple((x,) for x in addresses))
    title = f"dino.txt on {family.title}"
    return dataclasses.replace(family, name=name, title=title, sizes={size: own}, towers=towers)


_V2_TEXTS = f"{_META}/dinov2/dinov2_vitl14/dinov2_vitl14_reg4_dinotxt_tet1280d20h24l"
FAMILIES["dinotxt"] = _dinotxt(
    "dinotxt", "dinov3", "L/16",
    f"{_META}/dinov3/dinov3_vitl16/dinov3_vitl16_dinotxt_vision_head_and_text_encoder-a442d8f5.pth",
)  # fmt: skip
FAMILIES["dinotxt-v2"] = _dinotxt(
    "dinotxt-v2", "dinov2-reg", "L/14",
    f"{_V2_TEXTS}_vision_head.pth", f"{_V2_TEXTS}_text_encoder.pth",
)  # fmt: skip

PRETRAINED = {f"{f.name}:{size}": (f, size) for f in FAMILIES.values() for size in f.sizes}
"""Family and size by the name of a released tower."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the shapes of a tower's tensors say.

    Attributes:
        width, depth, hidden: of its blocks, and of their MLPs.
        patch: side of a patch in pixels.
        classes, registers, positions: numbers of class tokens, of registers and of position
            embeddings.
        heads, head_size: of the attention, where the tensors say so.
        gated: whether the MLPs are SwiGLUs.
    """

    width: int
    depth: int
    hidden: int
    patch: int
    classes: int = 1
    registers: int = 0
    positions: int = 0
    heads: int | None = None
    head_size: int | None = None
    gated: bool = False

    def shapes(self, heads: int) -> dict[str, Any]:
        """Tree of `jax.ShapeDtypeStruct` of all parameters that such a tower may have."""
        c, size = self.width, self.head_size or self.width // heads
        norm = {"norm": {"scale": (c,), "bias": (c,)}}
        hidden = {"kernel": (c, self.hidden), "bias": (self.hidden,)}
        block = {
            "ln_1": norm,
            "attn": {
                "in_proj": {"kernel": (c, 3, heads, size), "bias": (3, heads, size)},
                "out_proj": {"kernel": (heads, size, c), "bias": (c,)},
            },
            "ls_1": (c,),
            "ln_2": norm,
            "mlp": {
                "gate": hidden,
                "c_fc": hidden,
                "c_proj": {"kernel": (self.hidden, c), "bias": (c,)},
            },
            "ls_2": (c,),
        }
        tree = {
            "patch_kernel": (self.patch, self.patch, 3, c),
            "patch_bias": (c,),
            "class_embedding": (c,) if self.classes == 1 else (self.classes, c),
            "register_tokens": (self.registers, c),
            "mask_token": (c,),
            "positional_embedding": (self.positions, c),
            "ln_post": norm,
            **{f"blocks_{i}": block for i in range(self.depth)},
        }
        return jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            tree,
            is_leaf=lambda x: isinstance(x, tuple),
        )
