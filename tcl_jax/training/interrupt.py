"""Ctrl-C and SIGTERM as a request to finish the step, save and leave."""

from __future__ import annotations

import signal
import threading
import time
import types
from collections.abc import Callable

from absl import logging

from tcl_jax.errors import SIGNAL_ECHO, answers


class Interrupt:
    """While active, the first signal sets `requested`; one after `SIGNAL_ECHO` ends the process.

    The first is answered at once, in a command also while the main thread waits in a library.

    Args:
        describe: says what comes before the run is saved, and how long it takes.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, describe: Callable[[], str]) -> None:
        self.requested = False
        self._describe, self._unanswered = describe, threading.Lock()
        self._requested_at = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interrupt:
        """Takes over the signals."""
        answers.append(self._answer)
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        answers.remove(self._answer)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if self.requested:
            if time.monotonic() - self._requested_at >= SIGNAL_ECHO:
                signal.signal(number, self._previous[number])
                signal.raise_signal(number)
            return
        self.requested, self._requested_at = True, time.monotonic()
        self._answer(number)

    def _answer(self, number: int) -> None:
        if self._unanswered.acquire(blocking=False):  # by whichever thread hears it first
            logging.warning(
                "%s: %s, then saving; once more to stop without",
                signal.Signals(number).name,
                self._describe(),
            )
