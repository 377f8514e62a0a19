"""What accelerators can do, by the name that JAX gives them: a row for each kind of device."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates and memory of one JAX device; None where they are not known.

    Attributes:
        flops: bfloat16 FLOP/s, dense (no 2:4 sparsity).
        memory: bytes of HBM.
        bandwidth: bytes/s to and from HBM.
        interconnect: bytes/s that leave it over all its links to other chips (as many come in).
    """

    flops: float | None = None
    memory: int | None = None
    bandwidth: float | None = None
    interconnect: float | None = None


# Device kind: TFLOP/s, GiB, GB/s to memory, GB/s to other chips. The first match counts.
_CHIPS = tuple(
    (re.compile(pattern, re.IGNORECASE), figures)
    for pattern, figures in (
        (r"TPU v2$", (45 / 2, 8, 700 / 2, None)),
        (r"TPU v3$", (123 / 2, 16, 900 / 2, None)),
        (r"TPU v4$", (275, 32, 1200, 300)),
        (r"TPU v5(e| lite)$", (197, 16, 819, 200)),
        (r"TPU v5p?$", (459, 95, 2765, 600)),
        (r"TPU v6(e| lite)$", (918, 32, 1638, 400)),
        (r"TPU7x$", (2307 / 2, 192 / 2, 7380 / 2, 600 / 2)),
        (r"\bH100 NVL\b", (835, 94, 3900, None)),
        (r"\bH200 NVL\b", (835, 141, 4800, None)),
        (r"\bH100 PCIe\b", (756, 80, 2000, None)),
        (r"\bGH200\b", (989, None, None, 450)),
        (r"\bH100\b", (989, 80, 3350, 450)),
        (r"\bH200\b", (989, 141, 4800, 450)),
        (r"\bGB200\b", (2500, None, 8000, 900)),
        (r"\bB200\b", (2250, None, 8000, 900)),
        (r"\bA100-SXM\S*-40GB\b", (312, 40, 1555, 300)),
        (r"\bA100-SXM\S*-80GB\b", (312, 80, 2039, 300)),
        (r"\bA100\b", (312, None, 1555, None)),
        (r"\bA10\b", (125, 24, 600, None)),
        (r"\bL40S\b", (362, 48, 864, None)),
        (r"\bL4\b", (121, 24, 300, None)),
        (r"\bV100.*PCIe\b", (112, None, 900, None)),
        (r"\bV100\b", (125, None, 900, 150)),
        (r"\bT4\b", (65, 16, 320, None)),
    )
)


def chip_of(device: jax.Device) -> Chip:
    """Figures of a device; what it says of its own memory comes before the table.

    From the makers' data sheets. Google Cloud TPU, the page of each version
    (https://docs.cloud.google.com/tpu/docs/system-architecture-tpu-vm): figures per chip, halved
    for v2, v3 and TPU7x, whose chips are two JAX devices; interconnect is half of the two-way
    figure, and for v4 the paper's six links of 50 GB/s (arXiv:2304.01433, Table 4). NVIDIA's data
    sheets of V100, T4, A10, A100, L4, L40S, H100, H200, GH200, B200 and GB200: half of the FLOP/s
    wherever they are given with sparsity, half of NVLink's two-way figure. V100 and T4 have no
    bfloat16 units; their float16 figure stands in.
    """
    chip = next(
        (_from(figures) for pattern, figures in _CHIPS if pattern.search(device.device_kind)),
        Chip(),
    )
    limit = _own_limit(device)
    return chip if limit is None else dataclasses.replace(chip, memory=limit)


def mfu(
    flops_per_step: float, seconds_per_step: float, devices: Sequence[jax.Device]
) -> float | None:
    """Model FLOPs utilisation in 0..1 (Chowdhery et al., PaLM, appendix B), None if unknown.

    Args:
      flops_per_step: floating-point operations that the method itself needs for a global batch,
        see `models.flops`.
      seconds_per_step: measured time.
      devices: all devices that share the batch.
    """
    peaks = [chip_of(device).flops for device in devices]
    known = [peak for peak in peaks if peak is not None]
    if not known or len(known) < len(peaks) or seconds_per_step <= 0:
        return None
    return flops_per_step / seconds_per_step / sum(known)


def _from(figures: tuple[float | None, ...]) -> Chip:
    teraflops, gibibytes, bandwidth, interconnect = figures
    return Chip(
        flops=None if teraflops is None else teraflops * 1e12,
        memory=None if gibibytes is None else int(gibibytes * 2**30),
        bandwidth=None if bandwidth is None else bandwidth * 1e9,
        interconnect=None if interconnect is None else interconnect * 1e9,
    )


def _own_limit(device: jax.Device) -> int | None:
    """Bytes that JAX may use of a device that is here; a CPU and one that is not say nothing."""
    if getattr(device, "platform", "") != "gpu":
        return None
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except (NotImplementedError, RuntimeError):
        return None
