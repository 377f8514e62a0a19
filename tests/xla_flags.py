"""Flags with which XLA compiles tests in little time: most of theirs goes into compiling."""

from __future__ import annotations

import os
import subprocess
import sys

SURE = "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=0"
PERHAPS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def quick_compilation() -> str:
    """The flags that the XLA at hand has; with others it would end its process."""
    flags = f"{SURE} {PERHAPS}"
    known = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
    )
    return SURE if known.returncode else flags
