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

from tcl_jax.shapes import grammar
from tcl_jax.shapes.drawing import Drawing, draw_scene

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 40),
    "orange": (250, 128, 8),
    "yellow": (250, 224, 40),
    "green": (40, 178, 70),
    "blue": (44, 98, 230),
    "purple": (158, 62, 206),
}
PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted", "checked")
SPLITS: tuple[str, ...] = ("train", "validation", "test")

# Chance of one, two and three objects where up to max_objects are allowed.
_COUNT_ODDS: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (0.45, 0.55),
    3: (0.3, 0.4, 0.3),
}
# An object repeats the class of an earlier one this often, for captions in the plural.
_REPEAT_PROBABILITY = 0.08


@dataclasses.dataclass(frozen=True)
class ShapeClass:
    """A class of the data: its name is "<pattern> <color>", such as "striped red"."""

    name: str
    color: str
    pattern: str


CLASSES: tuple[ShapeClass, ...] = tuple(
    ShapeClass(f"{pattern} {color}", color, pattern) for color in COLORS for pattern in PATTERNS
)
UNSEEN: tuple[str, ...] = (
    "striped red",
    "dotted orange",
    "plain yellow",
    "checked green",
    "striped blue",
    "dotted purple",
)


def class_names() -> tuple[str, ...]:
    """The 24 class names; label value k + 1 means name k."""
    return tuple(shape.name for shape in CLASSES)


def _palette() -> UInt8[np.ndarray, "25 3"]:
    """Hue shows the colour of a class, lightness and saturation its pattern."""
    black, grey, white = (np.full(3, value) for value in (0.0, 128.0, 255.0))
    # Pattern -> the tone to mix in and how much of it.
    mixes = {
        "plain": (black, 0.0), "striped": (white, 0.58), "dotted": (black, 0.5),
        "checked": (grey, 0.55),
    }  # fmt: skip
    rows = [np.full(3, 24.0)]
    for shape in CLASSES:
        tone, share = mixes[shape.pattern]
        rows.append((1.0 - share) * np.array(COLORS[shape.color]) + share * tone)
    palette = np.rint(np.stack(rows)).astype(np.uint8)
    palette.setflags(write=False)
    return palette


PALETTE: UInt8[np.ndarray, "25 3"] = _palette()


@dataclasses.dataclass(frozen=True)
class _Scene:
    """One drawn scene: the class (1..24) of every object, back to front, picture and caption."""

    class_ids: tuple[int, ...]
    drawing: Drawing
    caption: grammar.Caption


class ShapesSource:
    """Random-access source of scenes; examples are drawn when they are asked for.

    `source[index]` is a dict with
      image: RGB, uint8 [image_size, image_size, 3];
      text: one caption;
      key: "<split>-<seed>-<index>", such as "train-0-000123";
    and for the splits "validation" and "test" also
      label: uint8 [image_size, image_size], class of the visible pixel in 1..24, 0 background;
      class_ids: tuple of the classes present, rising.

    Args:
      split: "train" (captions never name the pairs of UNSEEN), "validation" or "test".
      num_examples: length of the source; a longer source begins with the shorter one.
      image_size: side of the pictures in pixels, 32 to 512.
      seed: chooses the stream of scenes, 0 or more.
      max_objects: most objects in a scene, 1 to 3; scenes with fewer occur too.
      color_only_probability: how often a caption names an object by colour alone (half as often
        for a lone object).
      pattern_only_probability: the same for the pattern alone.
      partial_caption_probability: how often a caption leaves out some of several objects.
      ground_probability: how often a caption names the background.

    Raises:
      ValueError: if an argument lies outside the range given above.
      TypeError: if a count, size or seed is not a whole number.
    """

    def __init__(
        self,
        split: str,
        *,
        num_examples: int,
        image_size: int = 48,
        seed: int = 0,
        max_objects: int = 3,
        color_only_probability: float = 0.2,
        pattern_only_probability: float = 0.2,
        partial_caption_probability: float = 0.3,
        ground_probability: float = 0.12,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}, which does not exist: use one of {SPLITS}")
        for name, value, low, high in (
            ("num_examples", num_examples, 1, 2**48),
            ("image_size", image_size, 32, 512),
            ("seed", seed, 0, 2**63),
            ("max_objects", max_objects, 1, max(_COUNT_ODDS)),
            ("color_only_probability", color_only_probability, 0, 1),
            ("pattern_only_probability", pattern_only_probability, 0, 1),
            ("partial_caption_probability", partial_caption_probability, 0, 1),
            ("ground_probability", ground_probability, 0, 1),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}: choose a value from {low} to {high}")
        whole = {
            "num_examples": num_examples,
            "image_size": image_size,
            "seed": seed,
            "max_objects": max_objects,
        }
        for name, value in whole.items():
            if not isinstance(value, int | np.integer):
                raise TypeError(
                    f"{name} is {value!r}, a {type(value).__name__}: give a whole number"
                )
        if color_only_probability + pattern_only_probability > 1:
            raise ValueError(
                f"color_only_probability {color_only_probability} and pattern_only_probability "
                f"{pattern_only_probability} exclude each other: their sum must not pass 1"
            )
        self.split = split
        self.num_examples = int(num_examples)
        self.image_size = int(image_size)
        self.seed = int(seed)
        self.max_objects = int(max_objects)
        self.habits = grammar.CaptionHabits(
            color_only=float(color_only_probability),
            pattern_only=float(pattern_only_probability),
            partial=float(partial_caption_probability),
            ground=float(ground_probability),
        )

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        return (
            f"ShapesSource({self.split!r}, num_examples={self.num_examples}, "
            f"image_size={self.image_size}, seed={self.seed}, max_objects={self.max_objects}, "
            f"color_only_probability={self.habits.color_only}, "
            f"pattern_only_probability={self.habits.pattern_only}, "
            f"partial_caption_probability={self.habits.partial}, "
            f"ground_probability={self.habits.ground})"
        )

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Example number index; see the class for its fields.

        Raises:
          IndexError: unless 0 <= index < len(self).
          TypeError: if index is not a whole number.
        """
        number = self._checked(index)
        scene = self._scene(number)
        example: dict[str, Any] = {
            "image": scene.drawing.image,
            "text": scene.caption.text,
            "key": f"{self.split}-{self.seed}-{number:06d}",
        }
        if self.split != "train":
            value_of = np.array((0, *scene.class_ids), dtype=np.uint8)
            example["label"] = value_of[scene.drawing.owner]
            example["class_ids"] = tuple(sorted(set(scene.class_ids)))
        return example

    def _checked(self, index: SupportsIndex) -> int:
        try:
            number = operator.index(index)
        except TypeError:
            raise TypeError(
                f"index is {index!r}, a {type(index).__name__}: ask for one example by a whole "
                "number"
            ) from None
        if not 0 <= number < self.num_examples:
            raise IndexError(
                f"index is {number}, but the source has examples 0 to {self.num_examples - 1}"
            )
        return number

    def _scene(self, number: int) -> _Scene:
        # Philox is keyed, so a stream costs no hashing; 48 bits of the word hold the index.
        word = (SPLITS.index(self.split) << 48) | number
        rng = np.random.Generator(
            np.random.Philox(key=np.array([self.seed, word], dtype=np.uint64))
        )
        class_ids = self._draw_classes(rng)
        shapes = [CLASSES[i - 1] for i in class_ids]
        drawing = draw_scene(
            rng, self.image_size, [(COLORS[s.color], s.pattern) for s in shapes]
        )
        subjects = [
            self._subject(shape, drawing.owner, position)
            for position, shape in enumerate(shapes, start=1)
        ]
        caption = grammar.describe(
            rng, subjects, drawing.covers, drawing.ground, self.habits
        )
        return _Scene(class_ids, drawing, caption)

    def _draw_classes(self, rng: np.random.Generator) -> tuple[int, ...]:
        count, chance = 1, rng.random()
        for odds in _COUNT_ODDS[self.max_objects][:-1]:
            chance -= odds
            count += chance >= 0.0
        chosen: list[int] = []
        while len(chosen) < count:
            if chosen and rng.random() < _REPEAT_PROBABILITY:
                chosen.append(chosen[-1])
            else:
                chosen.append(1 + int(rng.random() * len(CLASSES)))
        return tuple(chosen)

    def _subject(
        self, shape: ShapeClass, owner: UInt8[np.ndarray, "s s"], position: int
    ) -> grammar.Subject:
        rows, columns = np.nonzero(owner == position)
        size = self.image_size
        return grammar.Subject(
            color=shape.color,
            pattern=shape.pattern,
            x=float(columns.mean()) / size,
            y=float(rows.mean()) / size,
            area=rows.size / (size * size),
            nameable=self.split != "train" or shape.name not in UNSEEN,
        )
