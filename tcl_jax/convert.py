"""Weights in and out, without PyTorch.

    python -m tcl_jax.convert clip IN OUT                      CLIP -> a model directory
    python -m tcl_jax.convert tcl IN --clip=CLIP OUT           official tcl.pth -> a model directory
    python -m tcl_jax.convert model NAME[:SIZE] OUT            a released model -> a model directory
    python -m tcl_jax.convert export-torch DIR OUT.safetensors -> official names, for PyTorch
    python -m tcl_jax.convert inspect IN                       what a file or directory holds

IN and CLIP are files (.pt, .pth, .safetensors, .npz; names of OpenAI's CLIP, OpenCLIP or Hugging
Face, under any prefix), folders of these libraries, or a name such as ViT-B/16, or official for
TCL's tcl.pth, which is downloaded once. NAME[:SIZE], such as tips:B/14, and --weights are as
--model and --weights of `python -m tcl_jax.segment`. `inspect` knows the backbones of
`tcl_jax.Backbone`, too. Half and single precision are kept.
Exit codes: 0 done, 1 failure, 2 bad input; nothing is ever half-written.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tcl_jax.commands import (
    ACTIVATIONS,
    add_prefix_flag,
    add_weights_flag,
    command_parser,
    load_named,
)
from tcl_jax.errors import InputError, run_command
from tcl_jax.files import user_path


def parser() -> argparse.ArgumentParser:
    """The sub-commands and their flags."""
    p = command_parser("convert", __doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    clip = commands.add_parser("clip", help="CLIP to a model directory (the MaskCLIP baseline)")
    tcl = commands.add_parser("tcl", help="TCL's official checkpoint to a model directory")
    named = commands.add_parser("model", help="a model by name, such as tips:B/14, to a directory")
    torch = commands.add_parser("export-torch", help="a model or a run to the official names")
    inspect = commands.add_parser("inspect", help="what a file or directory holds")
    for command in (clip, tcl, inspect):
        command.add_argument("source", metavar="IN")
        add_prefix_flag(command)
    tcl.add_argument("--clip", required=True, metavar="CLIP", help="the CLIP it was trained from")
    for command in (clip, tcl):
        command.add_argument("--activation", choices=ACTIVATIONS, help="of CLIP, if unknown")
        command.add_argument("target", metavar="OUT")
    named.add_argument("source", metavar="NAME[:SIZE]")
    add_weights_flag(named)
    named.add_argument("target", metavar="OUT")
    torch.add_argument("source", metavar="DIR")
    torch.add_argument("target", metavar="OUT.safetensors")
    return p


def convert(flags: argparse.Namespace) -> None:
    """`clip`, `tcl` and `model`."""
    from tcl_jax.checkpoints.model import check_absent
    from tcl_jax.inference.model import model_from_torch, save_model

    check_absent(flags.target)
    if flags.command == "model":
        model = load_named(flags.source, flags.weights)
    else:
        clip, tcl = (flags.source, None) if flags.command == "clip" else (flags.clip, flags.source)
        model = model_from_torch(clip, tcl, activation=flags.activation, prefix=flags.prefix)
    save_model(flags.target, model)
    print(f"wrote {flags.target}: {model.method.summary}")


def export_torch(flags: argparse.Namespace) -> None:
    """`export-torch`: TCL's learned tensors, Talk2DINO's projection, or CLIP-DINOiser's head, and
    CLIP's where there is nothing but CLIP.
    """
    from tcl_jax.checkpoints.model import check_absent
    from tcl_jax.inference.model import load_model
    from tcl_jax.models.clip_dinoiser import CLIPDINOiser
    from tcl_jax.models.dense import DenseCLIP
    from tcl_jax.models.talk2dino_method import Talk2DINO
    from tcl_jax.models.tcl import TCL
    from tcl_jax.weights.clip import clip_state_dict
    from tcl_jax.weights.clip_dinoiser import head_state_dict
    from tcl_jax.weights.readers import write_safetensors
    from tcl_jax.weights.talk2dino import projection_state_dict
    from tcl_jax.weights.tcl import tcl_state_dict

    target = user_path(flags.target)
    if target.suffix != ".safetensors":
        raise InputError(f"output {flags.target!r} must end in .safetensors")
    check_absent(target)
    model = load_model(flags.source)
    method, params, metadata = model.method, model.params, {"format": "pt"}
    if type(method) is TCL:  # one on a backbone has other names
        tensors = tcl_state_dict(params, method.config, method.feature_layer)
    elif isinstance(method, Talk2DINO):
        tensors = projection_state_dict(params["projection"])
    elif isinstance(method, CLIPDINOiser):
        tensors = head_state_dict(params["head"])
    elif isinstance(method, DenseCLIP):
        metadata["activation"] = method.config.activation
        tensors = clip_state_dict(params["clip"], method.config)
    else:
        raise InputError(
            f"{flags.source!r} is a model of {method.title}, whose official names are not written; "
            "choose one of TCL, Talk2DINO, CLIP-DINOiser or CLIP"
        )
    write_safetensors(target, tensors, metadata)
    print(f"wrote {target}: {len(tensors)} tensors with the official names")


def inspect(flags: argparse.Namespace) -> None:
    """`inspect`."""
    import jax

    from tcl_jax.checkpoints.model import is_model
    from tcl_jax.checkpoints.trained import find_store
    from tcl_jax.inference.model import load_model
    from tcl_jax.weights.description import count_arrays, describe_file

    path = user_path(flags.source)
    if not is_model(path) and find_store(path) is None:
        print(describe_file(flags.source, flags.prefix))
        return
    if flags.prefix:
        raise InputError("--prefix chooses among the models of a weight file; leave it out here")
    model = load_model(path)
    print(f"{path}: {model.method.summary}")
    print(count_arrays(jax.tree.leaves(model.params)), model.settings, sep="\n")


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    flags = parser().parse_args(argv)
    commands = {"export-torch": export_torch, "inspect": inspect}
    commands.get(flags.command, convert)(flags)


if __name__ == "__main__":
    run_command(run)
