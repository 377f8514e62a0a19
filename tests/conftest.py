"""Settings of every test: one CPU device, full precision, checked shapes.

Tests of several devices or processes start processes of their own (tests/parallel).
"""

import gc
import os
import signal
import threading
from pathlib import Path

from tests.xla_flags import quick_compilation, quick_process

os.environ["JAX_PLATFORMS"] = "cpu"
# Machine code as XLA would rather have it is left to the tests that start the commands.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS") or quick_compilation()

import jax
import pytest
from absl import flags
from jaxtyping import install_import_hook

quick_process()
jax.config.update("jax_default_matmul_precision", "highest")
# The same tiny steps are compiled by many tests, and again by the next run. A folder for each
# process, since JAX's cache is no place for two to write to at once.
CACHE = Path(__file__).parent.parent / ".cache" / os.environ.get("PYTEST_XDIST_WORKER", "jax")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
# Tests in the background have Ctrl-C ignored, and so would what they start.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Grain's worker processes read absl flags.
flags.FLAGS.mark_as_parsed()
# The rooms whose functions take arrays; Orbax's protocols elsewhere cannot be checked at run time,
# and Gradio looks at the page's functions itself.
CHECKED = (
    "pictures", "ops", "models", "weights", "shapes", "data", "inference", "evaluation",
)  # fmt: skip
CHECKED_FILES = (
    "bench.photos", "demo.answers", "demo.examples", "demo.shown", "training.embed_captions",
    "training.embed_images", "training.preview",
)  # fmt: skip
install_import_hook([f"tcl_jax.{name}" for name in CHECKED + CHECKED_FILES], "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: what is left at the end is short, and workers end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is imported is not looked through again."""
    gc.freeze()
