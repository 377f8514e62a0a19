"""Text in pictures: names of any length and script, in lines that fit."""

from __future__ import annotations

import functools

from PIL import ImageFont

FONT_SIZE = 15
"""In pixels, where nothing else is said."""

_NAME_CHARACTERS = 300
# Pillow's font has Latin, Greek and Cyrillic letters; of these, the first that is installed and
# has all letters of a name is taken for others.
_OTHER_FONTS = (
    "NotoSansCJK-Regular.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf",
    "msgothic.ttc", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
)  # fmt: skip


@functools.cache
def load_font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    """The font that comes with Pillow, `size` pixels high."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def printable(name: str) -> str:
    """A name in one line without control characters; never empty, and not endless."""
    return one_line(name[:_NAME_CHARACTERS]) or "?"


def one_line(text: str) -> str:
    """Text of any length in one line without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def wrap(text: str, width: int, font_size: int, max_lines: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces or within words that are longer."""
    lines: list[str] = []
    words = text.split(" ")
    while words and len(lines) < max_lines:
        line = words.pop(0)
        while words and text_width(f"{line} {words[0]}", font_size) <= width:
            line = f"{line} {words.pop(0)}"
        if text_width(line, font_size) > width:
            kept = _fitting(line, width, font_size)
            words.insert(0, line[kept:])
            line = line[:kept]
        lines.append(line)
    if words:
        last = lines[-1]
        while last and text_width(f"{last}…", font_size) > width:
            last = last[:-1]
        lines[-1] = f"{last.rstrip(' ,')}…"
    return lines


def _fitting(text: str, width: int, font_size: int) -> int:
    """How many characters fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle], font_size) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def text_width(text: str, font_size: int) -> float:
    """Width of a line in pixels."""
    return font_for(text, font_size).getlength(text)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font with all letters of a text; Pillow's own, which shows boxes, if there is none."""
    letters = frozenset(text)
    own = load_font(size)
    if text.isascii() or _has(own, letters):
        return own
    return next((font for font in _other_fonts(size) if _has(font, letters)), own)


@functools.cache
def _other_fonts(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    fonts = []
    for name in _OTHER_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


def _has(font: ImageFont.FreeTypeFont, letters: frozenset[str]) -> bool:
    return all(letter.isascii() or _has_letter(font, letter) for letter in letters)


@functools.lru_cache(4096)
def _has_letter(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a letter looks different from one that no font has."""
    shape, none = font.getmask(letter), font.getmask("\U0010fffe")
    return (shape.size, bytes(shape)) != (none.size, bytes(none))
