"""Figures: as JSON in a file as soon as they are known, and in tables at the end."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from tcl_jax.files import write_json
from tcl_jax.parallel.cores import available_cores

IDLE = 0.3
"""Load of a machine below which times on its CPU are final."""
UNITS = {
    "seconds": ("ms", 1e3),
    "bytes": ("GiB", 2**-30),
    "flops": ("GFLOP", 1e-9),
    "mfu": ("MFU %", 100),
    "share": ("share %", 100),
}
"""Unit in tables, and the factor to it, by the last word of a figure's name."""
_WIDEST = 60  # characters of a cell


def not_final(load: float, cores: int, platform: str) -> str:
    """Why times must be taken again, or nothing: other programs used the machine.

    On a CPU every other program slows down what is measured, most of all PyTorch's threads, which
    wait for each other. An accelerator only needs some of the host's cores.

    Args:
        load: programs that wanted to run in the minute before the start, on average.
    """
    limit = IDLE if platform == "cpu" else cores / 2
    if load < limit:
        return ""
    return (
        f"not final: the load was {load:.3g} before the start; run again when the machine is "
        f"idle, below {limit:g}"
    )


class Report:
    """The figures of a command, which are written to its file as soon as they are known.

    Args:
        file: for the figures as JSON; None: no file.
        devices: that are measured; none: the host alone.
    """

    def __init__(
        self,
        command: str,
        load: float,
        file: str | None,
        devices: Sequence[jax.Device] = (),
        **about: Any,
    ) -> None:
        cores = available_cores()
        if devices:
            about |= {
                "device": devices[0].device_kind,
                "devices": len(devices),
                "jax": importlib.metadata.version("jax"),
            }
        platform = devices[0].platform if devices else "cpu"
        self._file, self._reason = file, not_final(load, cores, platform)
        self.content: dict[str, Any] = {
            "command": command, **about, "load": load, "cores": cores, "final": not self._reason,
        }  # fmt: skip
        print(", ".join(f"{name} {value}" for name, value in self.content.items()), flush=True)
        self._rows: dict[str, list[Mapping[str, Any]]] = {}
        self._write()  # or a file that cannot be written would be reported after minutes

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Appends a row to the table of a name."""
        self._rows.setdefault(name, []).append(row)
        self.put(name, self._rows[name])

    def put(self, name: str, figures: Any) -> None:
        """Sets what the report says under a name."""
        self.content[name] = figures
        self._write()

    def _write(self) -> None:
        if self._file is not None:
            write_json(self._file, self.content)

    def print_tables(self) -> None:
        """Prints all tables."""
        for name, rows in self._rows.items():
            title = ", ".join(filter(None, [name.replace("_", " "), self._reason]))
            print("\n" + "\n".join([title, *table(rows)]))

    @contextlib.contextmanager
    def skip_too_large(self, what: str) -> Iterator[None]:
        """Goes on where the devices' memory does not hold something, and says so."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            problem = f"{what} does not fit into the device's memory"
            self.put("problems", [*self.content.get("problems", ()), problem])
            print(f"{problem}: {str(error).splitlines()[0][:200]}", flush=True)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as aligned columns, in the units of `UNITS`; those that say nothing are left out."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [
        [_title(name), *(_cell(name, row.get(name)) for row in rows)]
        for name in names
        if any(row.get(name) not in (None, "") and not isinstance(row[name], list) for row in rows)
    ]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in zip(*columns, strict=True)
    ]


def _title(name: str) -> str:
    first, _, last = name.rpartition("_")
    return " ".join([first, UNITS.get(last, (last, 1))[0]]).replace("_", " ").strip()


def _cell(name: str, value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        value *= UNITS.get(name.rpartition("_")[2], ("", 1))[1]
        digits = 4 if abs(value) < 1e4 else 7
        return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
    return str(value) if len(str(value)) <= _WIDEST else f"...{str(value)[-_WIDEST:]}"


def say(line: str) -> None:
    """Says on stderr what is being done."""
    print(f"{line} ...", file=sys.stderr, flush=True)
