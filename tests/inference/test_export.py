"""Artifacts against `make_masks` and the reference, and run by a process without this package."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tcl_jax.errors import InputError
from tcl_jax.inference.export import ExportedMasks, export_masks, write_export
from tcl_jax.inference.masks import MaskOptions, make_masks
from tcl_jax.inference.merging import SoftMasks
from tcl_jax.inference.windows import SlidingWindow, resize_pixels, working_size
from tcl_jax.ops.images import normalize
from tests.reference import GOLDEN, load, reference_model

MODEL, LEARNED, CLIP_PARAMS = reference_model()
PARAMS = {**LEARNED, "clip": CLIP_PARAMS}
TEXTS = load("masks")["text_emb"]
PLAIN, PAMR = MaskOptions(kp_weight=0.0), MaskOptions("pamr", 0.3)
AFFINITY = MaskOptions("affinity", 0.0)


def pictures(count: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, rows, columns, 3), np.uint8)


def load_program(exported: ExportedMasks) -> export.Exported:
    return export.deserialize(exported.serialized)


def expected_masks(images: np.ndarray, texts: np.ndarray, options: MaskOptions) -> np.ndarray:
    compiled = jax.jit(make_masks, static_argnums=(0, 4))
    return np.asarray(compiled(MODEL, PARAMS, normalize(jnp.asarray(images)), texts, options))


@pytest.fixture(scope="module")
def symbolic() -> ExportedMasks:
    """Any number of images of 64x64 and of texts, with PAMR and KP mixing."""
    return export_masks(MODEL, PARAMS, image_size=64, options=PAMR)


@pytest.mark.parametrize("options", [PLAIN, PAMR, AFFINITY], ids=lambda x: x.refine)
def test_artifact_is_make_masks_at_a_size_that_needs_padding(options: MaskOptions) -> None:
    exported = export_masks(
        MODEL, PARAMS, image_size=(70, 90), batch=1, num_texts=5, options=options
    )
    images = pictures(1, 70, 90)
    masks = np.asarray(load_program(exported).call(images, TEXTS))
    assert masks.shape == (1, 70, 90, 5) and masks.dtype == np.float32
    np.testing.assert_allclose(masks, expected_masks(images, TEXTS, options), atol=1e-5)


@pytest.mark.parametrize("kp_weight", [0.3, 0.0])
def test_only_the_weights_that_masks_need_are_inside(kp_weight: float) -> None:
    # Equal arrays are stored once, and the reference's grounder still equals its CLIP in part.
    learned = jax.tree.map(lambda x: 1.5 * x, LEARNED)
    visual = CLIP_PARAMS["visual"]
    exported = export_masks(
        MODEL,
        {**learned, "clip": CLIP_PARAMS},
        image_size=64,
        batch=1,
        num_texts=5,
        options=MaskOptions(kp_weight=kp_weight),
    )
    needed = _bytes(learned) + _bytes(visual)
    if not kp_weight:  # CLIP's own last block then has no part in the masks
        needed -= sum(_bytes(visual[name]) for name in ("blocks_3", "ln_post", "proj"))
    # The program itself has some 100,000 bytes, and one of CLIP's blocks 790,000.
    assert needed < len(exported.serialized) < needed + 200_000


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_a_fixed_vocabulary_is_inside() -> None:
    names = ["cat", "dog", "grass", "sky", "road"]
    exported = export_masks(
        MODEL,
        PARAMS,
        image_size=64,
        text_embeddings=TEXTS,
        text_names=names,
        options=PLAIN,
        platforms=["cpu"],
    )
    assert exported.description["texts"] == names
    assert [given["name"] for given in exported.description["inputs"]] == ["images"]
    for count in (1, 3):
        images = pictures(count, 64, 64)
        masks = load_program(exported).call(images)
        np.testing.assert_allclose(masks, expected_masks(images, TEXTS, PLAIN), atol=1e-5)


def test_its_label_map_is_the_reference_s(symbolic: ExportedMasks) -> None:
    """The protocol from a photo's bytes, by windows, with PAMR and KP mixing."""
    golden = load("eval/text_emb_and_pred")
    path = GOLDEN / "eval/data/VOCdevkit/VOC2012/JPEGImages/voc_000000.jpg"
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    size = working_size(*pixels.shape[:2], 64)
    resized = resize_pixels(pixels, size)
    sliding = SlidingWindow.over(size, 64, 32, 16)
    batch = np.stack([resized[window] for window in sliding.windows])
    assert batch.shape[1:3] == (64, 64)
    masks = SoftMasks(sliding, np.asarray(load_program(symbolic).call(batch, golden["voc"])))
    labels = masks.labels(pixels.shape[:2], 0.4)
    assert np.count_nonzero(labels != golden["voc/pred0"]) <= 5


def test_description_says_how_to_call_it(symbolic: ExportedMasks, tmp_path: Path) -> None:
    beside = write_export(tmp_path / "new/masks.stablehlo", symbolic)
    assert beside == tmp_path / "new/masks.stablehlo.json"
    assert sorted(path.name for path in beside.parent.iterdir()) == [
        "masks.stablehlo",
        "masks.stablehlo.json",
    ]
    description = json.loads(beside.read_text(encoding="utf-8"))
    written = (tmp_path / "new/masks.stablehlo").read_bytes()
    assert description["sha256"] == hashlib.sha256(written).hexdigest()
    assert description["bytes"] == len(written)
    images, texts = description["inputs"]
    assert (images["shape"], images["dtype"]) == (["b", 64, 64, 3], "uint8")
    assert (texts["shape"], texts["dtype"]) == (["n", 32], "float32")
    (masks,) = description["outputs"]
    assert (masks["shape"], masks["dtype"]) == (["b", 64, 64, "n"], "float32")
    assert description["threshold"] == 0.4 and description["texts"] is None
    assert description["options"] == dataclasses.asdict(PAMR)
    assert description["jax_version"] == jax.__version__
    program = load_program(symbolic)
    assert description["platforms"] == list(program.platforms) == ["cpu", "cuda", "tpu"]
    assert description["calling_convention_version"] == program.calling_convention_version
    assert list(program.disabled_safety_checks) == []
    targets = [line for line in program.mlir_module().splitlines() if "custom_call" in line]
    assert all("@shape_assertion" in line or "@Sharding" in line for line in targets)


def test_weights_of_half_precision_are_stored_as_float32() -> None:
    halved = jax.tree.map(lambda x: np.asarray(x, np.float16), PARAMS)
    whole = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), halved)
    first, second = (
        export_masks(MODEL, params, image_size=64, batch=1, num_texts=5, options=PLAIN)
        for params in (halved, whole)
    )
    assert first.serialized == second.serialized


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"batch": 0}, "batch=0"),
        ({"num_texts": 0}, "num_texts=0"),
        ({"text_embeddings": TEXTS[:, :8]}, r"\[n, 32\]"),
        ({"text_embeddings": TEXTS, "num_texts": 5}, "exclude each other"),
        ({"text_embeddings": TEXTS, "text_names": ["cat"]}, "5 text_embeddings"),
        ({"text_names": ["cat"]}, "without text_embeddings"),
        ({"platforms": ["cpu", "gpu"]}, "gpu"),
        ({"platforms": ["cpu", "cpu"]}, "each once"),
        ({"options": MaskOptions(kp_weight=1.5)}, "kp_weight=1.5"),
        ({"options": MaskOptions("sharp")}, "refine='sharp' is nothing that TCL has"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"params": LEARNED}, "lack `clip`"),
        ({"params": {**PARAMS, "grounder": {}}}, "not those of this model"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    usual = {"params": PARAMS, "image_size": 64, "batch": 1, "options": PLAIN}
    with pytest.raises(InputError, match=message):
        export_masks(MODEL, **{**usual, **arguments})


@pytest.mark.parametrize("suffix", ["", ".json"])
def test_a_folder_in_the_way_is_named(symbolic: ExportedMasks, tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"masks{suffix}").mkdir()
    with pytest.raises(InputError, match="a folder"):
        write_export(tmp_path / "masks", symbolic)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_export(tmp_path / "file/masks", symbolic)
    files = itertools.chain(tmp_path.rglob("*.part"), tmp_path.rglob(".*"))
    assert list(files) == []
