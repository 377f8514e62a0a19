"""PASCAL-Context as published: .mat files of 459 classes, for the images of PASCAL VOC 2010."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from tcl_jax.errors import InputError, as_input_error, raise_machine_fault
from tcl_jax.evaluation.labels import LabelError
from tcl_jax.files import read_text, user_path

CLASSES: Mapping[int, str] = {
    2: "aeroplane", 9: "bag", 18: "bed", 19: "bedclothes", 22: "bench", 23: "bicycle", 25: "bird",
    31: "boat", 33: "book", 34: "bottle", 44: "building", 45: "bus", 46: "cabinet", 59: "car",
    65: "cat", 68: "ceiling", 72: "chair", 80: "cloth", 85: "computer", 98: "cow", 104: "cup",
    105: "curtain", 113: "dog", 115: "door", 144: "fence", 158: "floor", 159: "flower", 162: "food",
    187: "grass", 189: "ground", 207: "horse", 220: "keyboard", 232: "light", 258: "motorbike",
    259: "mountain", 260: "mouse", 284: "person", 295: "plate", 296: "platform", 308: "pottedplant",
    324: "road", 326: "rock", 347: "sheep", 349: "shelves", 354: "sidewalk", 355: "sign",
    360: "sky", 366: "snow", 368: "sofa", 397: "table", 415: "track", 416: "train", 420: "tree",
    424: "truck", 427: "tvmonitor", 440: "wall", 445: "water", 454: "window", 458: "wood",
}  # fmt: skip
"""The 59 classes in use, by their values in the .mat files; the order is the benchmark's."""

MAX_VALUE = 459
"""Values of the .mat files are 1 to this; 0 is not labelled."""

IMAGES: Mapping[str, int] = {"train": 4998, "val": 5105}
"""Images of VOC 2010's ImageSets/Main, by which the paper of PASCAL-Context and FCN divide it.

The lists of mmsegmentation come from trainval_merged.json, which lacks 2 and 1 of them.
"""

SOURCE = "trainval.tar.gz of https://cs.stanford.edu/~roozbeh/pascal-context/"


def find_annotations(home: Path, given: str | os.PathLike[str] | None) -> Path:
    """The folder of the .mat files.

    Args:
        home: the folder VOCdevkit/VOC2010.
        given: where they are, if not in trainval or Context below it.

    Raises:
        InputError: if there are none.
    """
    places = [home / "trainval", home / "Context"] if given is None else [user_path(given)]
    for place in places:
        if any(place.glob("*.mat")):
            return place
    raise InputError(
        "the labels of PASCAL Context are made of its .mat files, but there are none in "
        f"{' or '.join(map(str, places))}. Unpack {SOURCE} in {home}, or give --mat=DIR"
    )


def read_keys(path: Path) -> tuple[str, ...]:
    """Keys of a list of images, each once.

    Raises:
        InputError: if it cannot be read, is empty, or has other lines.
    """
    with as_input_error(f"the list {path} cannot be read"):
        text = read_text(path)
    keys = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    wrong = [key for key in keys if not re.fullmatch(r"[\w-]+", key)]
    if wrong or not keys:
        what = f"the line {wrong[0]!r:.60}" if wrong else "no line"
        raise InputError(f"the list {path} has {what}; it should have names as 2008_000003")
    return keys


def voc_keys(home: Path, split: str, missing: Path) -> tuple[str, ...]:
    """The images of a split as VOC 2010 lists them.

    Args:
        home: the folder VOCdevkit/VOC2010.
        split: "train" or "val".
        missing: the list that they are for, for messages.

    Raises:
        InputError: if VOC's list is not there, or has not as many images as it should.
    """
    path = home / "ImageSets" / "Main" / f"{split}.txt"
    keys = read_keys(path) if path.is_file() else ()
    if len(keys) != IMAGES[split]:
        found = f"has {len(keys)} images" if path.is_file() else "is not there"
        raise InputError(
            f"the list of images {missing} is not there; it can be made of {path} with the "
            f"{IMAGES[split]} images of PASCAL VOC 2010, but that {found}. Unpack "
            f"VOCtrainval_03-May-2010.tar in {home.parent.parent}, or put the {missing.name} that "
            f"mmsegmentation makes of trainval_merged.json at {missing}"
        )
    return keys


def read_label_map(path: str | os.PathLike[str]) -> Integer[np.ndarray, "h w"]:
    """The variable LabelMap of a .mat file.

    Returns:
        Whole numbers, 0 to `MAX_VALUE` in files as published; of whatever integer type.

    Raises:
        LabelError: if the file cannot be read or is damaged, or LabelMap is no matrix of whole
            numbers. The message does not repeat the path.
    """
    import scipy.io

    try:
        with open(path, "rb") as file:
            values = scipy.io.loadmat(file, variable_names=["LabelMap"])["LabelMap"]
    except KeyError as error:
        raise LabelError("it has no variable LabelMap") from error
    except Exception as error:  # of damaged files SciPy raises almost any type
        raise_machine_fault(str(path), error)
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise LabelError(f"it cannot be read as a MATLAB file: {reason}") from error
    numbers = np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating)
    if values.ndim != 2 or not values.size or not numbers:
        raise LabelError(
            f"its variable LabelMap is of shape {values.shape} and type {values.dtype}, and no "
            "matrix of whole numbers"
        )
    if np.issubdtype(values.dtype, np.floating):  # MATLAB's own type is double
        if not np.array_equal(values, np.clip(np.round(values), 0, 1 << 31)):
            raise LabelError("its variable LabelMap has values that are not whole numbers")
        values = values.astype(np.int64)
    return values
