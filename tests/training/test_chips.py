"""Figures of accelerators by the names that JAX gives them."""

from __future__ import annotations

import types
from typing import Any

import jax
import pytest

from tcl_jax.training.chips import Chip, chip_of


def device(kind: str, **more: Any) -> jax.Device:
    return types.SimpleNamespace(device_kind=kind, **more)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v2", 22.5), ("TPU v5 lite", 197), ("TPU v5p", 459), ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989),
        ("NVIDIA GB200", 2500), ("NVIDIA L40S", 362), ("Tesla V100-PCIE-32GB", 112),
    ],
)  # fmt: skip
def test_peak_flops(kind: str, tflops: float) -> None:
    assert chip_of(device(kind)).flops == tflops * 1e12


@pytest.mark.parametrize("kind", ["TPU v4 lite", "NVIDIA A10G", "NVIDIA L40", "cpu"])
def test_names_that_only_begin_like_known_ones(kind: str) -> None:
    assert chip_of(device(kind)) == Chip()


def test_memory_and_links() -> None:
    assert chip_of(device("TPU v5 lite", platform="tpu")) == Chip(
        flops=197e12, memory=16 * 2**30, bandwidth=819e9, interconnect=200e9
    )


def test_a_gpu_that_is_here_knows_its_own_memory() -> None:
    here = device("NVIDIA H100 80GB HBM3", platform="gpu", memory_stats=lambda: {"bytes_limit": 7})
    assert chip_of(here).memory == 7
    silent = device("NVIDIA L4", platform="gpu", memory_stats=lambda: None)
    assert chip_of(silent).memory == 24 * 2**30
