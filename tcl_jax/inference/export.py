"""Mask making as one StableHLO file, which JAX runs without this package."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import export
from jaxtyping import Float

from tcl_jax.errors import InputError, as_input_error
from tcl_jax.files import user_path, whole_file, write_json
from tcl_jax.inference.masks import MaskOptions, Synonyms, make_masks
from tcl_jax.inference.settings import THRESHOLDS
from tcl_jax.inference.texts import check_embeddings
from tcl_jax.models.method import Method, choose_refinement
from tcl_jax.ops.images import normalize

FORMAT = "tcl_jax masks, jax.export"
PLATFORMS = ("cpu", "cuda", "tpu")
"""What an artifact is lowered for; a CPU suffices to lower for all of them."""
LOWERABLE = (*PLATFORMS, "rocm")


@dataclasses.dataclass(frozen=True)
class ExportedMasks:
    """A program from images, and texts unless they are baked in, to masks.

    Attributes:
        serialized: what `jax.export.deserialize` takes; the weights are constants in it.
        description: what stands in the JSON file beside it: `inputs` and `outputs` in the order of
            the call (a symbolic size is a letter), `texts` if baked in, the `threshold` below
            which a pixel is background, the versions, and `sha256` and `bytes` of `serialized`.
    """

    serialized: bytearray
    description: dict[str, Any]


def export_masks(
    model: Method,
    params: Any,
    *,
    image_size: int | tuple[int, int],
    options: MaskOptions,
    batch: int | None = None,
    text_embeddings: np.ndarray | jax.Array | None = None,
    text_names: Sequence[str] | None = None,
    synonyms: Synonyms | None = None,
    num_texts: int | None = None,
    threshold: int | float | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> ExportedMasks:
    """Lowers `make_masks` to StableHLO with its weights inside.

    The program takes images, uint8 [b, H, W, 3] RGB, and text embeddings, float32 [n, d],
    normalised or not, unless these are baked in. It returns masks, float32 [b, H, W, n] in [0, 1];
    where `options.scores` are not masks, the probabilities of the texts among each other.
    The file is about as large as the float32 weights that the masks need; the text tower is not
    among them. A float32 model computes its products in full precision on every platform.

    A process that runs it needs the packages jax and flatbuffers alone:

        from jax import export
        program = export.deserialize(bytearray(open(path, "rb").read()))
        masks = jax.jit(program.call)(images, text_embeddings)

    Args:
        model: what makes the masks.
        params: its parameters, of any floating dtype.
        image_size: side, or rows and columns, of the images in pixels; any size.
        options: post-processing.
        batch: number of images in a call; None leaves it open.
        text_embeddings: [n, d] of a fixed vocabulary, which the program then holds.
        text_names: names of the fixed vocabulary, for the description.
        synonyms: rows of `text_embeddings` of each name, whose mask is the largest of theirs; None:
            one each.
        num_texts: number of texts in a call where none are baked in; None leaves it open.
        threshold: score of the background in [0, 1], for the description; None: the protocol's,
            0.4 with PAMR and else 0.5.
        platforms: of "cpu", "cuda", "rocm" and "tpu".

    Raises:
        InputError: if an argument is impossible, or the parameters are not the model's.
    """
    platforms = check_platforms(platforms)
    choose_refinement(model, options.refine)
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    threshold = THRESHOLDS[options.refine] if threshold is None else threshold
    plain = options.scores == "masks"
    refused = f"'none': {model.title}'s probabilities are refined by `segment`, and by no program"
    for name, value, want, good in (
        ("image_size", image_size, "at least 1 pixel", min(size) >= 1),
        ("batch", batch, "at least 1, or None to leave it open", batch is None or batch >= 1),
        ("num_texts", num_texts, "at least 1, or None", num_texts is None or num_texts >= 1),
        ("kp_weight", options.kp_weight, "between 0 and 1", 0 <= options.kp_weight <= 1),
        ("threshold", threshold, "between 0 and 1", 0 <= threshold <= 1),
        ("refine", options.refine, refused, plain or options.refine == "none"),
    ):
        if not good:
            raise InputError(f"{name}={value} must be {want}")
    dim = model.embed_dim
    baked = None
    if text_embeddings is not None:
        if num_texts is not None:
            raise InputError(
                f"num_texts={num_texts} and text_embeddings exclude each other: embeddings that "
                "are given are part of the export, and so is their number; leave num_texts out"
            )
        baked = check_embeddings(text_embeddings, dim)
    names = _check_names(text_names, baked, synonyms)
    _check_params(model, params)

    b, n = export.symbolic_shape("b, n")
    images = jax.ShapeDtypeStruct((b if batch is None else batch, *size, 3), jnp.uint8)
    texts = jax.ShapeDtypeStruct((n if num_texts is None else num_texts, dim), jnp.float32)
    # By way of the host, so that arrays spread over devices do not make a program for as many.
    weights = jax.device_put(jax.tree.map(lambda x: np.asarray(x, np.float32), params))

    def masks(images: jax.Array, text_embeddings: Any = baked) -> jax.Array:
        pixels = normalize(images, model.pixel_statistics)
        return make_masks(model, weights, pixels, jnp.asarray(text_embeddings), options, synonyms)

    inputs = (images, texts) if baked is None else (images,)
    exported = export.export(jax.jit(masks), platforms=platforms)(*inputs)
    serialized = exported.serialize()
    others = "" if plain else ", probabilities of the texts among each other"
    description = {
        "format": FORMAT,
        "inputs": [
            {"name": name, **_describe(aval), "values": values}
            for (name, values), aval in zip(
                (("images", "RGB, 0 to 255"), ("text_embeddings", "normalised or not")),
                exported.in_avals,
                strict=False,
            )
        ],
        "outputs": [
            {"name": "masks", **_describe(exported.out_avals[0]), "values": f"0 to 1{others}"}
        ],
        "texts": names,
        "threshold": float(threshold),
        "options": dataclasses.asdict(options),
        "method": model.name,
        **model.describe(),
        "compute_dtype": jnp.dtype(model.dtype).name,
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax_version": jax.__version__,
        "bytes": len(serialized),
        "sha256": hashlib.sha256(serialized).hexdigest(),
    }
    return ExportedMasks(serialized, description)


def write_export(path: str | os.PathLike[str], exported: ExportedMasks) -> Path:
    """Writes the program, and its description beside it as PATH.json.

    Both are written out before either takes its place, and replace what was there.

    Returns:
        Where the description is.

    Raises:
        InputError: if a file cannot be written.
    """
    path = user_path(path)
    beside = path.with_name(f"{path.name}.json")
    for taken in (path, beside):
        if taken.is_dir():
            raise InputError(f"the export cannot be written to {os.fspath(taken)!r}, a folder")
    with (
        as_input_error(f"the export cannot be written to {os.fspath(path)!r}"),
        whole_file(beside) as description,
        whole_file(path) as program,
    ):
        program.write_bytes(exported.serialized)
        write_json(description, exported.description)
    return beside


def _describe(aval: jax.core.ShapedArray) -> dict[str, Any]:
    return {
        "shape": [size if isinstance(size, int) else str(size) for size in aval.shape],
        "dtype": jnp.dtype(aval.dtype).name,
    }


def check_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    """Names of platforms that a program can be made for.

    Raises:
        InputError: there is none, one twice, or one that is none of `LOWERABLE`.
    """
    given = (platforms,) if isinstance(platforms, str) else tuple(platforms)
    unknown = [platform for platform in given if platform not in LOWERABLE]
    if unknown or not given or len(set(given)) < len(given):
        raise InputError(
            f"platforms={given} must name one or more of {', '.join(LOWERABLE)}, each once "
            "(NVIDIA's GPUs are cuda, AMD's rocm)"
        )
    return given


def _check_params(model: Method, params: Any) -> None:
    expected = jax.eval_shape(model.init, jax.random.key(0))
    want, have = (
        {"/".join(path): np.shape(x) for path, x in traverse_util.flatten_dict(tree).items()}
        for tree in (expected, params)
    )
    if lacking := [name for name in model.parameters if name not in params]:
        raise InputError(f"the parameters lack `{lacking[0]}`, which {model.title} needs")
    needed = {name: x for name, x in want.items() if name.split("/")[0] in model.parameters}
    if wrong := [name for name, shape in needed.items() if have.get(name) != shape]:
        raise InputError(
            f"the parameters are not those of this model: {wrong[0]} must be {want[wrong[0]]} and "
            f"is {have.get(wrong[0], 'not there')}"
        )


def _check_names(
    names: Sequence[str] | None,
    texts: Float[np.ndarray, "n d"] | None,
    synonyms: Synonyms | None,
) -> list[str] | None:
    if names is None:
        return None
    if texts is None:
        raise InputError(
            "text_names are given without text_embeddings; only texts that are part of the export "
            "have names, so give both or neither"
        )
    rows = [*range(len(texts))] if synonyms is None else [i for one in synonyms for i in one]
    if isinstance(names, str) or len(names) != len(synonyms or rows) or len(rows) != len(texts):
        raise InputError(
            f"text_names {names!r} do not fit the {len(texts)} text_embeddings; give a list with "
            "one name per row, or synonyms with the rows of each name"
        )
    return list(names)
