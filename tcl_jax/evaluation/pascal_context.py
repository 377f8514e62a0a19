"""PASCAL-Context as published: .mat files of 459 classes, for the images of PASCAL VOC 2010."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from tcl_jax.errors import InputError, as_input_error, raise_machine_fault
from tcl_jax.evaluation.labels import LabelError
from tcl_jax.files import read_text, whole_file

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


def find_annotations(home: Path) -> Path:
    """The folder of the .mat files, of those in VOCdevkit/VOC2010 that unpacking makes.

    Raises:
        InputError: if there are none.
    """
    places = (home / "trainval", home / "Context")
    for place in places:
        if any(place.glob("*.mat")):
            return place
    raise InputError(
        "the labels of PASCAL Context are made of its .mat files, but there are none in "
        f"{' or '.join(map(str, places))}. Unpack trainval.tar.gz of "
        f"https://cs.stanford.edu/~roozbeh/pascal-context/ in {home}"
    )


def read_or_make_list(listed: Path, home: Path, split: str) -> tuple[str, ...]:
    """Keys of the images of a split; where their list is missing, VOC 2010's takes its place.

    Raises:
        InputError: if it cannot be read, or VOC's is not there or not that of 2010.
    """
    with as_input_error(f"the list {listed} cannot be read"):
        if listed.is_file():
            return tuple(dict.fromkeys(read_text(listed).split()))
        source = home / "ImageSets" / "Main" / f"{split}.txt"
        keys = tuple(read_text(source).split()) if source.is_file() else ()
    if len(keys) != IMAGES[split]:
        raise InputError(
            f"the list of images {listed} is not there; it can be made of {source} with the "
            f"{IMAGES[split]} images of PASCAL VOC 2010, but that has {len(keys)}. Unpack "
            f"VOCtrainval_03-May-2010.tar in {home.parent.parent}, or put the list that "
            f"mmsegmentation makes of trainval_merged.json at {listed}"
        )
    with whole_file(listed) as temporary:
        temporary.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    return keys


def read_label_map(path: Path) -> Int64[np.ndarray, "h w"]:
    """The variable LabelMap of a .mat file; 0 to `MAX_VALUE` in files as published.

    Raises:
        LabelError: if the file cannot be read, or LabelMap is no matrix of whole numbers. The
            message does not repeat the path.
    """
    import scipy.io

    try:
        with path.open("rb") as file:
            values = scipy.io.loadmat(file, variable_names=["LabelMap"])["LabelMap"]
        # MATLAB's own type is double.
        if values.dtype.kind not in "iuf" or values.ndim != 2 or (values % 1 != 0).any():
            raise ValueError(f"it is of shape {values.shape} and type {values.dtype}")
    except Exception as error:  # of damaged files SciPy raises almost any type
        raise_machine_fault(str(path), error)
        raise LabelError(f"its LabelMap is no matrix of whole numbers: {error}") from error
    return values.astype(np.int64)
