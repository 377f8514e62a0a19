"""Who may import whom: data flows one way through the rooms, and heavy libraries stay in theirs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tcl_jax"
# A room imports from itself and from those before it. Files directly in tcl_jax/ come last, as do
# the doors in rooms, but for errors.py and files.py, which every room may import. `bench` is one
# command, and reads flags as doors do.
ROOMS = (
    "parallel", "checkpoints", "pictures", "ops", "models", "convert", "data", "inference",
    "training", "evaluation", "bench", "demo",
)  # fmt: skip
# What the user's own Python runs, with packages that are none of this project's.
FOREIGN = {"bench/original.py"}
DOORS = {
    "bench/__main__.py", "convert/__main__.py", "data/embed_captions.py", "data/preview.py",
    "data/tfds_builder.py", "demo/__main__.py",
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
MAX_LINES = 420
DYNAMIC = {"import_module", "__import__"}


def imported(source: str, package: str) -> Iterator[str]:
    """Absolute names a module of `package` imports; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name in DYNAMIC:
                yield "<dynamic>"


def violations(place: str, source: str) -> list[str]:
    """What is wrong with the imports of `place`, a path below tcl_jax/."""
    parts = Path(place).with_suffix("").parts
    names = set(imported(source, ".".join(["tcl_jax", *parts[:-1]])))
    top = {name.split(".")[0] for name in names}
    here = parts[0]
    wrong = [f"imports {name}" for name in top & {"torch", "tensorflow", "<dynamic>"}]
    if place in FOREIGN:
        return [f"imports {name}" for name in top & {"tcl_jax", "jax", "flax", "<dynamic>"}]
    doors = {"tcl_jax." + door.removesuffix(".py").replace("/", ".") for door in DOORS}
    wrong += [f"imports the door {name}" for name in names & doors]
    if place in DOORS:
        return wrong
    if here in ROOMS:
        allowed = {*ROOMS[: ROOMS.index(here) + 1], "errors", "files"}
        allowed |= {"commands", "config_flags"} if here == "bench" else set()
        ours = {n.split(".")[1] for n in names if n.startswith("tcl_jax.")}
        wrong += [f"{here} imports {name}" for name in ours - allowed - {"__version__"}]
    elif here in ("errors", "files"):
        wrong += [f"{here} imports {name}" for name in top & {"tcl_jax"}]
    if here != "checkpoints" and "orbax" in top:
        wrong.append("only checkpoints imports orbax")
    if here == "ops" and "flax" in top:
        wrong.append("ops imports flax")
    if here in ("data", "pictures") and top & {"jax", "jaxlib", "flax"}:
        wrong.append(f"{here} imports jax")
    return wrong


@pytest.mark.parametrize("place", [path.relative_to(PACKAGE).as_posix() for path in FILES])
def test_file_keeps_the_rules(place: str) -> None:
    source = (PACKAGE / place).read_text(encoding="utf-8")
    assert violations(place, source) == []
    assert "utils" not in Path(place).stem
    assert len(source.splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("models/clip.py", "from tcl_jax.training.loop import train"),
        ("models/clip.py", "from tcl_jax import training"),
        ("models/clip.py", "from ..training import loop"),
        ("models/clip.py", "def f():\n    import tcl_jax.main"),
        ("data/shapes.py", "import jax.numpy as jnp"),
        ("pictures/legend.py", "import jax"),
        ("pictures/legend.py", "from tcl_jax.inference.masks import make_masks"),
        ("ops/losses.py", "from flax import struct"),
        ("training/loop.py", "from orbax.checkpoint import v1 as ocp"),
        ("models/checkpoint.py", "import orbax.checkpoint"),
        ("evaluation/scores.py", "import tensorflow as tf"),
        ("convert/clip.py", "import torch"),
        ("convert/clip.py", "from importlib import import_module\nimport_module('torch')"),
        ("errors.py", "from tcl_jax.data import shapes"),
        ("bench/original.py", "from tcl_jax.errors import InputError"),
        ("bench/train.py", "import torch"),
        ("training/loop.py", "from tcl_jax.data import preview"),
    ],
)
def test_a_breach_is_seen(place: str, source: str) -> None:
    assert violations(place, source)


def test_lawful_imports_pass() -> None:
    source = (
        "import jax\nfrom orbax.checkpoint import v1\nfrom ..parallel import mesh\nimport errno"
    )
    assert violations("checkpoints/store.py", source) == []
    assert violations("data/shapes.py", "from . import sources\nimport tcl_jax.errors") == []
    assert violations("main.py", "from tcl_jax.evaluation import tasks") == []
    assert violations("bench/original.py", "import torch") == []
    assert violations("data/preview.py", "import jax\nfrom tcl_jax.inference import legend") == []


def test_every_room_is_there_and_no_other() -> None:
    folders = {p.relative_to(PACKAGE).parts[0] for p in FILES if p.parent != PACKAGE}
    assert folders == set(ROOMS)
    assert all((PACKAGE / room / "__init__.py").exists() for room in ROOMS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_config_imports_ml_collections_and_configs_only(path: Path) -> None:
    names = imported(path.read_text(encoding="utf-8"), "configs")
    assert {n.split(".")[0] for n in names} <= {"ml_collections", "configs", "__future__"}


def test_no_module_needs_tensorflow_or_torch() -> None:
    modules = [
        ".".join(["tcl_jax", *p.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
            ".__init__"
        )
        for p in FILES
    ]
    code = f"""
import importlib, sys
sys.modules["torch"] = sys.modules["tensorflow"] = None  # importing either fails
for name in {modules}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
