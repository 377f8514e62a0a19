"""Flags that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import logging

from tcl_jax.errors import InputError, as_input_error, shorten

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


def add_refine_flags(parser: argparse._ActionsContainer) -> None:
    """How masks are refined."""
    parser.add_argument(
        "--refine",
        choices=("pamr", "affinity", "none"),
        help="masks by the image's edges (pamr), or TCL's by what similar patches show (affinity)",
    )
    for flag, stands_for in (("--pamr", "pamr"), ("--no-pamr", "none")):
        parser.add_argument(
            flag, dest="refine", action="store_const", const=stands_for,
            help=f"short for --refine={stands_for}",
        )  # fmt: skip


def threshold(text: str) -> float | str:
    """A flag's number between 0 and 1, or `best:DIR`, what an evaluation or a run found."""
    if text.startswith("best:") and text != "best:":
        return text
    try:
        return share(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is neither a number nor best:DIR") from error


def add_threshold_flag(parser: argparse._ActionsContainer) -> None:
    """--threshold, for `threshold_of`."""
    parser.add_argument(
        "--threshold",
        type=threshold,
        metavar="N|best:DIR",
        help="score of the background, 0 to 1, or what DIR has found: results of "
        "`evaluate --threshold=best`, or a run that was judged on held-out pairs",
    )


def threshold_of(model: Model, given: float | str | None, **chosen: Any) -> float | None:
    """The number that --threshold means.

    Args:
        model: whose masks it is for.
        given: as `threshold` reads it, or None.
        chosen: `refine` and `kp_weight`, with which those masks are made; None: the model's.

    Raises:
        InputError: if nothing was found in DIR, or for other masks.
    """
    if not isinstance(given, str):
        return given
    from tcl_jax.evaluation.protocol import make_protocol

    return make_protocol(model, threshold=given, **chosen).threshold


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


def add_templates_flag(parser: argparse._ActionsContainer) -> None:
    """--templates, for `read_templates`."""
    parser.add_argument(
        "--templates",
        action="append",
        metavar="NAME|SENTENCE|FILE",
        help="prompts that names are put into: a set, such as custom, simple, full, identity; your "
        "own, as 'a picture of a {}'; or a text file with one a line; give the flag several times",
    )


def read_templates(given: Sequence[str] | None) -> str | list[str] | None:
    """The set of prompts that --templates names, or all sentences of what it was given, once each.

    Raises:
        InputError: if a value is no set, no file and has no {}, or a file cannot be read.
    """
    from tcl_jax.files import read_text, user_path
    from tcl_jax.inference.templates import TEMPLATES, sentences_of

    if not given or (len(given) == 1 and given[0] in TEMPLATES):
        return given[0] if given else None
    sentences: list[str] = []
    for value in given:
        with as_input_error(f"--templates={value!r}"):
            if value in TEMPLATES:
                sentences += TEMPLATES[value]
            elif "{}" in value:
                sentences.append(value)
            elif user_path(value).is_file():
                lines = map(str.strip, read_text(user_path(value)).splitlines())
                sentences += sentences_of([x for x in lines if x and not x.startswith("#")])
            else:
                raise InputError(
                    "no such set, no file, and no sentence with {} for the name, such as 'a "
                    f"picture of a {{}}'; the sets are {', '.join(TEMPLATES)}"
                )
    return list(dict.fromkeys(sentences))


def add_model_flags(parser: argparse.ArgumentParser, *, several_methods: bool = False) -> None:
    """--checkpoint, --model with --weights, or --clip with or without --tcl; --method, and
    --tokenizer_file for words.
    """
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        help="a converted or exported model, a run's workdir, or WORKDIR/checkpoints/STEP",
    )
    add_named_flags(parser, "instead of --checkpoint: ")
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
        help="of --clip, or of a --model on one: its GELU, where no config file beside it says it",
    )
    add_prefix_flag(parser)
    parser.add_argument(
        "--method",
        metavar="NAMES" if several_methods else "NAME",
        help=_MethodsHelp(
            "of %(methods)s one that the model's weights are enough for, as its CLIP alone is for "
            "maskclip; default: the model's own"
            + ("; several separated by commas" if several_methods else "")
        ),
    )
    parser.add_argument(
        "--tokenizer_file",
        metavar="FILE",
        help="the tokenizer.json of a CLIP with another vocabulary than OpenAI's, or TIPS's "
        "tokenizer.model",
    )


class _MethodsHelp(str):
    """Help that names the methods, whose table brings JAX with it, once it is shown."""

    def __mod__(self, values: Any) -> str:
        from tcl_jax.models.methods import METHODS

        return str.__mod__(self, {**values, "methods": ", ".join(METHODS)})


def add_named_flags(parser: argparse.ArgumentParser, instead: str) -> None:
    """--model, whose help begins with what it is there instead of, and --weights."""
    parser.add_argument(
        "--model",
        metavar="NAME[:SIZE]",
        help=f"{instead}a released model and the size of its backbone, such as talk2dino:B/14, "
        "tips:B/14, dinotxt:L/16, dinotxt-v2:L/14, maskclip:ViT-B/16, tcl (README lists them); "
        "downloaded once, but for what --weights gives",
    )
    add_weights_flag(parser)


def add_weights_flag(parser: argparse.ArgumentParser) -> None:
    """--weights."""
    parser.add_argument(
        "--weights",
        metavar="PART=FILE",
        type=part_and_file,
        action="append",
        default=[],
        help="of --model, a file in place of a download, as backbone=FILE, text=FILE, head=FILE, "
        "projection=FILE, clip=FILE or second=FILE; give the flag several times",
    )


def part_and_file(text: str) -> tuple[str, str]:
    """A value of --weights."""
    part, _, file = text.partition("=")
    if not part or not file:
        raise argparse.ArgumentTypeError(f"{text!r} is not PART=FILE, such as backbone=dino.pth")
    return part, file


def add_prefix_flag(parser: argparse.ArgumentParser) -> None:
    """--prefix."""
    parser.add_argument(
        "--prefix",
        metavar="NAME",
        default="",
        help="where a weight file holds several models, such as model and model_ema, the one whose "
        "tensors' names begin so ('.': with no prefix)",
    )


def load_model_from(
    flags: argparse.Namespace, method: str | None = None, *, kp_weight: float | None = None
) -> Model:
    """The model that the flags of `add_model_flags` name, by a method of `METHODS` or its own.

    A `kp_weight` that is asked for and changes nothing is warned of.

    Raises:
        InputError: if they name none or two, it cannot be read, or lacks weights of the method.
    """
    from tcl_jax.inference.model import load_model, method_of, model_from_torch

    if sum(x is not None for x in (flags.checkpoint, flags.model, flags.clip)) != 1:
        raise InputError(
            "give either --checkpoint=DIR, --model=NAME:SIZE or --clip=NAME_OR_FILE (with "
            "--tcl=FILE)"
        )
    if flags.weights and flags.model is None:
        raise InputError("--weights belongs to --model, whose parts it names")
    if flags.clip is None and flags.tcl:
        raise InputError("--tcl belongs to --clip; of --model it is --weights=tcl=FILE")
    if flags.checkpoint is not None and (flags.activation or flags.prefix):
        raise InputError("--activation and --prefix are of --clip or --model, not of --checkpoint")
    how = {"activation": flags.activation, "prefix": flags.prefix}
    if method is not None:
        method_of(method, "--method")
    if flags.model is not None:
        model = load_named(flags.model, flags.weights, **{k: x for k, x in how.items() if x})
    elif flags.clip is not None:
        model = model_from_torch(flags.clip, flags.tcl, **how)
    else:
        model = load_model(flags.checkpoint)
        _tell_unfinished(model, flags.checkpoint)
    model = model if method is None else model.with_method(method)
    if kp_weight and not model.method.mixes_clip:
        logging.warning(
            "--kp_weight=%s changes nothing: %s has no dense prediction of CLIP to mix in, as "
            "TCL has", kp_weight, model.method.title,
        )  # fmt: skip
    return model


def _tell_unfinished(model: Model, checkpoint: str) -> None:
    """Warns where the newest checkpoint of a run is taken, and the run has not come to its end."""
    from tcl_jax.checkpoints.trained import find_store
    from tcl_jax.training.check import number_of_updates

    run, (store, step) = model.origin.get("run"), find_store(checkpoint) or (None, None)
    if run is None or store is None or step is not None:
        return  # a model directory, or a step that was chosen
    if run["step"] < (last := number_of_updates(run["config"])):
        logging.warning(
            "this run is unfinished, at step %d of %d; the command that it was started with "
            "(python -m tcl_jax.main ... --workdir=%s) goes on from there",
            run["step"], last, store.parent,
        )  # fmt: skip


def load_named(name: str, weights: Sequence[tuple[str, str]], **options: Any) -> Model:
    """The model of --model and --weights, with options of its row of `RELEASES`.

    Raises:
        InputError: as `inference.pretrained.load_pretrained`, and if a part has two files.
    """
    from tcl_jax.inference.pretrained import RELEASES, load_pretrained

    files = dict(weights)
    if len(files) < len(weights):
        raise InputError(f"--weights names {', '.join(x for x, _ in weights)}; give each part once")
    row = RELEASES.get(name.partition(":")[0])
    if row and (wrong := [part for part in files if part not in row.parts]):
        raise InputError(
            f"--weights={wrong[0]}=...: model {name!r} has no such part; its parts are "
            f"{', '.join(row.parts)}"
        )
    if row and (wrong := [f"--{option}" for option in options if option not in row.options]):
        raise InputError(f"{wrong[0]}: model {name!r} has no such option; leave it out")
    return load_pretrained(name, **files, **options)


def add_process_flags(parser: argparse.ArgumentParser) -> None:
    """--coordinator, --num_processes and --process_id."""
    group = parser.add_argument_group(
        "several processes", "found by themselves on TPU pods and in SLURM, GKE and Open MPI jobs"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    group.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
