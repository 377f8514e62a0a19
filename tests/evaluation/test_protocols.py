"""Methods under the protocols of others, and what is said of that."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tcl_jax.errors import InputError
from tcl_jax.evaluation.benchmark import custom_benchmark, load_benchmark
from tcl_jax.evaluation.comparison import compare
from tcl_jax.evaluation.examples import DatasetIndex, list_examples
from tcl_jax.evaluation.protocol import make_protocol
from tcl_jax.evaluation.run import evaluate
from tcl_jax.inference.model import model_from_torch
from tcl_jax.inference.templates import format_prompts
from tcl_jax.inference.texts import embed_class_names, text_encoder_of
from tests.reference import GOLDEN, reference_torch_model, relative_error

MODEL = reference_torch_model()


def own_index(folder: Path) -> DatasetIndex:
    """Pictures of two sizes, of none of the classes, of a dog, and of a cat."""
    rng = np.random.default_rng(0)
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for i, size in enumerate([(40, 61), (70, 48)]):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(image).save(folder / f"images/{i}.png")
        label = np.broadcast_to(np.arange(size[1]) % 3, size).astype(np.uint8)
        Image.fromarray(label).save(folder / f"labels/{i}.png")
    classes = ["dog", ["cat", "tree"]]
    benchmark = custom_benchmark(folder / "images", folder / "labels", classes, background=True)
    return list_examples(benchmark, folder)


@pytest.mark.parametrize(
    ("method", "protocol", "scores", "texts"),
    [
        ("naclip", "tcl", "masks", 3),
        ("tcl", "naclip", "cosines", 28),
        ("sclip", "clearclip", "cosines", 4),
        ("maskclip", "clip_dinoiser", "probabilities", 4),
        ("clearclip", "talk2dino", "masks", 3),
    ],
)
def test_any_method_under_any_protocol(
    method: str, protocol: str, scores: str, texts: int, tmp_path: Path
) -> None:
    index = own_index(tmp_path)
    embedded = np.random.default_rng(0).standard_normal((texts, 32)).astype(np.float32)
    found = evaluate(
        MODEL,
        [index],
        tmp_path / "out",
        methods=[method],
        protocol=protocol,
        text_embeddings={"custom": embedded},
        progress=False,
    )
    ((title, one),) = found.items()
    assert one.results["custom"].counts.predicted.sum() == 40 * 61 + 70 * 48
    said = one.fingerprint
    assert (said["method"], said["protocol"], said["scores"]) == (method, protocol, scores)
    assert title.endswith("PAMR") == (protocol != "clearclip" and protocol != "clip_dinoiser")
    text = (tmp_path / "out/results.md").read_text().replace("\\", "")
    assert f"- protocol: {protocol}" in text and f"- scores: {scores}" in text
    with pytest.raises(InputError, match=rf"\({texts}, 32\), a row for each text of protocol"):
        bad = {"custom": embedded[:-1]}
        evaluate(MODEL, [index], tmp_path / "bad", methods=[method], protocol=protocol,
                 text_embeddings=bad, progress=False)  # fmt: skip


@pytest.mark.parametrize(
    ("method", "protocol", "pamr", "threshold"),
    [
        ("naclip", "tcl", False, 0.5),
        ("naclip", "tcl", True, 0.4),
        ("clearclip", "talk2dino", False, 0.55),
        ("tcl", "own", True, 0.3),
        ("tcl", "own", False, 0.5),
    ],
)
def test_the_threshold_without_pamr(
    method: str, protocol: str, pamr: bool, threshold: float
) -> None:
    """A protocol's holds with PAMR and without, and a run's own as it was found: here with it."""
    settings = dataclasses.replace(MODEL.settings, refine="pamr", threshold=0.3)
    model = dataclasses.replace(MODEL, settings=settings)
    model = model if method == "tcl" else model.with_method(method)
    assert make_protocol(model, protocol, pamr=pamr).threshold == threshold


def test_a_comparison_names_what_differs(tmp_path: Path) -> None:
    index = list_examples(load_benchmark("voc"), GOLDEN / "eval/data")
    for name in ("sclip", "sc_clip"):
        count = len(make_protocol(MODEL, name).texts_of(index.benchmark))
        texts = {"voc": np.random.default_rng(0).standard_normal((count, 32)).astype(np.float32)}
        evaluate(MODEL, [index], tmp_path / name, methods=["sclip"], protocol=name,
                 text_embeddings=texts, progress=False)  # fmt: skip
    text = compare(tmp_path / "sclip", tmp_path / "sc_clip")
    assert "\n  protocol: sclip in A, sc_clip in B\n  threshold: 0.1 in A, 0.15 in B\n" in text
    assert "\n  voc: logit_scale: 65.0 in A, 50.0 in B" in text
    count = len(make_protocol(MODEL, "clearclip").texts_of(index.benchmark))
    texts = {"voc": np.random.default_rng(0).standard_normal((count, 32)).astype(np.float32)}
    evaluate(MODEL, [index], tmp_path / "clearclip", methods=["sclip"], protocol="clearclip",
             text_embeddings=texts, progress=False)  # fmt: skip
    text = compare(tmp_path / "sclip", tmp_path / "clearclip")
    assert "\n  background: sky, wall, tree" in text and "fence in A, background in B" in text
    assert "\n  voc: names: person: person, person in shirt" in text
    assert "jacket in A, nothing in B" in text


def test_sentences_are_normalised_where_the_protocol_does() -> None:
    model = model_from_torch("builtin:shapes_clip")
    method = model.method
    params = method.text_params(jax.tree.map(np.float32, model.params))
    found = {}
    for name in ("tcl", "sclip"):
        encoder = text_encoder_of(method, make_protocol(model, name))
        found[name] = embed_class_names(encoder, params, ["plain red "], "subset")[0]
    tokens = jnp.asarray(method.text_encoder.tokenizer()(format_prompts("subset", "plain red")))
    each = np.asarray(method.text_encoder.embed_texts(params, tokens), np.float64)
    unit = each / np.linalg.norm(each, axis=1, keepdims=True)
    for name, sentences in (("tcl", each), ("sclip", unit)):
        mean = sentences.mean(axis=0)
        assert relative_error(found[name], mean / np.linalg.norm(mean)) < 1e-5
    assert relative_error(found["tcl"], found["sclip"]) > 1e-4
