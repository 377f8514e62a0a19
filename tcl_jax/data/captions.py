"""Captions as shards hold them: text files, and JSON as img2dataset and others write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from tcl_jax import files
from tcl_jax.data.bad_samples import BadSampleError

FIELDS = ("caption", "captions", "text", "texts", "TEXT")
"""Fields of a JSON object that are looked for, in this order."""

_SHOWN = 48


def decode_text(data: bytes) -> str:
    """A caption, as `files.decode_text` reads it.

    Raises:
        BadSampleError: it is in another encoding, or has bytes of zero.
    """
    try:
        return files.decode_text(data)
    except ValueError as error:
        message = f"the caption {data[:_SHOWN]!r} cannot be read: {error}"
        raise BadSampleError("not_utf8", message) from None


def read_captions(text: bytes | None, json_data: bytes | None, field: str = "") -> list[str]:
    """The captions of an image: its text file, or what its JSON has where that is empty.

    In JSON a caption is a string, several are a list; either may be the whole content, or be under
    one of `FIELDS`. What is neither, such as a number, is passed over.

    Args:
        text, json_data: the contents of the files; None where there is none.
        field: the one field of the JSON that counts, instead of the text file, too.

    Returns:
        One or more, of which some may be empty.

    Raises:
        BadSampleError: there is none, or it cannot be decoded.
    """
    captions: list[str] = []
    problems: list[BadSampleError] = []
    readers: list[tuple[bytes | None, Callable[[bytes], list[str]]]] = [
        (None if field else text, lambda data: [decode_text(data)]),
        (json_data, lambda data: _in_json(data, (field,) if field else FIELDS)),
    ]
    for data, read in readers:
        if data is not None and not any(caption.strip() for caption in captions):
            try:
                captions = read(data)
            except BadSampleError as error:
                problems.append(error)
    if not captions:
        missing = f"there is no JSON with {field!r}" if field else "there is no caption"
        raise problems[0] if problems else BadSampleError("no_caption", missing)
    return captions


def _in_json(data: bytes, fields: Sequence[str]) -> list[str]:
    text = decode_text(data)
    try:
        content = json.loads(text)
        if found := list(strings_in(content, fields)):
            return found
    except (ValueError, RecursionError) as error:
        raise BadSampleError("no_caption", f"the JSON cannot be read: {error}") from None
    names = ", ".join(list(content)[:12]) if isinstance(content, dict) else text[:_SHOWN]
    raise BadSampleError(
        "no_caption",
        f"the JSON has no caption under {', '.join(fields)} (data.caption_field names another); "
        f"it has: {names}",
    )


def strings_in(value: Any, fields: Sequence[str]) -> list[str]:
    """The strings in a JSON value: itself, those of a list, or of an object those under the first
    of the fields that has usable ones.
    """
    if isinstance(value, str):
        return [] if "\0" in value else [value]
    if isinstance(value, list):
        return [text for part in value for text in strings_in(part, fields)]
    if isinstance(value, dict):
        found = [texts for name in fields if (texts := strings_in(value.get(name), fields))]
        usable = (texts for texts in found if any(text.strip() for text in texts))
        return next(usable, found[0] if found else [])
    return []
