"""A frozen vision tower of a family as part of a method: what it is, without its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Key

from tcl_jax.models import flops
from tcl_jax.models.families import FAMILIES, Family
from tcl_jax.models.vit import ViT

_FIRST = "blocks_0/"


@dataclasses.dataclass(frozen=True)
class Tower:
    """Family and shapes of a vision tower.

    Attributes:
        family_name: a key of `families.FAMILIES`.
        depth: number of blocks.
        shapes: path and shape of every parameter; `blocks_0` stands for all blocks.
    """

    family_name: str
    depth: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, family_name: str, params: Any) -> Tower:
        """The tower of a family that has these parameters, or shapes."""
        flat = traverse_util.flatten_dict(params, sep="/")
        depth = sum(name.startswith("blocks_") for name in params)
        kept = {path: x for path, x in flat.items() if _is_first(path)}
        return cls(family_name, depth, tuple((k, tuple(x.shape)) for k, x in sorted(kept.items())))

    @property
    def family(self) -> Family:
        """What it has in common with others."""
        return FAMILIES[self.family_name]

    def vit(self, dtype: Any) -> ViT:
        """Settings for `models.vit.encode`, computing in a dtype."""
        return dataclasses.replace(self.family.vit, dtype=dtype)

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self._shape("patch_kernel")[-1]

    @property
    def heads(self) -> int:
        """Heads of the attention."""
        return self._shape("blocks_0/attn/in_proj/kernel")[-2]

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self._shape("patch_kernel")[0]

    @property
    def trained_side(self) -> int | None:
        """Side of the images that its positions were learned for, in pixels; None without any."""
        positions = dict(self.shapes).get("positional_embedding")
        return None if positions is None else round(positions[0] ** 0.5) * self.patch_size

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Random parameters; biases are zero, other vectors of a block and norms are one."""
        flat: dict[str, jax.Array] = {}
        for number in range(self.depth):
            for path, shape in self.shapes:
                if path.startswith(_FIRST):
                    path = path.replace(_FIRST, f"blocks_{number}/", 1)
                elif number:
                    continue
                drawn = jax.random.normal(jax.random.fold_in(key, len(flat)), shape)
                if path.endswith("bias"):
                    flat[path] = jnp.zeros(shape)
                elif len(shape) == 1 and path not in ("class_embedding", "mask_token"):
                    flat[path] = jnp.ones(shape)
                else:
                    flat[path] = 0.02 * drawn
        return traverse_util.unflatten_dict(flat, sep="/")

    def flops(self, side: int) -> int:
        """FLOPs of a square image of a side in pixels."""
        patches = (side // self.patch_size) ** 2
        others = sum(
            int(np.prod(shape[:-1]))
            for path, shape in self.shapes
            if path in ("class_embedding", "register_tokens")
        )
        return flops.vision_tower(self.width, self.depth, self.patch_size, patches, others)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.family.title} of {self.depth} blocks, width {self.width}"

    def describe(self) -> dict[str, Any]:
        """What `from_description` reads, for JSON."""
        shapes = {path: list(shape) for path, shape in self.shapes}
        return {"family": self.family_name, "depth": self.depth, "shapes": shapes}

    @classmethod
    def from_description(cls, fields: Mapping[str, Any]) -> Tower:
        """Inverse of `describe`.

        Raises:
            KeyError, TypeError: if a field is lacking, or the family is unknown.
        """
        family = FAMILIES[fields["family"]].name
        shapes = tuple((path, tuple(shape)) for path, shape in sorted(fields["shapes"].items()))
        return cls(family, fields["depth"], shapes)

    def _shape(self, path: str) -> tuple[int, ...]:
        return dict(self.shapes)[path]


def _is_first(path: str) -> bool:
    return path.startswith(_FIRST) or not path.startswith("blocks_")
