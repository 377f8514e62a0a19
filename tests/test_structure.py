"""The rooms of the package and who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "errors", "parallel", "ops", "models", "convert", "data", "inference", "training", "evaluation"
)  # fmt: skip
FILES = sorted((ROOT / "tcl_jax").rglob("*.py"))
MAX_LINES = 470


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def room(path: Path) -> str:
    parts = path.relative_to(ROOT / "tcl_jax").parts
    return parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_keeps_the_rules(path: Path) -> None:
    names = list(imports(path))
    here = room(path)
    if here in ROOMS:
        allowed = ROOMS[: ROOMS.index(here) + 1]
        ours = [n.split(".")[1] for n in names if n.startswith("tcl_jax.")]
        assert set(ours) <= set(allowed), f"{here} imports from below itself"
    roots = {name.split(".")[0] for name in names}
    assert not roots & {"torch", "tensorflow"}
    if path.name != "checkpoint.py":
        assert not any(n.startswith("orbax") for n in names)
    if here == "ops":
        assert not any(n.startswith("flax.linen") for n in names)
    if here == "data":
        assert not roots & {"jax", "flax"}
    assert "utils" not in path.stem
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_every_folder_is_a_known_room() -> None:
    folders = {p.parent.relative_to(ROOT / "tcl_jax").parts[:1] for p in FILES}
    assert {f[0] for f in folders if f} <= set(ROOMS)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.name)
def test_configs_import_ml_collections_and_each_other_only(path: Path) -> None:
    assert {n.split(".")[0] for n in imports(path)} <= {"ml_collections", "configs"}


def test_neither_tensorflow_nor_torch_is_loaded() -> None:
    code = (
        "import sys, tcl_jax.evaluation.tasks, tcl_jax.training.loop; "
        "print([m for m in ('tensorflow', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
