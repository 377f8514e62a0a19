"""The one kind of error that is the user's to mend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input: a config, a file or a flag that cannot be used.

    The message is a paragraph for people: what was given, what is wrong with it, what to do. The
    commands print it without a traceback and exit with code 2.
    """


@contextlib.contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Turns a ValueError or OSError of its body into an `InputError` that begins with `what`.

    For calls whose only cause of such errors is what the user gave.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise InputError(f"{what}: {error}") from error
