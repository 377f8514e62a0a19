"""Embeddings of class names and of captions, many at a time, and what tells text towers apart."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32
from tqdm import tqdm

from tcl_jax.checkpoints.leaves import hash_leaves
from tcl_jax.data.tokenizer import Tokenizer
from tcl_jax.data.words import check_words
from tcl_jax.errors import InputError, as_input_error
from tcl_jax.files import short_hash
from tcl_jax.inference.masks import check_finite
from tcl_jax.inference.settings import InferenceSettings
from tcl_jax.inference.templates import format_prompts
from tcl_jax.models.clip import CLIP
from tcl_jax.models.method import Method
from tcl_jax.models.text_encoder import TextEncoder
from tcl_jax.parallel.mesh import batch_sharded, data_mesh, put_locally

_CLASSES, _TOKENS = 8, 16
# Texts on which tokenizers and their cleaning differ.
_PROBES = ("It's 1 Photo,  of&amp;amp;lt; a cafÃ© ½\n", "日本語 🙂 l’été", "x" * 400, "a " * 400)

Known = dict[tuple[Any, str], tuple[bytes, np.ndarray]]
"""Ids and embedding by templates and name, of names that were embedded before."""


def text_encoder_of(method: Method, settings: InferenceSettings) -> TextEncoder:
    """The method's text encoder, which embeds classes as the settings say."""
    encoder = method.text_encoder
    if isinstance(encoder, CLIP) and settings.normalize_sentences:
        return dataclasses.replace(encoder, normalizes_sentences=True)
    return encoder


def text_tower_id(encoder: TextEncoder, params: Any) -> str:
    """Sixteen hexadecimal digits: equal where embeddings are, up to rounding by the machine.

    They tell apart weights, settings, compute dtypes, context lengths and tokenizers.

    Args:
        encoder, params: the text tower and its parameters, on the host.
    """
    settings = [type(encoder).__name__, jnp.dtype(encoder.dtype).name, *encoder.settings]
    return short_hash([settings, encoder.tokenizer()(_PROBES).tolist(), hash_leaves(params)])


# One for all, so that the same tower is not compiled again for other texts.
@partial(jax.jit, static_argnums=0)
def _embed(encoder: TextEncoder, params: Any, tokens: jax.Array) -> jax.Array:
    embed = encoder.embed_texts if tokens.ndim == 2 else encoder.embed_classes
    return embed(params, tokens)


def embed_tokens(
    encoder: TextEncoder,
    params: Any,
    tokens: Int32[np.ndarray, "n l"] | Int32[np.ndarray, "n templates l"],
    *,
    mesh: Mesh | None = None,
    batch_size: int = _CLASSES,
    progress: bool = False,
) -> Float32[np.ndarray, "n d"]:
    """`embed_texts` of texts, or `embed_classes` of names in templates, any number of them.

    Short ones are computed together, with no more tokens than the longest of them has: a whole
    context of 77 would be several times the work. Compiled once per length in steps of 16 tokens,
    and per number of texts up to the batch in powers of two.

    Args:
        encoder, params: the text tower and its parameters.
        tokens: of each text, or of each name in each template; zeros after a text's end.
        mesh: devices of this process; None: the first of them.
        batch_size: texts or names that a device computes together.
        progress: whether to show a bar.
    """
    mesh = data_mesh(jax.local_devices()[:1]) if mesh is None else mesh
    params, rows_split = put_locally(params, mesh), batch_sharded(mesh)
    places = np.arange(1, tokens.shape[-1] + 1)
    lengths = np.max(places * (tokens != 0), axis=tuple(range(1, tokens.ndim)), initial=1)
    order = np.argsort(lengths, kind="stable")
    share = max(-(-len(tokens) // mesh.size), 1)
    size = mesh.size * min(1 << (share - 1).bit_length(), batch_size)
    embedded = np.zeros((len(tokens), encoder.embed_dim), np.float32)
    running: collections.deque[tuple[np.ndarray, jax.Array]] = collections.deque()

    def finish() -> None:
        rows, values = running.popleft()
        embedded[rows] = np.asarray(values)[: len(rows)]

    for start in tqdm(range(0, len(order), size), "texts", leave=False, disable=not progress):
        rows = order[start : start + size]
        longest = -(-int(lengths[rows[-1]]) // _TOKENS) * _TOKENS
        batch = np.zeros((size, *tokens.shape[1:]), np.int32)[..., :longest]
        batch[: len(rows)] = tokens[rows, ..., :longest]
        running.append((rows, _embed(encoder, params, jax.device_put(batch, rows_split))))
        if len(running) > 1:
            finish()
    while running:
        finish()
    return embedded


def embed_class_names(
    encoder: TextEncoder,
    params: Any,
    names: Iterable[Any],
    templates: str | Sequence[str],
    *,
    tokenizer: Tokenizer | None = None,
    background: bool = False,
    known: Known | None = None,
    progress: bool = False,
) -> Float32[np.ndarray, "classes d"]:
    """Embeddings of names in a set of templates, see `TextEncoder.embed_classes`.

    Args:
        encoder, params: the text tower and its parameters.
        names: see `data.words.check_words`.
        templates: see `inference.templates.format_prompts`.
        tokenizer: another one than `TextEncoder.tokenizer` gives.
        background: as in `check_words`.
        known: of the same tower, where names are not embedded again; new ones are added.
        progress: whether to show a bar.

    Raises:
        InputError: as `TextEncoder.tokenizer` and, of names with the same ids, `check_words`.
    """
    tokenizer = tokenizer or encoder.tokenizer()
    known = {} if known is None else known
    kind = templates if isinstance(templates, str) else (*templates,)
    new: dict[str, np.ndarray] = {}

    def ids(name: str) -> bytes:
        if (kind, name) in known:
            return known[kind, name][0]
        new[name] = tokenizer(format_prompts(templates, name))
        return new[name].tobytes()

    names = check_words(names, background=background, seen=ids)
    if lacking := [name for name in names if name in new]:
        tokens = np.stack([new[name] for name in lacking])
        embedded = embed_tokens(encoder, params, tokens, progress=progress)
        for name, embedding in zip(lacking, embedded, strict=True):
            known[kind, name] = new[name].tobytes(), embedding
    return np.stack([known[kind, name][1] for name in names])


def check_embeddings(texts: Any, width: int) -> Float32[np.ndarray, "n d"]:
    """Text embeddings that are given, on the host.

    Raises:
        InputError: if they are not finite numbers or not [n, `width`].
    """
    try:
        texts = np.asarray(texts, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"text_embeddings are no array of numbers ({error}); embed_texts makes one of words"
        ) from error
    if texts.ndim != 2 or texts.shape[1] != width or not len(texts):
        raise InputError(
            f"text_embeddings have shape {texts.shape}; this model needs [n, {width}] with at "
            "least one text, as embed_texts gives them"
        )
    check_finite("text_embeddings", texts)
    return texts


def padded_count(count: int) -> int:
    """Number of texts that a program is compiled for: 1, 2, 4, 8, then multiples of 8."""
    return -(-count // 8) * 8 if count > 4 else 1 << (count - 1).bit_length()


def list_things(texts: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """The synonyms of every text, the first of which is its name.

    Raises:
        InputError: if there is a string in place of a list, or an empty one.
    """
    with as_input_error("texts"):
        if isinstance(texts, str):
            check_words(texts)  # which refuses it
        things = [[text] if isinstance(text, str) else [*text] for text in texts]
        if not all(things):
            raise InputError("a list of synonyms is empty; give at least one")
    return things
