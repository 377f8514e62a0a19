"""What a file of weights holds, as text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tcl_jax.models.families import FAMILIES, PRETRAINED
from tcl_jax.weights import clip_dinoiser, talk2dino, tcl
from tcl_jax.weights.backbones import find_backbone, holds_backbone
from tcl_jax.weights.folders import open_model
from tcl_jax.weights.hub import OFFICIAL, OPENAI_SHA256, locate_backbone, locate_clip, locate_tcl
from tcl_jax.weights.load import check_prefix, digest_of, find_clip
from tcl_jax.weights.mapping import WeightError
from tcl_jax.weights.names import dotted_names, holds_part
from tcl_jax.weights.tensor_file import TensorFile
from tcl_jax.weights.text_towers import name_text_towers

_PLAIN = (
    "\nIts names are DINO's, which other plain vision transformers have, too, such as MAE's "
    "encoder: of what training it is they do not tell"
)


def describe_file(source: str, prefix: str = "") -> str:
    """A weight file or folder, as text: format, models in it, dtypes, and every tensor."""
    if source == OFFICIAL:
        path = locate_tcl(source)
    else:
        # "FAMILY:SIZE" cannot be a CLIP's name, so that one that is misspelt is explained as such.
        backbone = source in PRETRAINED or source.partition(":")[0] in FAMILIES
        path = locate_backbone(source) if backbone else locate_clip(source)
    known = {value: name for name, value in OPENAI_SHA256.items()}
    with open_model(path) as file:
        sha256 = digest_of(file)
        lines = [f"{path}: {file.format}, {_models_in(file, prefix)}"]
        own = f", OpenAI's own {known[sha256]}" if sha256 in known else ""
        lines += [f"sha256 {sha256}{own}", count_arrays(file.specs.values())]
        lines += [f"  {name} = {value!r:.60}" for name, value in file.scalars.items()]
        lines += [f"  {name}  {list(s.shape)}  {s.dtype}" for name, s in file.specs.items()]
    return "\n".join(lines)


def _models_in(file: TensorFile, prefix: str) -> str:
    """The model in a file, with what is assumed of it, or why there is none."""
    texts, assumed = name_text_towers(dotted_names(file.names)), ""
    try:
        if holds_part(file.names, tcl.SIGN):
            tensors, what = tcl.find_tcl(file, prefix), "TCL's learned tensors"
        elif holds_part(file.names, talk2dino.SIGN):
            tensors = talk2dino.find_projection(file, prefix)
            shape = tensors.specs[f"{talk2dino.FIRST}.weight"].shape
            what = f"Talk2DINO's projection of {' to '.join(map(str, shape[::-1]))} channels"
        elif holds_part(file.names, clip_dinoiser.SIGN):
            tensors = clip_dinoiser.find_head(file, prefix)
            channels, width = clip_dinoiser.head_sizes(tensors)
            what = f"CLIP-DINOiser's head of {channels} channels, for a CLIP of width {width}"
        elif holds_backbone(file):
            backbone = find_backbone(file, prefix=prefix)
            tensors, what = backbone.tensors, backbone.title
            plain = backbone.family.name == "dino" and not backbone.other
            assumed = _PLAIN if plain else ""
            what += f", and {texts}" if texts else ""
        elif texts:
            return f"{texts}, for a vision tower that is in another file"
        else:
            clip = find_clip(file, prefix)
            tensors, what = clip.tensors, f"{clip.config.title}, {clip.style} names"
            assumed = f"\n{clip.assumed}" if clip.assumed else ""
        check_prefix(prefix, [tensors.prefix])
    except WeightError as error:
        return f"no single CLIP, TCL or backbone that is known here ({error})"
    if tensors.prefix:
        what += f", under the prefix {tensors.prefix.rstrip('.')!r}"
    if beside := tensors.unused:
        what += f"; {beside} tensors beside it are passed over"
    return what + assumed


def count_arrays(tensors: Iterable[Any]) -> str:
    """Numbers of arrays, or of anything with a shape and a dtype, as text."""
    dtypes: Counter[str] = Counter()
    count = 0
    for tensor in tensors:
        dtypes[str(tensor.dtype)] += math.prod(tensor.shape)
        count += 1
    shares = ", ".join(f"{dtype} {size:,}" for dtype, size in dtypes.most_common())
    return f"{count} tensors, {dtypes.total():,} parameters ({shares})"
