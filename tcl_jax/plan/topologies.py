"""Devices by the name of a topology: of TPUs that need not be there, or those of this machine.

libtpu has the compiler of every TPU and needs none of them to run it.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tcl_jax.errors import InputError

if TYPE_CHECKING:
    import jax

LOCAL = "local"
"""Name of the devices of this machine."""
EXAMPLES = ("v5e:4x4", "v5e:16x16", "v6e:4x4", "v5p:2x2x4", "v4:2x2x4", LOCAL)

# What libtpu would ask of a TPU's machine, and that several processes may load it.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# A v4 chip has two cores, which JAX uses as one device; libtpu needs to be asked for that.
_CHIP_CONFIGS = {"v4": "megacore"}


def prepare_environment(names: Iterable[str]) -> None:
    """Sets what the TPU compiler needs to run without a TPU; to be called before JAX is imported.

    Args:
        names: of topologies; where all are of TPUs, the machine's own accelerator is left alone.
    """
    names = list(names)
    if any(name != LOCAL for name in names):
        os.environ.update(_ENVIRONMENT)
        if LOCAL not in names:
            os.environ["JAX_PLATFORMS"] = "cpu"


def topology_devices(name: str) -> list[jax.Device]:
    """The devices of a topology, one for each chip (two for chips of v2, v3 and TPU7x).

    Args:
        name: "local", or KIND:SHAPE as `EXAMPLES` has them.

    Raises:
        InputError: if there is no such topology, or libtpu is not installed.
    """
    from jax.experimental import topologies

    from tcl_jax.parallel.mesh import find_devices

    if name == LOCAL:
        return find_devices()
    kind = name.split(":")[0]
    if ":" not in name or not kind:
        raise InputError(f"topology {name!r} is not known; {_advice()}")
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"topology {name!r}: libtpu, which has the TPU's compiler, is not installed (no TPU is "
            "needed); pip install 'tcl_jax[tpu]' (or '.[tpu]' in the repository), or give "
            f"--topology={LOCAL}"
        )
    options = {"chip_config_name": _CHIP_CONFIGS[kind]} if kind in _CHIP_CONFIGS else {}
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"topology {name!r} is not known: {reason}; {_advice()}") from error
    return list(described.devices)


def _advice() -> str:
    return f"give a kind and a shape of chips, such as {', '.join(EXAMPLES[:-1])}, or {LOCAL!r}"
