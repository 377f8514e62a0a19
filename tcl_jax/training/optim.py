"""AdamW as in the paper (section 4.1): schedule, decay mask, parameter groups, clipping.

Parameters fall into groups by path. A step trains some groups and leaves the others alone, with
their moments and their bias-correction count, as PyTorch's optimiser does with tensors that have
no gradient: a group that joins later starts its own count then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from jaxtyping import Array, Float, Int

Flat = dict[str, jax.Array]
"""Parameters by path, such as "grounder/decoder/convs_0_0/gate"."""
Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


@struct.dataclass
class AdamW:
    """Hyper-parameters of the update; the defaults are the paper's.

    Attributes:
        b1, b2, eps: of Adam.
        weight_decay: decoupled, `p *= 1 - lr * weight_decay`, on the tensors of `decays`.
        clip_norm: largest global gradient norm over the tensors that train.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.05
    clip_norm: float = 5.0

    def transformation(self) -> optax.GradientTransformation:
        """Adam and decay; the result still has to be multiplied by minus the learning rate."""
        return optax.chain(
            optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps),
            optax.add_decayed_weights(self.weight_decay, mask=decay_mask),
        )


def warmup_cosine(base: float, floor: float, warmup_steps: int, total_steps: int) -> Schedule:
    """Linear warm-up from `1e-4 * base`, then half a cosine from `base` down to `floor`.

    Args:
        base, floor: highest and final learning rate, already scaled with the batch.
        warmup_steps: steps before `base` is reached; the step counts from 0.
        total_steps: step at which `floor` is reached; it stays there afterwards.
    """
    start = 1e-4 * base

    def schedule(step: Int[Array, ""]) -> Float[Array, ""]:
        t = jnp.asarray(step, jnp.float32)
        warm = start + (base - start) * t / max(warmup_steps, 1)
        progress = jnp.clip((t - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
        cosine = floor + (base - floor) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return jnp.where(t < warmup_steps, warm, cosine)

    return schedule


def decays(path: str, parameter: Any) -> bool:
    """Whether weight decay applies: every tensor that is not 1-D and is not a bias.

    0-D gates, mask scale and offset, and logit scales do decay. Fused attention biases are folded
    over heads here and 1-D in PyTorch; their name settles them.
    """
    return parameter.ndim != 1 and path.rsplit("/", 1)[-1] != "bias"


def decay_mask(flat: Flat) -> dict[str, bool]:
    """`decays` for every entry of a flat parameter dict."""
    return {path: decays(path, parameter) for path, parameter in flat.items()}


def split_groups(params: Any, group_of: Callable[[str], str]) -> dict[str, Flat]:
    """Parameter tree to flat dicts by group."""
    groups: dict[str, Flat] = {}
    for path, parameter in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        groups.setdefault(group_of(path), {})[path] = parameter
    return groups


def merge_groups(groups: dict[str, Flat]) -> Any:
    """Inverse of `split_groups`."""
    flat = {path: leaf for group in groups.values() for path, leaf in group.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def init_optimizer(adamw: AdamW, groups: dict[str, Flat]) -> dict[str, optax.OptState]:
    """Zero moments and counts for every group."""
    return {name: adamw.transformation().init(group) for name, group in groups.items()}


def apply_updates(
    adamw: AdamW,
    groups: dict[str, Flat],
    gradients: dict[str, Flat],
    opt_state: dict[str, optax.OptState],
    learning_rate: Float[Array, ""],
) -> tuple[dict[str, Flat], dict[str, optax.OptState], Float[Array, ""]]:
    """One update of the groups that have gradients; the others are returned as they are.

    Returns:
        New parameters, new optimiser states, and the gradient norm before clipping.
    """
    norm = optax.tree.norm(gradients)
    scale = jnp.minimum(1.0, adamw.clip_norm / (norm + 1e-6))
    new_groups, new_state = dict(groups), dict(opt_state)
    for name, gradient in gradients.items():
        clipped = jax.tree.map(lambda g: g * scale, gradient)
        update, new_state[name] = adamw.transformation().update(
            clipped, opt_state[name], groups[name]
        )
        new_groups[name] = jax.tree.map(lambda p, u: p - learning_rate * u, groups[name], update)
    return new_groups, new_state, norm
