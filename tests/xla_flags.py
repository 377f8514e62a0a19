"""How programs are compiled in little time: most of the tests' goes into compiling."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import threading

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


def quick_process() -> None:
    """Lowers all programs of a thread in one MLIR context, and seldom looks for cycles.

    JAX makes a context for each program, with thousands of operations to register and 1.5 MiB that
    stay: a fifth of the time, or more, of a small program, of which tests have thousands. A sixth
    went into looking for cycles among what is imported and what is traced.
    """
    gc.set_threshold(100_000, 20, 100)
    from jax._src.interpreters import mlir  # now, since JAX reads XLA_FLAGS when it is imported

    if make := getattr(mlir, "make_ir_context", None):  # no public name, so it may go
        of_thread = functools.cache(lambda thread: make())
        mlir.make_ir_context = lambda: of_thread(threading.get_ident())
