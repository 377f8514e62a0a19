"""Who may import whom: data flows one way through the rooms, and heavy libraries stay in theirs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tcl_jax"
ROOMS = (
    "parallel", "checkpoints", "pictures", "ops", "shapes", "data", "models", "weights",
    "inference", "training", "evaluation", "plan", "demo", "bench",
)  # fmt: skip
# A module imports from its own file or room and from those before it. All other files directly in
# tcl_jax/, and the `__main__.py` of a room, are doors: they import from everything but doors.
FLAGS = ("commands", "config_flags")
ORDER = ("errors", "files", *ROOMS, *FLAGS)
STANDALONE = "# standalone:"
"""First words of a file that another Python runs, without this project and its packages."""
NO_JAX = ("shapes", "data", "pictures")
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
MAX_LINES = 420


def is_door(place: str) -> bool:
    path = Path(place)
    in_room = len(path.parts) > 1
    return path.stem == "__main__" if in_room else path.stem not in ORDER


DOORS = {f"tcl_jax.{p.removesuffix('.py').replace('/', '.')}" for p in FILES if is_door(p)}


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
            called = ast.unparse(node.func).split(".")[-1]
            if called in ("import_module", "__import__"):
                yield "<dynamic>"


def violations(place: str, source: str) -> list[str]:
    """What is wrong with the imports of `place`, a path below tcl_jax/."""
    parts = Path(place).with_suffix("").parts
    here = parts[0]
    names = set(imported(source, ".".join(["tcl_jax", *parts[:-1]])))
    top = {name.split(".")[0] for name in names}
    if source.startswith(STANDALONE):
        return [f"imports {name}" for name in top & {"tcl_jax", "jax", "flax", "<dynamic>"}]
    wrong = [f"imports {name}" for name in top & {"torch", "tensorflow", "<dynamic>"}]
    wrong += [f"imports the door {name}" for name in names & DOORS]
    if here != "checkpoints" and "orbax" in top:
        wrong.append("only checkpoints imports orbax")
    if here == "ops" and "flax" in top:
        wrong.append("ops imports flax")
    if here in NO_JAX and top & {"jax", "jaxlib", "flax"}:
        wrong.append(f"{here} imports jax")
    if not is_door(place):
        allowed = {*ORDER[: ORDER.index(here) + 1], "__version__"}
        if f"{here}/__main__.py" in FILES:  # a room that is a command reads its flags
            allowed |= set(FLAGS)
        ours = {name.split(".")[1] for name in names if name.startswith("tcl_jax.")}
        wrong += [f"{here} imports {name}" for name in ours - allowed]
    return wrong


@pytest.mark.parametrize("place", FILES)
def test_file_keeps_the_rules(place: str) -> None:
    source = FILES[place].read_text(encoding="utf-8")
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
        ("models/clip.py", "from tcl_jax.commands import command_parser"),
        ("shapes/source.py", "import jax.numpy as jnp"),
        ("ops/losses.py", "from flax import struct"),
        ("training/loop.py", "from orbax.checkpoint import v1 as ocp"),
        ("evaluation/scores.py", "import tensorflow as tf"),
        ("bench/train.py", "import torch"),
        ("training/loop.py", "from importlib import import_module\nimport_module('jax')"),
        ("errors.py", "from tcl_jax.shapes import source"),
        ("main.py", "from tcl_jax.bench import __main__"),
        ("bench/any.py", f"{STANDALONE} x\nfrom tcl_jax.errors import InputError"),
    ],
)
def test_a_breach_is_seen(place: str, source: str) -> None:
    assert violations(place, source)


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("checkpoints/store.py", "import jax\nfrom orbax import v1\nfrom ..parallel import mesh"),
        ("data/order.py", "from . import sources\nimport tcl_jax.errors"),
        ("main.py", "from tcl_jax.evaluation import tasks\nfrom tcl_jax.commands import x"),
        ("bench/train.py", "from tcl_jax.commands import command_parser"),
        ("bench/any.py", f"{STANDALONE} x\nimport torch"),
    ],
)
def test_lawful_imports_pass(place: str, source: str) -> None:
    assert violations(place, source) == []


def test_every_room_is_there_and_no_other() -> None:
    folders = {Path(place).parts[0] for place in FILES if "/" in place}
    assert folders == set(ROOMS)
    assert all(f"{room}/__init__.py" in FILES for room in ROOMS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_config_imports_ml_collections_and_configs_only(path: Path) -> None:
    names = imported(path.read_text(encoding="utf-8"), "configs")
    assert {n.split(".")[0] for n in names} <= {"ml_collections", "configs", "__future__"}


def test_doors_answer_at_once_and_no_module_needs_tensorflow_or_torch() -> None:
    """A door reads its flags before it imports what takes seconds."""
    names = [place.removesuffix(".py").replace("/", ".") for place in FILES]
    code = f"""
import importlib, sys
for name in {sorted(DOORS)}:
    importlib.import_module(name.removesuffix(".__init__"))
heavy = {{"jax", "numpy", "grain", "orbax", "scipy"}} & sys.modules.keys()
assert not heavy, f"a door imports {{heavy}}"
sys.modules["torch"] = sys.modules["tensorflow"] = None  # importing either fails
for name in {names}:
    importlib.import_module(f"tcl_jax.{{name}}".removesuffix(".__init__"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_doors_tell_their_flags() -> None:
    """As processes, all at once: what stands under `if __name__` is imported by no test."""
    helps = {
        name: subprocess.Popen(
            [sys.executable, "-m", name.removesuffix(".__main__"), "--help"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        )
        for name in DOORS if not name.endswith("__init__")
    }  # fmt: skip
    for name, process in helps.items():
        assert "python -m tcl_jax." in process.communicate()[0], name
        assert process.returncode == 0, name


def test_every_import_of_our_own_is_there() -> None:
    """Also those inside functions: mypy passes over modules that are missing."""
    missing = []
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level or not node.module:
                continue
            if node.module.split(".")[0] not in ("tcl_jax", "tests", "configs"):
                continue
            module = ROOT / node.module.replace(".", "/")
            files = [f for f in (module.with_suffix(".py"), module / "__init__.py") if f.exists()]
            text = "".join(file.read_text(encoding="utf-8") for file in files)
            for name in (alias.name for alias in node.names):
                beside = module / name
                if not (beside.is_dir() or beside.with_suffix(".py").exists()) and not re.search(
                    rf"\b{name}\b", text
                ):
                    missing.append(f"{path.relative_to(ROOT)}: {node.module}.{name}")
    assert not missing
