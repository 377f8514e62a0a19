"""The embedded data: pictures of coloured, patterned shapes with captions, made on the fly.

Classes are colour x pattern, all equally often. Training captions never name the pairs of UNSEEN:
of such an object they say the colour or the pattern, so that asking for the pair later is
zero-shot. Scenes of the other splits come with the true label map. Every example is a pure function
of (seed, split, index).
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import UInt8

from tcl_jax.shapes.drawing import draw_scene
from tcl_jax.shapes.grammar import Subject, describe

COLORS = {
    "red": (214, 32, 40), "orange": (250, 128, 8), "yellow": (250, 224, 40),
    "green": (40, 178, 70), "blue": (44, 98, 230), "purple": (158, 62, 206),
}  # fmt: skip
PATTERNS = ("plain", "striped", "dotted", "checked")
SPLITS = ("train", "validation", "test")

# Chance of one, two and three objects where up to max_objects are allowed.
_COUNT_ODDS = {1: (1.0,), 2: (0.45, 0.55), 3: (0.3, 0.4, 0.3)}
# An object repeats the class of an earlier one this often, for captions in the plural.
_REPEAT_PROBABILITY = 0.08


@dataclasses.dataclass(frozen=True)
class ShapeClass:
    """A class of the data: its name is "<pattern> <color>", such as "striped red"."""

    name: str
    color: str
    pattern: str


CLASSES = tuple(
    ShapeClass(f"{pattern} {color}", color, pattern) for color in COLORS for pattern in PATTERNS
)
UNSEEN = (
    "striped red", "dotted orange", "plain yellow", "checked green", "striped blue",
    "dotted purple",
)  # fmt: skip


def class_names() -> tuple[str, ...]:
    """The 24 class names; label value k + 1 means name k."""
    return tuple(shape.name for shape in CLASSES)


_GREYS = {
    "plain": (0.0, 0.0), "striped": (255.0, 0.58), "dotted": (0.0, 0.5), "checked": (128.0, 0.55),
}  # fmt: skip


def _shown(shape: ShapeClass) -> np.ndarray:
    """Hue shows the colour of a class, the grey that is mixed into it the pattern."""
    grey, share = _GREYS[shape.pattern]
    return (1.0 - share) * np.array(COLORS[shape.color]) + share * grey


PALETTE: UInt8[np.ndarray, "25 3"] = np.rint(
    np.stack([np.full(3, 24.0), *map(_shown, CLASSES)])
).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class ShapesSource:
    """Random-access source of scenes; examples are drawn when they are asked for.

    Args:
        split: "train" (captions never name the pairs of UNSEEN), "validation" or "test".
        num_examples: length of the source; a longer source begins with the shorter one.
        image_size: side of the pictures in pixels, 32 to 512.
        seed: chooses the stream of scenes, 0 or more.
        max_objects: most objects in a scene, 1 to 3; scenes with fewer occur too.

    Raises:
        ValueError: if an argument lies outside the range given above.
    """

    split: str
    _: dataclasses.KW_ONLY
    num_examples: int
    image_size: int = 48
    seed: int = 0
    max_objects: int = 3

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}, which does not exist: use one of {SPLITS}")
        for name, value, low, high in (
            ("num_examples", self.num_examples, 1, 2**48),
            ("image_size", self.image_size, 32, 512),
            ("seed", self.seed, 0, 2**63),
            ("max_objects", self.max_objects, 1, max(_COUNT_ODDS)),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}: choose a number from {low} to {high}")

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Example number `index`.

        Returns:
            `image`, RGB uint8 [image_size, image_size, 3]; `text`, one caption; `key`, such as
            "train-0-000123" of split, seed and index. For "validation" and "test" also `label`,
            uint8 [image_size, image_size], the class of each pixel in 1..24 or 0 for background,
            and `class_ids`, a rising tuple of the classes present.

        Raises:
            IndexError: unless 0 <= index < len(self).
        """
        number = operator.index(index)
        if not 0 <= number < self.num_examples:
            raise IndexError(
                f"index is {number}, but the source has examples 0 to {self.num_examples - 1}"
            )
        # Philox is keyed, so a stream costs no hashing; 48 bits of the word hold the index.
        word = (SPLITS.index(self.split) << 48) | number
        key = np.array([self.seed, word], dtype=np.uint64)
        rng = np.random.Generator(np.random.Philox(key=key))
        class_ids = _draw_classes(rng, self.max_objects)
        shapes = [CLASSES[i - 1] for i in class_ids]
        looks = [(COLORS[shape.color], shape.pattern) for shape in shapes]
        drawing = draw_scene(rng, self.image_size, looks)
        subjects = []
        for position, shape in enumerate(shapes, start=1):
            rows, columns = np.nonzero(drawing.owner == position)
            subjects.append(
                Subject(
                    color=shape.color,
                    pattern=shape.pattern,
                    x=float(columns.mean()) / self.image_size,
                    y=float(rows.mean()) / self.image_size,
                    area=rows.size / self.image_size**2,
                    nameable=self.split != "train" or shape.name not in UNSEEN,
                )
            )
        example: dict[str, Any] = {
            "image": drawing.image,
            "text": describe(rng, subjects, drawing.covers, drawing.ground),
            "key": f"{self.split}-{self.seed}-{number:06d}",
        }
        if self.split != "train":
            example["label"] = np.array((0, *class_ids), dtype=np.uint8)[drawing.owner]
            example["class_ids"] = tuple(sorted(set(class_ids)))
        return example


def _draw_classes(rng: np.random.Generator, max_objects: int) -> tuple[int, ...]:
    """The class (1..24) of each object."""
    count, chance = 1, rng.random()
    for odds in _COUNT_ODDS[max_objects][:-1]:
        chance -= odds
        count += chance >= 0.0
    chosen: list[int] = []
    while len(chosen) < count:
        if chosen and rng.random() < _REPEAT_PROBABILITY:
            chosen.append(chosen[-1])
        else:
            chosen.append(1 + int(rng.random() * len(CLASSES)))
    return tuple(chosen)
