"""Weights in and out, without PyTorch.

    python -m tcl_jax.convert clip IN OUT                      CLIP -> a model directory
    python -m tcl_jax.convert tcl IN --clip=CLIP OUT           official tcl.pth -> a model directory
    python -m tcl_jax.convert export-torch DIR OUT.safetensors -> official names, for PyTorch
    python -m tcl_jax.convert inspect IN                       what a file or directory holds

IN and CLIP are files (.pt, .pth, .safetensors, .npz; names of OpenAI's CLIP, OpenCLIP or Hugging
Face, under any prefix), folders of these libraries, or a name such as ViT-B/16, or official for
TCL's tcl.pth, which is downloaded once. Half and single precision are kept.
Exit codes: 0 done, 1 failure, 2 bad input; nothing is ever half-written.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcl_jax.commands import ACTIVATIONS, add_prefix_flag, command_parser
from tcl_jax.errors import InputError, run_command
from tcl_jax.files import user_path

if TYPE_CHECKING:
    from tcl_jax.convert.load import Weights
    from tcl_jax.models.clip import CLIPConfig


def parser() -> argparse.ArgumentParser:
    """The sub-commands and their flags."""
    p = command_parser("convert", __doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    clip = commands.add_parser("clip", help="CLIP to a model directory (the MaskCLIP baseline)")
    tcl = commands.add_parser("tcl", help="TCL's official checkpoint to a model directory")
    torch = commands.add_parser("export-torch", help="a model or a run to the official names")
    inspect = commands.add_parser("inspect", help="what a file or directory holds")
    for command in (clip, tcl, inspect):
        command.add_argument("source", metavar="IN")
        add_prefix_flag(command)
    tcl.add_argument("--clip", required=True, metavar="CLIP", help="the CLIP it was trained from")
    for command in (clip, tcl):
        command.add_argument("--activation", choices=ACTIVATIONS, help="of CLIP, if unknown")
        command.add_argument("target", metavar="OUT")
    torch.add_argument("source", metavar="DIR")
    torch.add_argument("target", metavar="OUT.safetensors")
    return p


def convert(flags: argparse.Namespace) -> None:
    """`clip` and `tcl`."""
    from tcl_jax.checkpoints.model import check_absent
    from tcl_jax.inference.model import model_from_torch, save_model

    check_absent(flags.target)
    clip, tcl = (flags.source, None) if flags.command == "clip" else (flags.clip, flags.source)
    model = model_from_torch(clip, tcl, activation=flags.activation, prefix=flags.prefix)
    save_model(flags.target, model)
    print(f"wrote {flags.target}: {model.network.summary} on {name_of(model.config)}")


def export_torch(flags: argparse.Namespace) -> None:
    """`export-torch`: TCL's learned tensors, or CLIP's where there is nothing but CLIP."""
    from tcl_jax.checkpoints.model import check_absent
    from tcl_jax.convert.clip import clip_state_dict
    from tcl_jax.convert.readers import write_safetensors
    from tcl_jax.convert.tcl import tcl_state_dict
    from tcl_jax.inference.model import load_model

    target = user_path(flags.target)
    if target.suffix != ".safetensors":
        raise InputError(f"output {flags.target!r} must end in .safetensors")
    check_absent(target)
    model = load_model(flags.source)
    metadata = {"format": "pt"}
    if model.learned:
        tensors = tcl_state_dict(model.learned, model.config, model.network.describe()["tap_layer"])
    else:
        metadata["activation"] = model.config.activation
        tensors = clip_state_dict(model.params["clip"], model.config)
    write_safetensors(target, tensors, metadata)
    print(f"wrote {target}: {len(tensors)} tensors with the official names")


def inspect(flags: argparse.Namespace) -> None:
    """`inspect`."""
    from tcl_jax.checkpoints.model import is_model
    from tcl_jax.checkpoints.trained import find_store

    path = user_path(flags.source)
    ours = is_model(path) or find_store(path) is not None
    print(describe_directory(path) if ours else describe_file(flags.source, flags.prefix))


def describe_directory(path: Path) -> str:
    """A model directory or a run, as text."""
    import jax

    from tcl_jax.inference.model import load_model

    model = load_model(path)
    leaves = jax.tree.leaves(model.params)
    lines = [
        f"{path}: {model.network.summary} on {name_of(model.config)}",
        _count(leaves),
        str(model.settings),
    ]
    return "\n".join(lines)


def describe_file(source: str, prefix: str = "") -> str:
    """A weight file or folder, as text: format, models in it, dtypes, and every tensor."""
    from tcl_jax.convert.folders import open_model
    from tcl_jax.convert.hub import OPENAI_SHA256, locate_clip
    from tcl_jax.convert.load import digest_of
    from tcl_jax.convert.release import NAME, locate_tcl

    path = locate_tcl(source) if source == NAME else locate_clip(source)
    known = {value: name for name, value in OPENAI_SHA256.items()}
    with open_model(path) as file:
        sha256 = digest_of(file)
        lines = [f"{path}: {file.format}, {_models_in(file, prefix)}"]
        own = f", OpenAI's own {known[sha256]}" if sha256 in known else ""
        lines += [f"sha256 {sha256}{own}", _count(file.specs.values())]
        lines += [f"  {name} = {value!r:.60}" for name, value in file.scalars.items()]
        lines += [f"  {name}  {list(s.shape)}  {s.dtype}" for name, s in file.specs.items()]
    return "\n".join(lines)


def _models_in(file: Weights, prefix: str) -> str:
    """The TCL or the CLIP in a file, with what is assumed of it, or why there is none."""
    from tcl_jax.convert.load import check_prefix, find_clip
    from tcl_jax.convert.mapping import WeightError
    from tcl_jax.convert.tcl import BLOCKS, find_tcl

    try:
        if any(BLOCKS in name for name in file.specs):
            tensors, what, assumed = find_tcl(file, prefix), "TCL's learned tensors", ""
        else:
            clip = find_clip(file, prefix)
            tensors, what = clip.tensors, f"{name_of(clip.config)}, {clip.style} names"
            assumed = f"\n{clip.assumed}" if clip.assumed else ""
        check_prefix(prefix, [tensors.prefix])
    except WeightError as error:
        return f"no single CLIP or TCL that is known here ({error})"
    if tensors.prefix:
        what += f", under the prefix {tensors.prefix.rstrip('.')!r}"
    if beside := tensors.passed_over:
        what += f"; {beside} tensors beside it are passed over"
    return what + assumed


def name_of(config: CLIPConfig) -> str:
    """The published name of a CLIP's sizes, or the sizes."""
    from tcl_jax.models.clip import VARIANTS

    for name, sizes in VARIANTS.items():
        if dataclasses.replace(config, activation=sizes.activation) == sizes:
            return f"CLIP {name} ({config.activation})"
    return f"a CLIP of other sizes, {config}"


def _count(tensors: Iterable[Any]) -> str:
    """Numbers of arrays, or of anything with a shape and a dtype, as text."""
    dtypes: Counter[str] = Counter()
    count = 0
    for tensor in tensors:
        dtypes[str(tensor.dtype)] += math.prod(tensor.shape)
        count += 1
    shares = ", ".join(f"{dtype} {size:,}" for dtype, size in dtypes.most_common())
    return f"{count} tensors, {dtypes.total():,} parameters ({shares})"


def run(argv: Sequence[str] | None = None) -> None:
    """From flags to files."""
    flags = parser().parse_args(argv)
    commands = {
        "clip": convert,
        "tcl": convert,
        "export-torch": export_torch,
        "inspect": inspect,
    }
    commands[flags.command](flags)


def main() -> None:
    """Entry point."""
    run_command(run)


if __name__ == "__main__":
    main()
