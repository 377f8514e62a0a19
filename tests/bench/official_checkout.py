"""A folder that passes for a checkout of the official code, and a Python that answers for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FAKE = Path(__file__).parent / "fake_official.py"
READY = {
    "load": {"ok": {"torch": "0", "python": "3", "device": "CPU", "threads": 1}},
    "run": {"ok": {"seconds": 1e6}},
    "release": {"ok": {"peak_bytes": 3 * 2**30}},
}


def make_checkout(
    folder: Path, results: Mapping[str, Any] | None = None, **answers: Any
) -> tuple[str, str]:
    """Writes both.

    Args:
        folder: for both.
        results: of its `compare`, arrays by name.
        answers: replace or add to those of a code that works.

    Returns:
        Values of --against and --against_python.
    """
    root = folder / "official"
    (root / "models/tcl").mkdir(parents=True, exist_ok=True)
    (root / "models/tcl/tcl.py").touch()
    np.savez(root / "results.npz", **(results or {}))
    (root / "answers.json").write_text(json.dumps({**READY, **answers}))
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    python.chmod(0o755)
    return str(root), str(python)


def requests_of(checkout: str) -> list[dict[str, Any]]:
    """What was asked, in order."""
    lines = (Path(checkout) / "requests.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
