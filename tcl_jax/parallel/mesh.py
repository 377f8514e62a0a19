"""The mesh over all devices of all processes, and the shardings of arrays on it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tcl_jax.errors import InputError, RunError

DATA_AXIS = "data"
"""Mesh axis over which batches are split."""
_LIMITED_ROUTING = re.compile(r"TPU v5(e| lite)")
SMALLEST_SHARDED = 2**14
"""Entries of the smallest parameter worth splitting: less than 64 KiB of float32 is not."""


def find_devices() -> list[jax.Device]:
    """Every device of every process. The first call starts JAX's backend.

    Commands call it before they read anything, so that what JAX says of a missing or busy
    accelerator is not taken for the fault of a file.

    Raises:
        RunError: JAX finds no device that it can use.
    """
    try:
        return list(jax.devices())
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        # Where a platform that was asked for is not there, JAX ends with an assertion of no words.
        reason = str(error).strip() or "there is none of the platform that was asked for"
        raise RunError(
            f"JAX finds no device that it can use (JAX_PLATFORMS={asked!r}): "
            f"{reason.splitlines()[0]}. Install JAX for this accelerator (`pip install "
            "'tcl_jax[cuda]'` or `[tpu]`), end the process that holds it, or set "
            "JAX_PLATFORMS=cpu to compute without one"
        ) from error


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over the given devices, by default every device of every process.

    A mesh of several CPU devices turns JAX's persistent compilation cache off in this process.
    """
    devices = find_devices() if devices is None else devices
    if len(devices) > 1 and devices[0].platform == "cpu":
        _compile_afresh()
    return Mesh(np.asarray(devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def _compile_afresh() -> None:
    """Turns JAX's cache on disk off, for all that this process compiles from now on.

    XLA:CPU (jaxlib 0.10) keeps a program's collectives in one order by a resource that they share.
    In a program that it loads, those of a loop or a branch have a resource of their own, so that
    devices start them in different orders: they wait for each other for ever, or Gloo, which tells
    messages apart by their order alone, sums what does not belong together. Programs for GPUs and
    TPUs keep one order.
    """
    folder = jax.config.values["jax_compilation_cache_dir"]
    if folder and jax.config.values["jax_enable_compilation_cache"]:
        logging.info(
            "compiling afresh: programs of several CPU devices that XLA loads from a compilation "
            "cache mix up their exchanges, so %s is not used",
            folder,
        )
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()  # It has asked the setting once and kept the answer.


def local_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of the first device's process, for programs that it runs on its own.

    Of all devices of a run, by default every one of every process, it has that process's, but on
    v5e slices of more than 16 chips one: their compiler takes programs for a single chip or for the
    whole slice and for nothing between.
    """
    everywhere = find_devices() if devices is None else devices
    process = (jax.local_devices() if devices is None else devices)[0].process_index
    mine = [device for device in everywhere if device.process_index == process]
    limited = _LIMITED_ROUTING.fullmatch(mine[0].device_kind) and len(everywhere) > 16
    return data_mesh(mine[:1] if limited and len(mine) < len(everywhere) else mine)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Rows (axis 0) are split evenly over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(global_batch_size: int, mesh: Mesh, parts: int = 1) -> None:
    """Refuses a batch that devices and accumulation steps cannot share evenly.

    Raises:
        InputError: if the batch is not a positive multiple of devices times parts.
    """
    share = mesh.size * parts
    if global_batch_size <= 0 or global_batch_size % share:
        below = max(global_batch_size // share, 1) * share
        over = f" x {parts} accumulation steps" if parts > 1 else ""
        raise InputError(
            f"train.global_batch_size={global_batch_size} does not divide over {mesh.size} "
            f"device(s){over}; choose a multiple of {share}, such as {below} or {below + share}"
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch to its devices, as global arrays split by rows."""
    sharding = batch_sharded(mesh)
    # With several processes JAX does this by transfers that count as implicit ones.
    with jax.transfer_guard("allow"):
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """A tree that every process holds alike, copied to every device."""
    return put_parameters(tree, mesh, sharded=False)


def put_parameters(tree: Any, mesh: Mesh, *, sharded: bool) -> Any:
    """Parameters or an optimiser's state that every process holds alike, to the devices.

    They are split as `parameter_sharding` says.
    """

    def put(x: Any) -> jax.Array:
        whole = np.asarray(x)
        sharding = parameter_sharding(whole.shape, mesh, sharded=sharded)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    with jax.transfer_guard("allow"):
        return jax.tree.map(put, tree)


def parameter_sharding(shape: tuple[int, ...], mesh: Mesh, *, sharded: bool) -> NamedSharding:
    """Sharding of a parameter: whole on every device, or split over all of them (FSDP).

    Where it is `sharded`, the largest axis that the number of devices divides is split, the last of
    equal ones. Arrays of fewer than `SMALLEST_SHARDED` entries, and those without such an axis, are
    whole everywhere.
    """
    divisible = [i for i, n in enumerate(shape) if n and n % mesh.size == 0]
    small = math.prod(shape) < SMALLEST_SHARDED
    if not sharded or mesh.size == 1 or small or not divisible:
        return replicated(mesh)
    axis = max(divisible, key=lambda i: (shape[i], i))
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA_AXIS))


def gather_parameters(tree: Any, mesh: Mesh) -> Any:
    """A tree with every array whole on every device; all processes must call it."""
    everywhere = replicated(mesh)
    if all(x.sharding.is_fully_replicated for x in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda x: x, out_shardings=everywhere)(tree)


def put_locally(tree: Any, mesh: Mesh) -> Any:
    """A tree replicated over a mesh of this process's devices alone.

    Arrays that lie whole on every device of several processes are not copied.
    """
    sharding = replicated(mesh)
    mine = sharding.device_set

    def put(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            shards = [shard.data for shard in x.addressable_shards if shard.device in mine]
            return jax.make_array_from_single_device_arrays(x.shape, sharding, shards)
        return jax.device_put(x, sharding)

    return jax.tree.map(put, tree)
