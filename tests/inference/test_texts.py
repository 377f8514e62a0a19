"""Texts embedded many at a time: as one by one, and what tells their towers apart."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.data.tokenizer import ClipTokenizer
from tcl_jax.inference.texts import embed_tokens, text_tower_id
from tcl_jax.models import text as text_module
from tcl_jax.models.clip import CLIP, CLIPConfig, encode_text
from tcl_jax.ops.masking import l2_normalize

SIZES = CLIPConfig(16, 16, 8, 64, 2, 64, 1, context_length=40)


@pytest.fixture(scope="module")
def clip() -> tuple[CLIP, Any]:
    model = CLIP(SIZES)
    return model, jax.device_get(jax.jit(model.init)(jax.random.key(0)))


def test_short_and_long_captions_in_any_order(clip: tuple[CLIP, Any]) -> None:
    model, params = clip
    texts = ["a dog " * n for n in (1, 30, 4, 9, 0, 17, 2, 6, 12)]
    tokens = ClipTokenizer(40)(texts)
    assert len({int(n) // 16 for n in tokens.argmax(axis=1)}) == 3
    whole = np.asarray(jax.jit(encode_text, static_argnums=0)(model, params, tokens))
    for many in ({}, {"batch_size": 2}):
        embedded = embed_tokens(model, params, tokens, **many)
        assert embedded.dtype == np.float32
        np.testing.assert_allclose(embedded, whole, atol=1e-6 * float(abs(whole).max()))
    assert np.abs(whole[0] - whole[1]).max() > 0.01
    assert embed_tokens(model, params, tokens[:0]).shape == (0, 16)
    names = embed_tokens(model, params, tokens.reshape(3, 3, -1), batch_size=1)
    expected = l2_normalize(jnp.asarray(whole.reshape(3, 3, 16)).mean(axis=1))
    np.testing.assert_allclose(names, expected, atol=1e-5)


def test_towers_are_told_apart(clip: tuple[CLIP, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, every = clip
    params = {"text": every["text"]}
    known = text_tower_id(model, params)
    assert len(known) == 16 and known == text_tower_id(CLIP(SIZES, remat="blocks"), params)
    changed = jax.tree.map(np.array, params)
    changed["text"]["ln_final"]["norm"]["bias"][3] += 1e-6
    others = [text_tower_id(model, changed)]
    for sizes in ({"context_length": 39}, {"activation": "gelu"}):
        other = CLIP(dataclasses.replace(SIZES, **sizes))
        others.append(text_tower_id(other, params))
    others.append(text_tower_id(CLIP(SIZES, dtype=jnp.bfloat16), params))

    class Unclean(ClipTokenizer):
        def __call__(self, texts: Any) -> Any:
            return super().__call__([text.replace("Ã", "A") for text in texts])

    monkeypatch.setattr(text_module, "ClipTokenizer", Unclean)
    others.append(text_tower_id(model, params))
    assert len({known, *others}) == 6
