"""Random outlines: blobs, polygons, stars, rings, crescents and other closed contours.

Each kind is drawn around the origin at any scale; `outline` then stretches and turns it and gives
it the area that is asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32

Contours = list[Float32[np.ndarray, "n 2"]]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number drawn evenly from [low, high)."""
    return low + (high - low) * rng.random()


@functools.cache
def _turn(points: int) -> Float32[np.ndarray, " n"]:
    return np.arange(points, dtype=np.float32) * np.float32(2.0 * math.pi / points)


def _polar(radius: Any, angle: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, "n 2"]:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def _blob(rng: np.random.Generator) -> Contours:
    angle = _turn(48)
    waves = np.arange(2, 6, dtype=np.float32)[:, None]
    # The amplitudes fall with the frequency and sum to less than 0.6: no self-crossing.
    size = rng.random((4, 1), dtype=np.float32) * np.float32(0.55) / waves
    phase = rng.random((4, 1), dtype=np.float32) * np.float32(2.0 * math.pi)
    return [_polar(1.0 + (size * np.cos(waves * angle + phase)).sum(axis=0), angle)]


def _ellipse(rng: np.random.Generator) -> Contours:
    del rng
    return [_polar(1.0, _turn(40))]


def _polygon(rng: np.random.Generator) -> Contours:
    corners = 3 + int(rng.random() * 5)
    wobble = (rng.random(corners, dtype=np.float32) - np.float32(0.5)) * np.float32(0.5)
    step = np.float32(2.0 * math.pi / corners)
    radius = 0.8 + 0.35 * rng.random(corners, dtype=np.float32)
    return [_polar(radius, _turn(corners) + wobble * step)]


def _star(rng: np.random.Generator) -> Contours:
    tips = 4 + int(rng.random() * 4)
    radius = np.ones(2 * tips, dtype=np.float32)
    radius[1::2] = between(rng, 0.48, 0.66)
    return [_polar(radius, _turn(2 * tips))]


def _ring(rng: np.random.Generator) -> Contours:
    outer = _blob(rng)[0] if rng.random() < 0.4 else _polar(1.0, _turn(40))
    return [outer, outer * np.float32(between(rng, 0.28, 0.42))]


def _crescent(rng: np.random.Generator) -> Contours:
    # A unit disc without its part in a disc of radius r at distance d; they meet at +-a on the
    # first and +-b on the second.
    r, d = between(rng, 0.75, 0.95), between(rng, 0.75, 0.95)
    a = math.acos((1.0 + d * d - r * r) / (2.0 * d))
    b = math.acos((1.0 - d * d - r * r) / (2.0 * d * r))
    steps = np.linspace(0.0, 1.0, 24, dtype=np.float32)
    outer = _polar(1.0, a + steps * np.float32(2.0 * (math.pi - a)))
    inner = _polar(r, np.float32(2.0 * math.pi - b) - steps * np.float32(2.0 * (math.pi - b)))
    inner[:, 0] += d
    return [np.concatenate([outer, inner[1:-1]])]


def _cross(rng: np.random.Generator) -> Contours:
    w = between(rng, 0.38, 0.52)
    corners = [(1.0, -w), (1.0, w), (w, w)]
    for _ in range(3):
        corners += [(-y, x) for x, y in corners[-3:]]
    return [np.array(corners, dtype=np.float32)]


def _cushion(rng: np.random.Generator) -> Contours:
    power = np.float32(between(rng, 0.25, 0.6))
    angle = _turn(48)
    c, s = np.cos(angle), np.sin(angle)
    return [np.stack([np.sign(c) * np.abs(c) ** power, np.sign(s) * np.abs(s) ** power], axis=-1)]


def _heart(rng: np.random.Generator) -> Contours:
    angle = _turn(40)
    lobe = between(rng, 0.6, 0.9)
    x = np.sin(angle) ** 3
    y = -0.8 * np.cos(angle) + 0.3 * lobe * np.cos(2 * angle) + 0.12 * np.cos(3 * angle)
    return [np.stack([x, y], axis=-1).astype(np.float32)]


_Kind = Callable[[np.random.Generator], Contours]

_STURDY: tuple[_Kind, ...] = (
    _blob, _blob, _blob, _ellipse, _polygon, _polygon, _star, _cross, _cushion, _heart,
)  # fmt: skip
_SLENDER: tuple[_Kind, ...] = (_ring, _crescent)


def outline(rng: np.random.Generator, area: float, *, slender: bool) -> Contours:
    """A random outline that encloses the given area, with its bounding box around the origin.

    Args:
        rng: chooses kind, proportions, stretch and turn.
        area: in square pixels, holes not counted.
        slender: whether rings and crescents may come, which need a large area to show a pattern.

    Returns:
        Closed contours, float32 [n, 2] of (x, y) in pixels: the outer one, then the holes.
    """
    kinds = _STURDY + _SLENDER if slender else _STURDY
    contours = kinds[int(rng.random() * len(kinds))](rng)
    stretch = math.exp(between(rng, -0.22, 0.22))
    turn = between(rng, 0.0, 2.0 * math.pi)
    c, s = math.cos(turn), math.sin(turn)
    matrix = np.array([[stretch * c, stretch * s], [-s / stretch, c / stretch]], dtype=np.float32)
    contours = [contour @ matrix for contour in contours]
    areas = [_enclosed(contour) for contour in contours]
    scale = math.sqrt(area / (areas[0] - sum(areas[1:])))
    outer = contours[0]
    middle = (outer.max(axis=0) + outer.min(axis=0)) / 2.0
    return [(contour - middle) * np.float32(scale) for contour in contours]


def _enclosed(contour: Float32[np.ndarray, "n 2"]) -> float:
    """Area inside a closed contour (shoelace formula)."""
    x, y = contour[:, 0], contour[:, 1]
    cross = float(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1])
    return abs(cross) / 2.0
