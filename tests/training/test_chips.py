"""Figures of accelerators by the names that JAX gives them."""

from __future__ import annotations

import types
from typing import Any

import jax
import pytest

from tcl_jax.training.chips import Chip, chip_of, peak_flops


def device(kind: str, **more: Any) -> jax.Device:
    return types.SimpleNamespace(device_kind=kind, **more)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v2", 22.5),
        ("TPU v3", 61.5),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", None),
        ("NVIDIA A10", 125),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", None),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("Tesla T4", 65),
        ("TPU v4 lite", None),
        ("cpu", None),
    ],
)
def test_peak_flops(kind: str, tflops: float | None) -> None:
    assert peak_flops(device(kind)) == (None if tflops is None else tflops * 1e12)


@pytest.mark.parametrize(
    ("kind", "gibibytes", "bandwidth", "interconnect"),
    [
        ("TPU v4", 32, 1200, 300),
        ("TPU v5 lite", 16, 819, 200),
        ("TPU v5", 95, 2765, 600),
        ("TPU v6 lite", 32, 1638, 400),
        ("NVIDIA H100 80GB HBM3", 80, 3350, 450),
    ],
)
def test_memory_and_links(kind: str, gibibytes: int, bandwidth: float, interconnect: float) -> None:
    chip = chip_of(device(kind, platform="tpu"))
    assert chip.memory == gibibytes * 2**30
    assert (chip.bandwidth, chip.interconnect) == (bandwidth * 1e9, interconnect * 1e9)


def test_a_gpu_that_is_here_knows_its_own_memory() -> None:
    here = device("NVIDIA H100 80GB HBM3", platform="gpu", memory_stats=lambda: {"bytes_limit": 7})
    assert chip_of(here).memory == 7
    silent = device("NVIDIA L4", platform="gpu", memory_stats=lambda: None)
    assert chip_of(silent).memory == 24 * 2**30
    assert chip_of(jax.devices("cpu")[0]) == Chip()
