r"""A trained or converted model, ready to be used elsewhere.

    python -m tcl_jax.export --checkpoint=runs/tcl --output=models/tcl
    python -m tcl_jax.export --checkpoint=runs/tcl --output=tcl.stablehlo --image_size=448 \
        --text="a cat" --text="grass"

The first writes a model directory: parameters without optimiser state, and config.json; it is what
`Segmenter.from_checkpoint` reads. The second, of which the output ends in .stablehlo, writes one
program with the weights inside, for CPU, CUDA and TPU at once, and its description beside it. JAX
runs it without this package (jax.export reads its files with `pip install flatbuffers`):

    from jax import export
    program = export.deserialize(bytearray(open("tcl.stablehlo", "rb").read()))
    masks = program.call(images)  # uint8 [b, 448, 448, 3] -> float32 [b, 448, 448, 2]

Without --text it takes text embeddings, float32 [n, d], as a second argument. Exit codes: 0 done,
1 failure, 2 bad input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
from tcl_jax.errors import InputError, run_command

SUFFIX = ".stablehlo"


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = command_parser("export", __doc__)
    add_model_flags(p)
    p.add_argument("--output", metavar="DIR_OR_FILE.stablehlo")
    program = p.add_argument_group("of a program")
    program.add_argument(
        "--image_size", type=image_size, help="side of the images, or ROWSxCOLUMNS, in pixels"
    )
    program.add_argument("--batch", type=int, help="images in a call; any number if not given")
    program.add_argument("--text", action="extend", nargs="+", default=[], help="names to bake in")
    program.add_argument("--texts_file", metavar="FILE", help=TEXTS_FILE)
    add_templates_flag(program)
    program.add_argument("--num_texts", type=int, help="text embeddings in a call; default: any")
    add_threshold_flag(program)
    add_refine_flags(program)
    program.add_argument("--kp_weight", type=share)
    program.add_argument(
        "--platforms", help="of cpu, cuda, rocm, tpu, with commas; default: cpu,cuda,tpu"
    )
    program.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the computation")
    return p


def image_size(text: str) -> tuple[int, int]:
    """448 or 448x672."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a size, as 448, nor 448x672")
    return int(sides[0]), int(sides[-1])


def export_directory(flags: argparse.Namespace) -> None:
    """A model directory."""
    from tcl_jax.checkpoints.model import check_absent
    from tcl_jax.inference.model import save_model

    given = [flags.image_size, flags.batch, flags.texts_file, flags.num_texts, flags.templates]
    given += [flags.refine, flags.kp_weight, flags.platforms, flags.dtype, flags.tokenizer_file]
    given.append(flags.threshold)
    if flags.text or any(value is not None for value in given):
        raise InputError(
            f"a model directory takes any image and text; for a program --output ends in {SUFFIX}"
        )
    check_absent(flags.output)
    model = load_model_from(flags, flags.method)
    save_model(flags.output, model)
    print(f"wrote {flags.output}; python -m tcl_jax.segment --checkpoint={flags.output} uses it")


def export_program(flags: argparse.Namespace) -> None:
    """A StableHLO file."""
    from tcl_jax.checkpoints.model import check_absent
    from tcl_jax.data.name_file import number_synonyms
    from tcl_jax.inference.export import PLATFORMS, check_platforms, export_masks, write_export
    from tcl_jax.inference.segmenter import Segmenter
    from tcl_jax.models.layers import COMPUTE_DTYPES

    check_absent(flags.output)
    names = read_texts(flags.text, flags.texts_file) if flags.text or flags.texts_file else []
    if not names and flags.templates is not None:
        raise InputError("--templates is for names to bake in; give these, too (--text='a cat')")
    if names and flags.num_texts is not None:
        raise InputError("--num_texts and --text exclude each other: names to bake in are counted")
    templates = read_templates(flags.templates)
    platforms = check_platforms(flags.platforms.split(",") if flags.platforms else PLATFORMS)
    model = load_model_from(flags, flags.method, kp_weight=flags.kp_weight)
    dtype = flags.dtype or "float32"
    baked: dict[str, Any] = {}
    if names:
        segmenter = Segmenter(model, dtype=dtype, tokenizer_file=flags.tokenizer_file)
        words = [word for synonyms in names for word in synonyms]
        baked = {
            "text_embeddings": segmenter.embed_texts(words, templates),
            "text_names": [synonyms[0] for synonyms in names],
            "synonyms": number_synonyms(names),
        }
        del segmenter  # and its copy of the weights
    own = model.settings
    # Other scores are refined at the image's size, which no program does.
    refine = flags.refine or (own.refine if own.scores == "masks" else "none")
    options = own.options_for(model.method, refine, None, flags.kp_weight)
    chosen = threshold_of(model, flags.threshold, refine=refine, kp_weight=flags.kp_weight)
    exported = export_masks(
        model.method_in(COMPUTE_DTYPES[dtype]),
        model.params,
        image_size=flags.image_size or (own.window, own.window),
        options=options,
        batch=flags.batch,
        **baked,
        num_texts=flags.num_texts,
        threshold=(
            own.background_score(model.method, options.refine) if chosen is None else chosen
        ),
        platforms=platforms,
    )
    description = write_export(flags.output, exported)
    size = exported.description["bytes"] / 2**20
    print(f"wrote {flags.output} ({size:.1f} MiB) and {description}, which says how to call it")


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    flags = parser().parse_args(argv)
    if not flags.output:
        raise InputError(
            "--output is needed, as in\n  python -m tcl_jax.export --checkpoint=runs/tcl "
            "--output=models/tcl"
        )
    to_program = Path(flags.output).suffix == SUFFIX
    (export_program if to_program else export_directory)(flags)


if __name__ == "__main__":
    run_command(run)
