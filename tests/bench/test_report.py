"""When figures are final, and how they are shown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import pytest

from tcl_jax.bench.report import Report, not_final, table


@pytest.mark.parametrize(
    ("load", "cores", "platform", "limit"),
    [(0.29, 2, "cpu", ""), (0.3, 64, "cpu", "0.3"), (7.9, 16, "gpu", ""), (8.0, 16, "gpu", "8")],
)
def test_times_of_a_busy_machine_are_not_final(
    load: float, cores: int, platform: str, limit: str
) -> None:
    reason = not_final(load, cores, platform)
    assert bool(reason) == bool(limit)
    assert not limit or reason.startswith(f"not final: the load was {load:g} ")
    assert reason.endswith(f"below {limit}" if limit else "")


@pytest.mark.parametrize("load", [0.1, 1.2])
def test_a_report_says_whether_it_is_final_wherever_it_has_ratios(
    load: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("masks", load, str(tmp_path / "out/a.json"))
    report.add("against", {"what": "x", "ratio": 2.5})
    with report.skip_too_large("batch 9"):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 99 GiB")
    with pytest.raises(jax.errors.JaxRuntimeError), report.skip_too_large("y"):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")
    content = json.loads((tmp_path / "out/a.json").read_text())
    assert content["final"] == (load < 0.3) and content["load"] == load
    assert content["against"] == [{"what": "x", "ratio": 2.5}]
    assert content["problems"] == ["batch 9 does not fit into the device's memory"]
    report.print_tables()
    (title,) = re.findall(r"^against.*$", capsys.readouterr().out, re.MULTILINE)
    assert ("not final: the load was 1.2" in title) == (load == 1.2)


def test_tables_have_units_and_no_empty_columns() -> None:
    rows: list[dict[str, Any]] = [
        {"what": "one", "seconds": 0.012345, "program_bytes": 2**31, "mfu": None, "pamr": True},
        {"what": "three", "seconds": 2.0, "program_bytes": None, "mfu": None, "rounds": [1.0]},
    ]
    head, first, second = table(rows)
    assert head.split() == ["what", "ms", "program", "GiB", "pamr"]
    assert first.split() == ["one", "12.35", "2", "yes"]
    assert second.split() == ["three", "2000", "-", "-"]
    assert len({len(line) for line in (head, first, second)}) == 1
