"""Ctrl-C and SIGTERM as a request to finish the step, save and leave."""

from __future__ import annotations

import signal
import time
import types

from absl import logging

from tcl_jax.errors import SIGNAL_ECHO


class Interrupt:
    """While active, the first signal sets `requested`; one after `SIGNAL_ECHO` ends the process."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._requested_at = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Interrupt:
        """Takes over the signals."""
        self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        if self.requested:
            if time.monotonic() - self._requested_at >= SIGNAL_ECHO:
                signal.signal(number, self._previous[number])
                signal.raise_signal(number)
            return
        self.requested, self._requested_at = True, time.monotonic()
        logging.warning(
            "%s: finishing this step and saving; once more to stop without",
            signal.Signals(number).name,
        )
