"""The processors and the memory of this machine."""

from __future__ import annotations

import os
import platform
from pathlib import Path

TUNABLES = "glibc.malloc.hugetlb=1"
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def asks_for_huge_pages() -> bool:
    """Whether glibc asks for huge pages, or setting GLIBC_TUNABLES to `TUNABLES` changes nothing.

    XLA maps its buffers on a CPU anew every step, in pages of 4 KiB if nothing asks for others.
    glibc does so from 2.35 on, where the kernel leaves it to programs, and reads the variable
    before Python starts.
    """
    name, version = platform.libc_ver()
    try:
        left_to_programs = "[madvise]" in _HUGE_PAGES.read_text()
        knows = name == "glibc" and [*map(int, version.split(".")[:2])] >= [2, 35]
    except (OSError, ValueError):
        return True
    return "GLIBC_TUNABLES" in os.environ or not (knows and left_to_programs)
