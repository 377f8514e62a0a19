"""How one tensor of a PyTorch checkpoint becomes one parameter here, and back.

A `Rule` pairs a name with a path in the parameter tree and says how the axes differ; a mapping is
a list of rules. Both directions follow from the same list, so that they cannot disagree. Families
that are only read may also make one parameter of several tensors, or of a part of one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from tcl_jax.errors import InputError, shorten

StateDict = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


class WeightError(InputError):
    """A checkpoint that cannot be used; the message names file or tensor and says what to do."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One tensor in two conventions.

    Attributes:
        name: key in the PyTorch state dict.
        path: path in the Flax parameter tree.
        axes: transposition from PyTorch's axis order to ours.
        more: keys of tensors that `combine` takes after the first.
        combine: what makes one array of the tensors, before the transposition; there is no way
            back from it.
    """

    name: str
    path: tuple[str, ...]
    axes: tuple[int, ...] | None = None
    more: tuple[str, ...] = ()
    combine: Callable[..., np.ndarray] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of all tensors that are read."""
        return (self.name, *self.more)

    def read(self, state_dict: StateDict) -> np.ndarray:
        """The array of a state dict that is meant, as PyTorch lays it out."""
        tensors = [state_dict[name] for name in self.names]
        if self.combine is None:
            return tensors[0]
        try:
            return self.combine(*tensors)
        except (ValueError, IndexError) as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise WeightError(
                f"tensors {', '.join(self.names)} have the shapes {shapes}, which do not go "
                "together; the file is damaged or of another model, so choose another"
            ) from error

    def to_flax(self, tensor: np.ndarray, shape: Shape, dtype: Any = np.float32) -> np.ndarray:
        """Parameter of a shape and dtype from a PyTorch tensor of any floating dtype.

        Without a dtype it keeps the tensor's, but float64 becomes float32.
        """
        if not jnp.issubdtype(tensor.dtype, np.floating):
            raise WeightError(
                f"tensor {self.name!r} is {tensor.dtype}, which weights are not; the file is of "
                "another model, or quantised, so choose one with half or single precision"
            )
        kept = np.dtype(np.float32) if tensor.dtype == np.float64 else tensor.dtype
        array = np.asarray(tensor, kept if dtype is None else dtype)
        if self.axes is not None and array.ndim == len(self.axes):
            array = array.transpose(self.axes)
        # The parameter's axes may split the tensor's, as heads do, and never mix them.
        splits = {*np.cumprod(array.shape)} <= {1, *np.cumprod(shape)}
        if array.size != np.prod(shape, dtype=np.int64) or not splits:
            raise WeightError(
                f"tensor {self.name!r} has shape {tuple(np.shape(tensor))}, which does not fit "
                f"parameter {'/'.join(self.path)} of shape {shape}; the checkpoint is of another "
                "size than the config or its other tensors say: correct the config's sizes or "
                "choose the matching file"
            )
        if not np.isfinite(array).all():
            raise WeightError(
                f"tensor {self.name!r} holds values that are not finite; the file is damaged or "
                "of a training run that diverged, so get it again or choose another"
            )
        return _aligned_copy(array.reshape(shape))

    def to_torch(self, parameter: np.ndarray) -> np.ndarray:
        """PyTorch tensor from a parameter; fused heads are flattened."""
        if self.combine is not None:
            raise ValueError(f"{self.name} is only read")
        array = np.asarray(parameter)
        if self.name.endswith("in_proj_weight"):
            array = array.reshape(len(array), -1)
        elif self.name.endswith("in_proj_bias"):
            array = array.reshape(-1)
        elif self.name.endswith("out_proj.weight"):
            array = array.reshape(-1, array.shape[-1])
        if self.axes is not None:
            array = array.transpose(np.argsort(self.axes))
        return np.array(array, order="C")


def _aligned_copy(array: np.ndarray) -> np.ndarray:
    """A contiguous copy at an address that JAX on a CPU can use without copying once more."""
    alignment = 64
    buffer = np.empty(array.nbytes + alignment, np.uint8)
    start = -buffer.ctypes.data % alignment
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def linear(name: str, path: tuple[str, ...], axes: tuple[int, ...] = (1, 0)) -> list[Rule]:
    """Weight and bias of a dense layer ([out, in] there, [in, out] here), or of other axes."""
    return [
        Rule(f"{name}.weight", (*path, "kernel"), axes),
        Rule(f"{name}.bias", (*path, "bias")),
    ]


def layer_norm(name: str, path: tuple[str, ...]) -> list[Rule]:
    """Weight and bias of a LayerNorm."""
    return [
        Rule(f"{name}.weight", (*path, "norm", "scale")),
        Rule(f"{name}.bias", (*path, "norm", "bias")),
    ]


def block(name: str, path: tuple[str, ...]) -> list[Rule]:
    """One residual attention block."""
    return [
        Rule(f"{name}.attn.in_proj_weight", (*path, "attn", "in_proj", "kernel"), (1, 0)),
        Rule(f"{name}.attn.in_proj_bias", (*path, "attn", "in_proj", "bias")),
        *linear(f"{name}.attn.out_proj", (*path, "attn", "out_proj")),
        *layer_norm(f"{name}.ln_1", (*path, "ln_1")),
        *linear(f"{name}.mlp.c_fc", (*path, "mlp", "c_fc")),
        *linear(f"{name}.mlp.c_proj", (*path, "mlp", "c_proj")),
        *layer_norm(f"{name}.ln_2", (*path, "ln_2")),
    ]


def block_numbers(names: Iterable[str], prefix: str) -> list[int]:
    """Numbers N below 1,000 of which there is a name that begins with `prefix`N., sorted."""
    pattern = re.compile(re.escape(prefix) + r"([0-9]{1,3})\.")
    return sorted({int(found[1]) for found in map(pattern.match, names) if found})


def blocks_up_to_last(names: Iterable[str], prefix: str) -> range:
    """Numbers of the blocks that there should be, at least one: up to the last of `block_numbers`.

    So that a block that is missing between others is told by its tensors.
    """
    return range(max(block_numbers(names, prefix), default=0) + 1)


def all_blocks(
    names: Iterable[str], prefix: str, block: Callable[[str, tuple[str, ...]], list[Rule]]
) -> list[Rule]:
    """The rules of `blocks_up_to_last`, of each by its name without the last dot and its path."""
    numbers = blocks_up_to_last(names, prefix)
    return [rule for i in numbers for rule in block(f"{prefix}{i}", (f"blocks_{i}",))]


def to_params(
    rules: Sequence[Rule], state_dict: StateDict, template: Any, dtype: Any = np.float32
) -> dict[str, Any]:
    """Parameter tree of a state dict.

    Args:
        state_dict: name -> tensor, any floating dtype; other names in it are ignored.
        template: tree of anything with a `.shape`, what the model expects.
        dtype: of the result; None keeps each tensor's own.

    Returns:
        Nested dict of arrays with the template's structure. One tensor is read at a time.

    Raises:
        WeightError: naming a tensor that is missing, or its shape and the expected one.
    """
    shapes = {path: tuple(x.shape) for path, x in traverse_util.flatten_dict(template).items()}
    needed = {name: None for rule in rules for name in rule.names}
    missing = [name for name in needed if name not in state_dict]
    if missing:
        raise WeightError(
            f"the checkpoint lacks {len(missing)} of {len(needed)} tensors: {shorten(missing, 5)}; "
            "it is not a checkpoint of this model, or of one with fewer blocks than the config says"
        )
    # Shown on terminals alone, and only where it takes long.
    progress = tqdm(rules, "reading weights", unit="tensor", delay=2, leave=False, disable=None)
    flat = {
        rule.path: rule.to_flax(rule.read(state_dict), shapes[rule.path], dtype)
        for rule in progress
    }
    return traverse_util.unflatten_dict(flat)


def to_state_dict(rules: Sequence[Rule], params: Any) -> dict[str, np.ndarray]:
    """PyTorch's names and layouts of a parameter tree; dtypes are kept."""
    flat = traverse_util.flatten_dict(params)
    return {rule.name: rule.to_torch(flat[rule.path]) for rule in rules}
