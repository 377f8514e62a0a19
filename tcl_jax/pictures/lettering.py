"""Text in pictures: names of any length and script, in lines that fit."""

from __future__ import annotations

import bisect
import functools
import math

from PIL import ImageFont

FONT_SIZE = 15
"""In pixels, where nothing else is said."""

_MAX_NAME = 300
# Pillow's font has Latin, Greek and Cyrillic letters. Other names are drawn with the first of these
# that is installed and has all their letters.
_OTHER_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "msgothic.ttc")


@functools.cache
def load_font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow, `size` pixels high."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def printable(name: str) -> str:
    """A name in one line without control characters; never empty, and at most 300 characters."""
    return one_line(name[:_MAX_NAME]) or "?"


def one_line(text: str) -> str:
    """Text of any length in one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def wrap(text: str, width: int, font_size: int, max_lines: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces or within words that are longer."""
    lines: list[str] = []
    while text and len(lines) < max_lines:
        end = _count_fitting(text, width, font_size)
        if end < len(text):
            end = max(text.rfind(" ", 0, end + 1), 0) or end
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    if text:
        last = lines[-1][: _count_fitting(lines[-1], width, font_size, "…")]
        lines[-1] = last.rstrip(" ,") + "…"
    return lines


def _count_fitting(text: str, width: int, font_size: int, end: str = "") -> int:
    """How many of the first characters fit together with `end`; one at least."""
    lengths = range(1, min(len(text), width) + 1)
    fitting = bisect.bisect_right(
        lengths, width, key=lambda n: math.ceil(text_width(text[:n] + end, font_size))
    )
    return max(fitting, 1)


def text_width(text: str, font_size: int) -> float:
    """Width of a line in pixels."""
    return font_for(text, font_size).getlength(text)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font with all letters of a text; Pillow's own, which shows boxes, if there is none."""
    own = load_font(size)
    letters = {letter for letter in text if not letter.isascii()}
    fonts = (own, *_other_fonts(size)) if letters else ()
    return next((f for f in fonts if all(_has_letter(f, letter) for letter in letters)), own)


@functools.cache
def _other_fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    fonts = []
    for name in _OTHER_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:  # not installed
            continue
    return tuple(fonts)


@functools.lru_cache(4096)
def _has_letter(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a letter looks different from one that no font has."""
    shape, none = font.getmask(letter), font.getmask("\U0010fffe")
    return (shape.size, bytes(shape)) != (none.size, bytes(none))
