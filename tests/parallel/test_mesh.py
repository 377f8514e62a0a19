"""Which devices a program is for."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from tcl_jax.errors import InputError
from tcl_jax.parallel.mesh import check_batch_size, data_mesh, local_mesh


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """As much of a device as a mesh looks at."""

    id: int
    process_index: int
    device_kind: str
    platform: str = "tpu"


def slice_of(kind: str, devices: int, per_process: int) -> list[FakeDevice]:
    return [FakeDevice(i, i // per_process, kind) for i in range(devices)]


@pytest.mark.parametrize(
    ("kind", "devices", "per_process", "chosen"),
    [
        ("TPU v5 lite", 256, 4, 1),  # the compiler refuses 4 of 256
        ("TPU v5e", 32, 8, 1),
        ("TPU v5 lite", 16, 4, 4),
        ("TPU v5 lite", 32, 32, 32),  # one process has them all
        ("TPU v6 lite", 256, 4, 4),
        ("NVIDIA H100 80GB HBM3", 64, 8, 8),
    ],
)
def test_a_process_takes_its_own_devices_if_their_compiler_lets_it(
    kind: str, devices: int, per_process: int, chosen: int
) -> None:
    everywhere = slice_of(kind, devices, per_process)
    mesh = local_mesh(everywhere)  # type: ignore[arg-type]
    assert list(mesh.devices.flat) == everywhere[:chosen]


def test_here_they_are_all_devices() -> None:
    assert local_mesh() == data_mesh(jax.local_devices())


def test_a_batch_divides_over_the_devices() -> None:
    mesh = data_mesh(slice_of("TPU v4", 8, 4))  # type: ignore[arg-type]
    check_batch_size(16, mesh, 2)
    with pytest.raises(InputError, match=r"over 8 device\(s\); .* multiple of 8, such as 8 or 16"):
        check_batch_size(12, mesh)
    with pytest.raises(InputError, match="does not divide over 8 device.* x 4 accumulation"):
        check_batch_size(16, mesh, 4)


PROGRAM = """
import sys
import jax, jax.numpy as jnp
from tcl_jax.parallel.mesh import batch_sharded, data_mesh
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
alone = jax.jit(lambda x: x + 1)(jnp.zeros(8))
rows = jax.device_put(alone, batch_sharded(data_mesh()))
def together(x): return x.sum()
jax.jit(together)(rows)
"""


@pytest.mark.parametrize(("devices", "cached"), [(1, 1), (2, 0)])
def test_only_programs_of_one_cpu_device_are_cached(
    devices: int, cached: int, tmp_path: Path
) -> None:
    """Of more, XLA would mix up the collectives when it loads a program that branches."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": flags},
        check=True,
    )
    assert list(tmp_path.glob("jit__lambda*-cache"))
    assert len(list(tmp_path.glob("jit_together*-cache"))) == cached
