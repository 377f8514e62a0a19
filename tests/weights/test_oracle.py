"""Both towers against Hugging Face's own CLIP in PyTorch, from the files that it saves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.models.clip import CLIP, encode_image, encode_text
from tcl_jax.weights.clip import clip_params, infer_clip_config
from tcl_jax.weights.model_config import read_activation
from tcl_jax.weights.names import to_openai_names
from tcl_jax.weights.readers import open_weights
from tests.reference import nchw_to_nhwc, relative_error

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 320
END_ID = VOCABULARY - 1  # the largest, as CLIP's is


def tiny_clip(activation: str, seed: int = 0, **text: Any) -> Any:
    """A `CLIPModel` whose weights are all random, biases and norms too."""
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(
        vision_config={
            "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
            "num_attention_heads": 2, "image_size": 224, "patch_size": 16,
            "hidden_act": activation,
        },
        text_config={
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
            "num_attention_heads": 1, "vocab_size": VOCABULARY, "max_position_embeddings": 24,
            "hidden_act": activation, "bos_token_id": END_ID - 1, "eos_token_id": END_ID, **text,
        },
        projection_dim=32,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, spread)
    return model


def our_clip(folder: Path) -> tuple[CLIP, Any]:
    """The CLIP that `save_pretrained` wrote."""
    path = folder / "model.safetensors"
    with open_weights(path) as file:
        tensors, style = to_openai_names(file)
        assert style == "huggingface"
        config = infer_clip_config(tensors, read_activation(path, style) or "none is told")
        return CLIP(config), jax.tree.map(jnp.asarray, clip_params(tensors, config))


def image_embedding(clip: Any, image: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = clip.vision_model(torch.from_numpy(image), interpolate_pos_encoding=True)
        return clip.visual_projection(output.pooler_output).numpy()


def text_embedding(clip: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = clip.text_model(torch.from_numpy(tokens).long())
        return clip.text_projection(output.pooler_output).numpy()


def random_texts(rng: np.random.Generator) -> np.ndarray:
    """Token ids of texts of several lengths, zeros after the end token."""
    tokens = np.zeros((5, 24), np.int32)
    for row, length in zip(tokens, (2, 3, 9, 20, 24), strict=True):
        row[:length] = rng.integers(1, END_ID - 1, length)
        row[0], row[length - 1] = END_ID - 1, END_ID
    return tokens


@pytest.mark.parametrize(("activation", "eos_id"), [("quick_gelu", END_ID), ("gelu", 2)])
def test_both_towers(tmp_path: Path, activation: str, eos_id: int) -> None:
    # With 2, which OpenAI's uploads have, transformers pools at the largest id.
    theirs = tiny_clip(activation, eos_token_id=eos_id)
    theirs.save_pretrained(tmp_path)
    model, params = our_clip(tmp_path)
    assert (model.config.activation, model.config.resolution) == (activation, 224)
    rng = np.random.default_rng(1)
    tokens = random_texts(rng)
    for height, width in ((224, 224), (160, 256)):
        image = rng.standard_normal((2, 3, height, width), np.float32)
        ours = jax.jit(encode_image, static_argnums=0)(model, params, nchw_to_nhwc(image)).embedding
        assert relative_error(ours, image_embedding(theirs, image)) < 1e-4
    expected = text_embedding(theirs, tokens)
    encode = jax.jit(encode_text, static_argnums=0)
    assert relative_error(encode(model, params, tokens), expected) < 1e-4
    np.testing.assert_array_equal(params["logit_scale"], theirs.logit_scale.detach().numpy())
    # The comparison sees which GELU it is.
    other = "gelu" if activation == "quick_gelu" else "quick_gelu"
    wrong = CLIP(dataclasses.replace(model.config, activation=other))
    assert relative_error(encode(wrong, params, tokens), expected) > 1e-3
