r"""Masks of the words you type, for your own pictures.

    python -m tcl_jax.segment --checkpoint=runs/shapes --image=photo.jpg --text="a cat" \
        --text="grass" --output=masks
    python -m tcl_jax.segment --model=talk2dino:B/14 --weights projection=vitb_mlp_infonce.pth \
        --image=photo.jpg --text="a cat" --output=masks

For every image the output folder gets NAME_overlay.png with a legend, NAME_labels.png with a
palette, NAME_masks.npz and NAME.json with area fractions. Exit codes: 0 all done; 1 some images
could not be read, and the rest are done; 2 bad input.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tcl_jax.commands import (
    TEXTS_FILE,
    add_model_flags,
    add_refine_flags,
    add_templates_flag,
    add_threshold_flag,
    command_parser,
    load_model_from,
    read_templates,
    read_texts,
    share,
    threshold_of,
)
from tcl_jax.errors import InputError, RunError, as_input_error, run_command, shorten
from tcl_jax.files import IMAGE_SUFFIXES, files_below, sha256_of, user_path, why_unwritable

MAX_NAME = 55
"""Characters in the name of a result, which gets an ending; file systems allow 255 bytes."""


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("segment", __doc__)
    add_model_flags(p)
    several: dict[str, Any] = {"action": "extend", "nargs": "+", "default": []}
    p.add_argument(
        "--image",
        **several,
        metavar="PATH_OR_GLOB_OR_DIR",
        help="the pictures: files, patterns, or folders with all that is below them",
    )
    p.add_argument("--text", **several, help="names of what to look for")
    p.add_argument("--texts_file", metavar="FILE", help=TEXTS_FILE)
    p.add_argument("--output", metavar="DIR", help="folder for the results")
    p.add_argument(
        "--background",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether pixels may be none of the texts",
    )
    add_threshold_flag(p)
    add_refine_flags(p)
    p.add_argument("--kp_weight", type=share, help="share of CLIP's own dense prediction, 0 to 1")
    add_templates_flag(p)
    p.add_argument(
        "--mode",
        choices=("slide", "whole"),
        default="slide",
        help="in windows that slide over the image, as published scores are made (default), or all "
        "of it in one pass, which is faster",
    )
    p.add_argument("--short_side", type=int, help="pixels that the short side is resized to")
    p.add_argument(
        "--masks",
        choices=("auto", "full", "working", "none"),
        default="auto",
        help="soft masks at the image's size, at the model's, or not at all; auto (default): at "
        "the image's where they take at most 64 MiB, else reduced",
    )
    p.add_argument("--resume", action="store_true", help="skip images that have the same results")
    return p


def find_images(patterns: Sequence[str], output: Path) -> tuple[list[Path], list[Path]]:
    """Files of paths, globs and folders (searched deeply), in order and each once.

    A file that is named is taken whatever it is called, of a folder those with `IMAGE_SUFFIXES`.

    Args:
        patterns: what --image was given.
        output: results below it are no images to segment, unless one is named itself.

    Returns:
        The images, and the other files of the folders.

    Raises:
        InputError: if one of the patterns gives no image.
    """
    results = os.path.realpath(output)
    images: dict[str, Path] = {}  # by their true paths, since links may give a file many
    others: dict[str, Path] = {}
    for pattern in patterns:
        path = user_path(pattern)
        found = [path] if path.exists() else map(Path, sorted(glob.glob(str(path), recursive=True)))
        count, outside = 0, ""
        for named in found:
            for file in map(Path, files_below(named)) if named.is_dir() else [named]:
                real = os.path.realpath(file)
                if file != path and Path(real).is_relative_to(results):
                    outside = f" outside of --output={str(output)!r}, where results go"
                    continue
                wanted = not named.is_dir() or file.suffix.lower() in IMAGE_SUFFIXES
                (images if wanted else others)[real] = file
                count += wanted
        if not count:
            advice = "another --output" if outside else "a file, a folder or a glob"
            raise InputError(
                f"--image={pattern!r}: there is no image{outside}"
                f"{_tell_left_out(others.values())}; give {advice}"
            )
    return list(images.values()), list(others.values())


def _tell_left_out(files: Iterable[Path]) -> str:
    names = [path.name for path in files]
    return f"; {len(names)} other file(s) left out: {shorten(names, 5)}" if names else ""


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
        name = name[-MAX_NAME:]
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
    from tcl_jax.data.words import check_words

    texts = read_texts(flags.text, flags.texts_file)
    with as_input_error("--text and --texts_file"):
        check_words([word for words in texts for word in words], background=flags.background)
    templates = read_templates(flags.templates)
    output = user_path(flags.output)
    if why := why_unwritable(output):
        raise InputError(f"--output={flags.output!r}: {why}; choose another folder")
    images, left_out = find_images(flags.image, output)
    # Imported here so that --help and mistakes in flags are answered at once.
    from tqdm import tqdm

    from tcl_jax.data.images import ImageDecodeError
    from tcl_jax.inference.segmenter import Segmenter

    model = load_model_from(flags, flags.method, kp_weight=flags.kp_weight)
    chosen = {"refine": flags.refine, "kp_weight": flags.kp_weight}
    flags.threshold = threshold_of(model, flags.threshold, **chosen)
    segmenter = Segmenter(model, tokenizer_file=flags.tokenizer_file)
    options: dict[str, Any] = {
        "background": flags.background,
        "threshold": flags.threshold,
        "mode": flags.mode,
        "short_side": flags.short_side,
        "templates": templates,
        "refine": flags.refine,
        "kp_weight": flags.kp_weight,
    }
    segmenter.embed_texts([word for synonyms in texts for word in synonyms], templates)
    several = [[*synonyms] for synonyms in texts if len(synonyms) > 1]
    given = {key: value for key, value in options.items() if value is not None}
    if flags.tokenizer_file is not None:
        given["tokenizer"] = sha256_of(user_path(flags.tokenizer_file))[:16]
    made = {
        "texts": [synonyms[0] for synonyms in texts],
        "options": given | ({"synonyms": several} if several else {}),
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
    print(
        f"{done} of {len(images)} image(s) segmented{more}; results in {output}"
        f"{_tell_left_out(left_out)}"
    )
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


if __name__ == "__main__":
    run_command(run)
