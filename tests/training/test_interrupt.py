"""One wish to stop is heard as one, however many pass it on; a second ends the process."""

from __future__ import annotations

import hashlib
import os
import signal
import threading

import pytest

from tcl_jax.errors import run_command
from tcl_jax.training import interrupt as module
from tcl_jax.training.interrupt import Interrupt
from tests.in_process import as_before


def test_the_same_wish_twice_is_one() -> None:
    with Interrupt(str) as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested


def test_a_second_wish_ends_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIGNAL_ECHO", 0.0)
    with pytest.raises(KeyboardInterrupt), Interrupt(str) as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        signal.raise_signal(signal.SIGINT)


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in Interrupt.SIGNALS]
    with Interrupt(str):
        assert [signal.getsignal(number) for number in Interrupt.SIGNALS] != before
    assert [signal.getsignal(number) for number in Interrupt.SIGNALS] == before


def test_a_command_answers_while_its_main_thread_waits_in_a_library() -> None:
    answered_by = []

    def describe() -> str:
        answered_by.append(threading.current_thread())
        return "finishing"

    def command() -> None:
        with Interrupt(describe) as interrupt:
            threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # in which no signal is heard
            assert interrupt.requested

    with as_before():
        run_command(command)
    assert len(answered_by) == 1 and answered_by[0] is not threading.main_thread()
