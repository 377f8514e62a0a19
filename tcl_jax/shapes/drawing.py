"""Procedural pictures: free outlines with a surface pattern on a dull textured ground.

Lengths that matter to the eye are tied to the picture: outlines scale with its side, pattern
periods stay at 4 to 7 px for sides up to 64 px (so that one or two 8 px patches show a pattern) and
grow with the side beyond that. Edges are antialiased: outlines by supersampling, patterns by their
signed distance in pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from tcl_jax.shapes.outlines import Contours, between, outline

Color = tuple[int, int, int]
Plane = Float32[np.ndarray, "h w"]
Rng = np.random.Generator

# Fractions of the picture's area.
_TOTAL_AREA = (0.21, 0.38)
_MIN_TOTAL_AREA = 0.20
_MIN_VISIBLE_AREA = 0.04
# Part of an object's own area that later objects must leave visible.
_MIN_VISIBLE_PART = 0.6
_MIN_COVERED_AREA = 0.006
# Rings and crescents need this much to be broad enough for a pattern.
_SLENDER_AREA = 0.14
_SUPERSAMPLING = 3

# Two tones are drawn from one row and mixed by the texture: name, hue range in degrees,
# saturation range, value range.
_GROUNDS: tuple[tuple[str, tuple[float, float], tuple[float, float], tuple[float, float]], ...] = (
    ("grey", (0.0, 360.0), (0.0, 0.08), (0.28, 0.70)),
    ("dark", (0.0, 360.0), (0.0, 0.14), (0.08, 0.36)),
    ("pale", (0.0, 360.0), (0.0, 0.06), (0.62, 0.92)),
    ("brown", (22.0, 38.0), (0.16, 0.30), (0.22, 0.52)),
    ("beige", (32.0, 48.0), (0.10, 0.20), (0.52, 0.84)),
    ("cloudy", (0.0, 360.0), (0.0, 0.08), (0.15, 0.85)),
)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A finished picture.

    Attributes:
        image: RGB.
        owner: 0 is the ground, i + 1 the object i that is seen at the pixel.
        covers: pairs (front, back) of objects where the first hides a part of the second.
        ground: everyday name of the ground's tone, such as "grey".
    """

    image: UInt8[np.ndarray, "s s 3"]
    owner: UInt8[np.ndarray, "s s"]
    covers: tuple[tuple[int, int], ...]
    ground: str


def draw_scene(rng: Rng, size: int, looks: Sequence[tuple[Color, str]]) -> Drawing:
    """Draws one object for every (RGB colour, pattern name) of looks, later ones in front.

    The objects' visible parts cover at least 20 % of the picture together and 4 % each, and at
    least 60 % of every object stays visible; layouts that fail this are drawn again from the same
    generator, so the result depends on the generator's state alone.
    """
    alphas, owner, covers = _layout(rng, size, len(looks))
    image, ground = _ground(rng, size)
    light = rng.random() * 2.0 * math.pi
    for alpha, (color, pattern) in zip(alphas, looks, strict=True):
        _paint(rng, image, alpha, color, pattern, light)
    image += (rng.standard_normal((size, size, 1), dtype=np.float32)) * 2.5
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Drawing(pixels, owner, covers, ground)


@functools.cache
def _grid(size: int) -> tuple[Plane, Plane]:
    """Pixel centres (x, y) relative to the picture's centre, in pixels."""
    line = np.arange(size, dtype=np.float32) - (size - 1) / 2.0
    x, y = np.meshgrid(line, line)
    return x, y


# ------------------------------------------------------------------------------------------- layout


def _layout(
    rng: Rng, size: int, count: int
) -> tuple[list[Plane], UInt8[np.ndarray, "s s"], tuple[tuple[int, int], ...]]:
    """Coverage of every object, the owner map and who covers whom."""
    pixels = size * size
    while True:  # Most layouts are accepted, so this ends soon.
        total = between(rng, *_TOTAL_AREA) + 0.02 * (count - 1)
        shares = 0.45 + rng.random(count)
        shares *= total * pixels / shares.sum()
        placed: list[tuple[float, float, float]] = []
        alphas = []
        for share in shares.tolist():
            contours = outline(rng, share, slender=share > _SLENDER_AREA * pixels)
            placed.append(_place(rng, size, contours[0], placed))
            alphas.append(_fill(contours, placed[-1][:2], size))
        solids = [alpha >= 0.5 for alpha in alphas]
        owner = np.zeros((size, size), dtype=np.uint8)
        for number, solid in enumerate(solids, start=1):
            owner[solid] = number
        visible = np.bincount(owner.ravel(), minlength=count + 1)[1:]
        wanted = [
            max(_MIN_VISIBLE_AREA * pixels, _MIN_VISIBLE_PART * int(np.count_nonzero(solid)))
            for solid in solids
        ]
        if visible.sum() < _MIN_TOTAL_AREA * pixels or any(visible < wanted):
            continue
        covers = tuple(
            (front, back)
            for back in range(count)
            for front in range(back + 1, count)
            if np.count_nonzero(solids[front] & solids[back]) >= _MIN_COVERED_AREA * pixels
        )
        return alphas, owner, covers


def _place(
    rng: Rng,
    size: int,
    outer: Float32[np.ndarray, "n 2"],
    placed: Sequence[tuple[float, float, float]],
) -> tuple[float, float, float]:
    """x, y and mean radius of an object: nearly in the picture, off the middle of those placed."""
    halves = [float(half) for half in outer.max(axis=0)]
    radius = sum(halves) / 2.0
    overhang = 0.12 if rng.random() < 0.3 else -0.02
    edges = [half * (1.0 - overhang) for half in halves]
    closeness = between(rng, 0.6, 1.0)
    best, best_gap = (0.0, 0.0, radius), -math.inf
    for _ in range(8):
        x, y = (
            between(rng, edge, size - edge) if edge < size - edge else size / 2.0 for edge in edges
        )
        gap = min(
            (math.hypot(x - px, y - py) / (radius + pr) for px, py, pr in placed),
            default=math.inf,
        )
        if gap > best_gap:
            best, best_gap = (x, y, radius), gap
        if gap >= closeness:
            break
    return best


def _fill(contours: Contours, center: tuple[float, float], size: int) -> Plane:
    """Share of every pixel inside the outer contour and outside the holes, in [0, 1]."""
    fine = size * _SUPERSAMPLING
    canvas = np.zeros((fine, fine), dtype=np.uint8)
    move = np.array(center, dtype=np.float32)
    # OpenCV has pixel centres at whole numbers, and `shift` fractional bits.
    points = [
        np.rint(((contour + move) * _SUPERSAMPLING - 0.5) * 16.0).astype(np.int32)
        for contour in contours
    ]
    cv2.fillPoly(canvas, points, 255, shift=4)
    # Means of 3 x 3 blocks; cv2.resize would start threads for so small a picture.
    blocks = cv2.blur(canvas, (_SUPERSAMPLING, _SUPERSAMPLING))
    middle = slice(_SUPERSAMPLING // 2, None, _SUPERSAMPLING)
    return blocks[middle, middle].astype(np.float32) * np.float32(1.0 / 255.0)


# ------------------------------------------------------------------------------------------- ground


def _ground(rng: Rng, size: int) -> tuple[Float32[np.ndarray, "s s 3"], str]:
    """A dull textured ground in [0, 255] and the name of its tone."""
    name, hues, saturations, values = _GROUNDS[int(rng.random() * len(_GROUNDS))]
    low, high = values
    third = (high - low) / 3.0
    tones = [
        _rgb(between(rng, *hues), between(rng, *saturations), between(rng, start, start + third))
        for start in (low, high - third)
    ]
    texture = _TEXTURES[int(rng.random() * len(_TEXTURES))](rng, size)
    first, second = np.array(tones, dtype=np.float32)
    return first + texture[..., None] * (second - first), name


def _rgb(hue: float, saturation: float, value: float) -> list[float]:
    """HSV (degrees, [0, 1], [0, 1]) to RGB in [0, 255]."""
    sextants = ((hue / 60.0 + k) % 6.0 for k in (5.0, 3.0, 1.0))
    return [255.0 * value * (1.0 - saturation * max(0.0, min(k, 4.0 - k, 1.0))) for k in sextants]


def _gradient(rng: Rng, size: int) -> Plane:
    x, y = _grid(size)
    turn = rng.random() * 2.0 * math.pi
    return np.float32(0.5) + (math.cos(turn) * x + math.sin(turn) * y) / np.float32(1.3 * size)


def _noise(rng: Rng, size: int) -> Plane:
    """Value noise: smooth interpolation of two random lattices."""
    coarse = 3 + int(rng.random() * 4)
    field = _lattice(rng, size, coarse) * np.float32(0.85)
    return field + (_lattice(rng, size, 3 * coarse) - np.float32(0.2)) * np.float32(0.45)


def _lattice(rng: Rng, size: int, cells: int) -> Plane:
    """Random values in [0, 1) at cells x cells points, smoothly interpolated."""
    weights = _interpolation(size, cells)
    return weights @ rng.random((cells, cells), dtype=np.float32) @ weights.T


@functools.cache
def _interpolation(size: int, cells: int) -> Float32[np.ndarray, "s c"]:
    """Rows of smoothstep weights of the lattice points around every pixel."""
    position = np.linspace(0.0, cells - 1.0, size)
    near = np.clip(1.0 - np.abs(position[:, None] - np.arange(cells)), 0.0, 1.0)
    return (near * near * (3.0 - 2.0 * near)).astype(np.float32)


def _blotches(rng: Rng, size: int) -> Plane:
    field = _lattice(rng, size, 4 + int(rng.random() * 4))
    return np.clip((field - np.float32(0.5)) * np.float32(4.0) + np.float32(0.5), 0.0, 1.0)


def _swell(rng: Rng, size: int) -> Plane:
    """Broad soft bands, two to three over the picture, bent by noise."""
    x, y = _grid(size)
    turn = rng.random() * 2.0 * math.pi
    across = (math.cos(turn) * x + math.sin(turn) * y) * np.float32(
        2.0 * math.pi * between(rng, 1.5, 3.0) / size
    )
    bend = _lattice(rng, size, 4) * np.float32(3.0)
    return np.float32(0.5) + np.float32(0.35) * np.sin(across + bend)


_TEXTURES: tuple[Callable[[Rng, int], Plane], ...] = (
    _gradient, _noise, _noise, _blotches, _swell,
)  # fmt: skip


# ------------------------------------------------------------------------------------------ surface


def _paint(
    rng: Rng,
    image: Float32[np.ndarray, "s s 3"],
    alpha: Plane,
    color: Color,
    pattern: str,
    light: float,
) -> None:
    """Lays an object with its shadow over the image, in place."""
    size = image.shape[0]
    # What the object touches, and a margin for its shadow.
    left, top, width, height = cv2.boundingRect((alpha > 0.0).view(np.uint8))
    margin = 3 + size // 40
    box = (
        slice(max(0, top - margin), top + height + margin),
        slice(max(0, left - margin), left + width + margin),
    )
    x, y = (axis[box] for axis in _grid(size))
    alpha = alpha[box]
    jitter = (rng.random(3, dtype=np.float32) - np.float32(0.5)) * np.float32(24.0)
    base = np.array(color, dtype=np.float32) * np.float32(between(rng, 0.9, 1.05)) + jitter
    surface: np.ndarray = base
    if pattern != "plain":
        # White would be lost on a bright colour such as yellow; dark ink keeps a little hue.
        bright = float(base @ np.array([0.3, 0.59, 0.11], dtype=np.float32)) > 185.0
        white = not bright and rng.random() < 0.65
        ink = np.full(3, 245.0, dtype=np.float32) if white else base * np.float32(0.16)
        surface = base + _ink(rng, x, y, max(1.0, size / 64.0), pattern)[..., None] * (ink - base)
    cos, sin = math.cos(light), math.sin(light)
    slope = np.float32(1.0) + (x * cos + y * sin) * np.float32(0.22 / size)
    soft = cv2.GaussianBlur(alpha, (5, 5), 1.2, borderType=cv2.BORDER_REPLICATE)
    rim = np.minimum(np.float32(0.45) + soft * np.float32(0.65), np.float32(1.0))
    away = np.array([[1, 0, round(-cos * size / 40.0)], [0, 1, round(-sin * size / 40.0)]], float)
    shadow = cv2.warpAffine(soft, away, soft.shape[::-1], flags=cv2.INTER_NEAREST)
    below = image[box]
    below *= (np.float32(1.0) - np.float32(0.4) * shadow)[..., None]
    below += alpha[..., None] * (surface * (slope * rim)[..., None] - below)


def _ink(
    rng: Rng,
    x: Plane,
    y: Plane,
    unit: float,
    pattern: str,
) -> Plane:
    """How much of every pixel (x, y) the pattern's ink covers, in [0, 1]; periods times unit."""
    turn = rng.random() * 2.0 * math.pi
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    u = x * cos + y * sin + np.float32(rng.random() * 16.0 * unit)
    if pattern == "striped":
        period = between(rng, 4.2, 6.2) * unit
        return _bands(u, period, period * between(rng, 0.38, 0.48))
    v = y * cos - x * sin + np.float32(rng.random() * 16.0 * unit)
    if pattern == "checked":
        period = between(rng, 6.0, 7.6) * unit
        a, b = _bands(u, period, period / 2.0), _bands(v, period, period / 2.0)
        return a + b - np.float32(2.0) * a * b
    assert pattern == "dotted", pattern
    period = between(rng, 5.2, 6.8) * unit
    radius = period * between(rng, 0.24, 0.28)
    return np.clip(radius + 0.5 - np.sqrt(_fold(u, period) ** 2 + _fold(v, period) ** 2), 0.0, 1.0)


def _fold(u: Plane, period: float) -> Plane:
    """Distance to the nearest multiple of the period."""
    share = u * np.float32(1.0 / period)
    return np.abs(share - np.rint(share)) * np.float32(period)


def _bands(u: Plane, period: float, width: float) -> Plane:
    """Bands of the given width around multiples of the period, edges one pixel soft."""
    return np.clip(np.float32(width / 2.0 + 0.5) - _fold(u, period), 0.0, 1.0)
