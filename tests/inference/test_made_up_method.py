"""A method that knows no CLIP, with a tokenizer and texts of its own, is one row of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import custom_benchmark
from tcl_jax.evaluation.examples import list_examples
from tcl_jax.evaluation.run import evaluate
from tcl_jax.inference.export import export_masks
from tcl_jax.inference.masks import MaskOptions
from tcl_jax.inference.model import Model, load_model, save_model
from tcl_jax.inference.segmenter import Segmenter
from tcl_jax.inference.settings import InferenceSettings
from tcl_jax.models.flops import Parts
from tcl_jax.models.method import Method
from tcl_jax.models.methods import METHODS
from tcl_jax.models.text_encoder import TextEncoder

PATCH = 4


class Letters:
    """The letters a to z of a text, 6 at most."""

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), 6), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = [ord(letter) - 96 for letter in text.lower() if "a" <= letter <= "z"][:6]
            row[: len(ids)] = ids
        return rows


@dataclasses.dataclass(frozen=True)
class LetterColors(TextEncoder):
    """The sum of the colours of a text's letters."""

    embed_dim = 3

    def tokenizer(self, file: str | None = None) -> Letters:
        if file is not None:
            raise InputError(f"tokenizer_file={file!r}: there is one tokenizer alone")
        return Letters()

    def embed_texts(self, params: Any, tokens: Any) -> Any:
        return params[tokens].sum(axis=1)


@dataclasses.dataclass(frozen=True)
class Colors(Method):
    """How near the mean colour of a patch is to that of a text."""

    sharpness: float = 8.0
    dtype: Any = jnp.float32

    name = "colors"
    title = "Colors"
    parameters = ("letters",)
    pixel_statistics = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    patch_size = PATCH
    resolution = 16
    text_encoder = LetterColors()
    described = ("sharpness",)

    def text_params(self, params: Any) -> Any:
        return params["letters"]

    def init(self, key: Any) -> dict[str, Any]:
        return {"letters": jax.random.normal(key, (27, 3))}

    def dense_features(self, params: Any, image: Any) -> Any:
        b, height, width, _ = image.shape
        patches = image.reshape(b, height // PATCH, PATCH, width // PATCH, PATCH, 3).mean((2, 4))
        return patches * 0.25 + 0.5

    def masks(self, params: Any, image: Any, text_embeddings: Any, options: MaskOptions) -> Any:
        color = self.dense_features(params, image)
        unlike = jnp.abs(color[..., None, :] - text_embeddings).sum(-1)
        return jnp.exp(-self.sharpness * unlike)

    def flops(self, side: int, texts: int, options: MaskOptions) -> Parts:
        return {}


def picture(colors: str) -> np.ndarray:
    """Columns of 8 pixels: r, g or b."""
    channels = np.repeat(["rgb".index(color) for color in colors], 8)
    return np.tile(np.uint8(255 * np.eye(3)[channels]), (16, 1, 1))


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setitem(METHODS, "colors", Colors)
    letters = np.zeros((27, 3), np.float32)
    letters[Letters()(["rgb"])[0, :3]] = np.eye(3)
    settings = InferenceSettings(16, 8, refine="none", templates="identity")
    return Model(Colors(), {"letters": letters}, settings)


def test_it_segments_is_kept_and_exported(model: Model, tmp_path: Path) -> None:
    image = picture("rbg")
    segmenter = Segmenter(model)
    result = segmenter.segment(image, ["r", "G", ["b", "bb"]])
    np.testing.assert_array_equal(result.labels[0], np.repeat([1, 3, 2], 8))
    with pytest.raises(InputError, match="'rrrrrrr' and 'rrrrrrg' are the same"):
        segmenter.embed_texts(["rrrrrrr", "rrrrrrg"])
    with pytest.raises(InputError, match="tokenizer_file"):
        Segmenter(model, tokenizer_file="other.json").embed_texts(["r"])
    with pytest.raises(InputError, match=r"needs TCL's weights.*choose one of colors$"):
        model.with_method("tcl")

    save_model(tmp_path / "model", model)
    loaded = load_model(tmp_path / "model")
    assert loaded.method == model.method and loaded.settings == model.settings
    assert Segmenter(loaded).fingerprint == segmenter.fingerprint

    texts = segmenter.embed_texts(["r", "b"])
    program = export_masks(
        model.method, model.params, image_size=(16, 24), options=MaskOptions(kp_weight=0.0)
    )
    masks = export.deserialize(program.serialized).call(image[None], texts)
    np.testing.assert_allclose(
        masks[0], segmenter.masks(image, texts, mode="whole"), rtol=1e-5, atol=1e-6
    )


def test_it_is_evaluated(model: Model, tmp_path: Path) -> None:
    for number, colors in enumerate(("rgb", "bb", "gr")):
        for folder, content in (
            ("images", picture(colors)),
            ("labels", np.uint8(picture(colors).argmax(axis=-1))),
        ):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(content).save(tmp_path / folder / f"{number}.png")
    benchmark = custom_benchmark(tmp_path / "images", tmp_path / "labels", ["r", "g", "b"])
    found = evaluate(model, [list_examples(benchmark, tmp_path)], tmp_path / "out", progress=False)
    assert found["Colors"].results["custom"].scores.miou == 1.0
    assert (tmp_path / "out/report.html").exists()
