r"""Masks of the words you type, for your own pictures.

    python -m tcl_jax.segment --checkpoint=runs/shapes --image=photo.jpg --text="a cat" \
        --text="grass" --output=masks

For every image the output folder gets NAME_overlay.png with a legend, NAME_labels.png with a
palette, NAME_masks.npz and NAME.json with area fractions. Exit codes: 0 all done; 1 some images
could not be read, and the rest are done; 2 bad input.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tcl_jax.commands import (
    TEXTS_FILE,
    add_model_flags,
    command_parser,
    load_model_from,
    read_texts,
    share,
)
from tcl_jax.errors import InputError, RunError, run_command
from tcl_jax.files import user_path, why_unwritable

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
"""What is taken of a folder; a file that is named is tried whatever it is called."""
MAX_NAME_BYTES = 180
"""Of the name of a result, which gets an ending; file systems allow 255."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("segment", __doc__)
    add_model_flags(p)
    p.add_argument("--image", action="append", default=[], metavar="PATH_OR_GLOB_OR_DIR")
    p.add_argument("--text", action="append", default=[], help="a name; give it several times")
    p.add_argument("--texts_file", metavar="FILE", help=TEXTS_FILE)
    p.add_argument("--output", metavar="DIR", help="folder for the results")
    p.add_argument(
        "--background",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether pixels may be none of the texts",
    )
    p.add_argument("--threshold", type=share, help="score of the background, 0 to 1")
    p.add_argument("--pamr", action=argparse.BooleanOptionalAction, help="refine the masks' edges")
    p.add_argument("--kp_weight", type=share, help="share of CLIP's own dense prediction, 0 to 1")
    p.add_argument("--templates", help="set of prompts, such as custom, simple, full, identity")
    p.add_argument("--mode", choices=("auto", "whole", "slide"), default="auto")
    p.add_argument("--short_side", type=int, help="pixels that the short side is resized to")
    p.add_argument(
        "--masks",
        choices=("full", "working", "none"),
        default="full",
        help="soft masks at the image's size, at the model's, or not at all",
    )
    p.add_argument("--resume", action="store_true", help="skip images that have the same results")
    return p


def find_images(patterns: Sequence[str], output: Path) -> list[Path]:
    """Files of paths, globs and folders (searched deeply), in order and each once.

    Args:
        patterns: what --image was given.
        output: results below it are no images to segment, unless one is named itself.

    Raises:
        InputError: if one of them gives no image.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = user_path(pattern)
        if path.is_file():
            found[path] = None
            continue
        if path.is_dir():
            inside = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES]
        else:
            inside = [Path(p) for p in glob.glob(str(path), recursive=True)]
        results = output.resolve()
        inside = sorted(p for p in inside if p.is_file())
        if not inside:
            what = "a folder without images" if path.is_dir() else "not there"
            raise InputError(f"--image={pattern!r} is {what}; give a file, a folder or a glob")
        others = [p for p in inside if results not in p.resolve().parents]
        if not others:
            raise InputError(
                f"all images of --image={pattern!r} are in --output={str(output)!r}, where results "
                "go; choose another folder for these"
            )
        found |= dict.fromkeys(others)
    return list(found)


def name_results(images: Sequence[Path]) -> list[str]:
    """A name for the results of each image: its own, and its folders where two have the same."""
    stems = Counter(path.stem for path in images)
    common = os.path.commonpath([path.absolute().parent for path in images])
    names: dict[str, Path] = {}
    for path in images:
        name = path.stem
        if stems[name] > 1:
            folders = path.absolute().relative_to(common).parts[:-1]
            name = "_".join([*folders, name, path.suffix[1:]])
        if len(name.encode()) > MAX_NAME_BYTES:
            digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
            name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore") + digest
        free = (f"{name}_{i}" if i else name for i in range(len(images) + 1))
        names[next(candidate for candidate in free if candidate not in names)] = path
    return list(names)


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    flags = parser().parse_args(argv)
    if not flags.image or not flags.output:
        raise InputError(
            "--image and --output are needed, as in\n  python -m tcl_jax.segment "
            "--checkpoint=runs/shapes --image=photo.jpg --text='a cat' --output=masks"
        )
    texts = read_texts(flags.text, flags.texts_file)
    output = user_path(flags.output)
    images = find_images(flags.image, output)
    if why := why_unwritable(output):
        raise InputError(f"--output={flags.output!r}: {why}; choose another folder")
    # Imported here so that --help and mistakes in flags are answered at once.
    from tqdm import tqdm

    from tcl_jax.data.images import ImageDecodeError
    from tcl_jax.inference.segmenter import Segmenter

    segmenter = Segmenter(load_model_from(flags), tokenizer_file=flags.tokenizer_file)
    options: dict[str, Any] = {
        "background": flags.background,
        "threshold": flags.threshold,
        "mode": flags.mode,
        "short_side": flags.short_side,
        "templates": flags.templates,
        "pamr": flags.pamr,
        "kp_weight": flags.kp_weight,
    }
    segmenter.embed_texts([word for synonyms in texts for word in synonyms], flags.templates)
    several = {"synonyms": [[*synonyms] for synonyms in texts if len(synonyms) > 1] or None}
    made = {
        "texts": [synonyms[0] for synonyms in texts],
        "options": {k: v for k, v in (options | several).items() if v is not None},
        "masks": flags.masks,
        "model": segmenter.fingerprint,
    }
    broken: list[str] = []
    skipped = 0
    with tqdm(total=len(images), unit="image", disable=len(images) == 1) as bar:
        for path, name in zip(images, name_results(images), strict=True):
            record = {**made, "source": _describe(path)}
            if flags.resume and _is_done(output / f"{name}.json", record):
                skipped += 1
            else:
                try:
                    result = segmenter.segment(path, texts, **options)
                except ImageDecodeError as error:
                    broken.append(str(error))
                    bar.write(f"skipped: {error}", file=sys.stderr)
                else:
                    extra = {key: record[key] for key in ("options", "model", "source")}
                    files = result.save(output, name, masks=flags.masks, extra=extra)
                    if len(images) == 1:
                        _tell(result.fractions, files)
            bar.update()
    done = len(images) - len(broken) - skipped
    more = f", {skipped} were there already" if skipped else ""
    print(f"{done} of {len(images)} image(s) segmented{more}; results in {output}")
    if broken:
        raise RunError(f"{len(broken)} image(s) could not be read, see above; the rest are done")


def _describe(path: Path) -> dict[str, Any]:
    """What tells whether an image is still the same."""
    try:
        status = path.stat()
    except OSError:  # which `segment` reports
        return {"path": str(path)}
    return {"path": str(path), "bytes": status.st_size, "modified": status.st_mtime}


def _is_done(path: Path, expected: dict[str, Any]) -> bool:
    """Whether the results of an image, of which this file is written last, are there."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return {key: record.get(key) for key in expected} == expected


def _tell(fractions: dict[str, float], files: dict[str, Path]) -> None:
    for name, fraction in sorted(fractions.items(), key=lambda item: -item[1]):
        print(f"{100 * fraction:6.1f} %  {name}")
    for path in files.values():
        print(path)


def main() -> None:
    """Entry point."""
    run_command(run)


if __name__ == "__main__":
    main()
