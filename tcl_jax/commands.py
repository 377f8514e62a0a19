"""Flags that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tcl_jax.errors import InputError, shorten

if TYPE_CHECKING:
    from tcl_jax.inference.model import Model

ACTIVATIONS = ("quick_gelu", "gelu")
"""Keys of `models.layers.ACTIVATIONS`, which would bring JAX with it."""

TEXTS_FILE = "a name a line, with synonyms after commas (tcl_jax/data/name_file.py has the format)"
"""Help of --texts_file."""


def command_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows a module's docstring as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m tcl_jax.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def share(text: str) -> float:
    """A flag's number between 0 and 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def read_texts(texts: Sequence[str], file: str | None) -> list[tuple[str, ...]]:
    """The names of --text, as they are, and of --texts_file with their synonyms, in order.

    Raises:
        InputError: if there is none or the file cannot be read.
    """
    from tcl_jax.data.name_file import describe_synonyms, read_names

    names: list[tuple[str, ...]] = [(text,) for text in texts]
    if file is not None:
        found = read_names(file, f"--texts_file={file!r}")
        listed = found.classes
        if found.values is not None:
            named = [f"{c[0]} ({value})" for c, value in zip(listed, found.values, strict=True)]
            print(f"names in {file}: {shorten(named)}; label values are not used here")
        if several := describe_synonyms(listed):
            print(f"synonyms in {file}: {several} (a name with commas goes in double quotes)")
        names += listed
    if not names:
        raise InputError(
            "no words to look for; give --text='a cat' (several times) or --texts_file"
        )
    return names


def add_model_flags(parser: argparse.ArgumentParser, *, several_methods: bool = False) -> None:
    """--checkpoint, or --clip with or without --tcl; --method, and --tokenizer_file for words."""
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="a converted or exported model, a run's workdir, or WORKDIR/checkpoints/STEP",
    )
    parser.add_argument(
        "--clip",
        metavar="NAME_OR_FILE",
        help="instead of --checkpoint: CLIP's weights, such as ViT-B/16 (downloaded once), a .pt "
        "or .safetensors file, a folder of OpenCLIP's or Hugging Face's, or builtin:shapes_clip",
    )
    parser.add_argument(
        "--tcl",
        metavar="official|FILE",
        help="with --clip: the published tcl.pth (downloaded once), or a file; without it CLIP "
        "alone segments",
    )
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="with --clip: its GELU, where no config file beside the weights says it",
    )
    add_prefix_flag(parser)
    parser.add_argument(
        "--method",
        metavar="NAMES" if several_methods else "NAME",
        help="tcl, or maskclip, sclip, naclip on its CLIP alone; default: the model's own"
        + ("; several separated by commas" if several_methods else ""),
    )
    parser.add_argument(
        "--tokenizer_file",
        metavar="FILE",
        help="the tokenizer.json of a CLIP with another vocabulary than OpenAI's",
    )


def add_prefix_flag(parser: argparse.ArgumentParser) -> None:
    """--prefix."""
    parser.add_argument(
        "--prefix",
        metavar="NAME",
        default="",
        help="where a weight file holds several models, such as model and model_ema, the one whose "
        "tensors' names begin so ('.': with no prefix)",
    )


def load_model_from(flags: argparse.Namespace, method: str | None = None) -> Model:
    """The model that the flags of `add_model_flags` name, by a method of `METHODS` or its own.

    Raises:
        InputError: if they name none or two, it cannot be read, or lacks weights of the method.
    """
    from tcl_jax.inference.model import load_model, method_of, model_from_torch

    if (flags.checkpoint is None) == (flags.clip is None):
        raise InputError("give either --checkpoint=DIR or --clip=NAME_OR_FILE (with --tcl=FILE)")
    if method is not None:
        method_of(method, "--method")
    if flags.checkpoint is None:
        model = model_from_torch(
            flags.clip, flags.tcl, activation=flags.activation, prefix=flags.prefix
        )
    elif flags.tcl is not None or flags.activation is not None or flags.prefix:
        raise InputError(
            "--tcl, --activation and --prefix belong to --clip; --checkpoint has all in it"
        )
    else:
        model = load_model(flags.checkpoint)
    return model if method is None else model.with_method(method)


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --num_processes and --process_id."""
    group = parser.add_argument_group(
        "several processes", "found by themselves on TPU pods and in SLURM, GKE and Open MPI jobs"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
