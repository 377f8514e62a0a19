"""Tests that need more devices or processes than this one."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tcl_jax.errors import RunError
from tcl_jax.parallel.processes import check_host_name

ROOT = Path(__file__).parent.parent
COLLECTIVE = re.compile(r"= (.*?) (all-\w+|reduce-scatter|collective-\w+?)(?:-start)?\(")
ARRAY = re.compile(r"\w\d+\[([\d,]*)\]")


def run_on_eight_devices(program: str) -> None:
    """Runs Python code in a process with eight CPU devices, and fails if it does."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", f"import tests.xla_flags as x; x.quick_process()\n{program}"],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def free_port() -> str:
    """A port at which processes can meet; skips the test where they cannot connect."""
    try:
        check_host_name()
    except RunError as error:
        pytest.skip(str(error))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def process_arguments(processes: int) -> list[list[str]]:
    """Port, number and index of each process."""
    port = free_port()
    return [[port, str(processes), str(i)] for i in range(processes)]


def collectives(hlo: str) -> list[tuple[str, int]]:
    """Kind and elements of every array that a collective operation of a program makes."""
    return [
        (kind, math.prod(int(n) for n in dimensions.split(",") if n))
        for arrays, kind in COLLECTIVE.findall(hlo)
        for dimensions in ARRAY.findall(arrays)
    ]
