"""What processes tell each other, played by one."""

from __future__ import annotations

import jax
import pytest

from tcl_jax.errors import InputError, RunError
from tcl_jax.parallel import processes
from tcl_jax.parallel.processes import agreed, check_same


def fail(error: Exception) -> int:
    raise error


def test_alone_it_is_the_function() -> None:
    assert agreed(lambda: 7) == 7
    with pytest.raises(RunError, match="^gone$"):
        agreed(lambda: fail(RunError("gone")))


@pytest.mark.parametrize("kind", [InputError, RunError])
def test_all_fail_if_one_does(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def another_that_fails(text: str) -> list[str]:
        told.append(text)
        return [text, "", told[0]]

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes, "gather_texts", another_that_fails)
    with pytest.raises(kind, match="^no such file$"):
        agreed(lambda: fail(kind("no such file")))
    with pytest.raises(kind, match="^process 2 reports: no such file$"):
        agreed(lambda: 7)
    monkeypatch.setattr(processes, "gather_texts", lambda text: [text, "", ""])
    assert agreed(lambda: 7) == 7


def test_processes_that_see_different_things(monkeypatch: pytest.MonkeyPatch) -> None:
    check_same("images", "3", "Copy them")
    monkeypatch.setattr(processes, "gather_texts", lambda text: [text, text, "2"])
    with pytest.raises(InputError, match="^process 2 sees other images than .* 0: 2 there, 3 here"):
        check_same("images", "3", "Copy them")
