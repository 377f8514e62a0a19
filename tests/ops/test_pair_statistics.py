"""The tiled statistics of all pairs, and the losses of them, against those of whole masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.ops import losses, masking
from tcl_jax.ops import pair_statistics as module
from tcl_jax.ops.pair_statistics import PairStatistics, pair_statistics, tile_sizes
from tests.devices import run_on_eight_devices
from tests.reference import relative_error

HEIGHT, WIDTH, SIZE = 6, 5, 16
NAMES = ("tclf", "area", "neg_area", "tv_mask")
WEIGHTS = (0.7, 1.3, 0.9, 1.1)
Statistics = Callable[..., PairStatistics]


def inputs(images: int, texts: int | None = None) -> tuple[jax.Array, ...]:
    """Pixels, texts, w, b and logit scale."""
    pixel_key, text_key = jax.random.split(jax.random.key(images))
    return (
        3 * jax.random.normal(pixel_key, (images, HEIGHT, WIDTH, SIZE)),
        jax.random.normal(text_key, (images if texts is None else texts, SIZE)),
        jnp.array(4.0),
        jnp.array(-0.5),
        jnp.array(2.0),
    )


def of_whole_masks(
    pixels: jax.Array, texts: jax.Array, w: jax.Array, b: jax.Array
) -> PairStatistics:
    masks = jax.nn.sigmoid(w * masking.pixel_text_similarity(pixels, texts) + b)
    regions = masking.l2_normalize(masking.masked_pool(pixels, masks))
    return PairStatistics(
        similarity=jnp.sum(regions * masking.l2_normalize(texts), axis=-1),
        area=jnp.mean(masks, axis=(2, 3)),
        variation=jax.vmap(jax.vmap(losses.total_variation))(masks),
    )


def weighted(pairs: PairStatistics, logit_scale: jax.Array, group: int = 0) -> Any:
    """A sum of the losses, and each."""
    # A prior far from the masks' mean, or `area` would be the difference of near equals.
    area, neg_area = losses.area_losses(pairs.area, 0.1, group)
    contrast = losses.info_nce(pairs.similarity, logit_scale)
    found = jnp.stack([contrast, area, neg_area, jnp.mean(pairs.variation)])
    return jnp.dot(jnp.array(WEIGHTS), found), found


def gradient(statistics: Statistics, group: int = 0) -> Any:
    """Gradients of the losses with respect to all of `inputs`, and the losses."""

    def loss(*arguments: jax.Array) -> Any:
        return weighted(statistics(*arguments[:4]), arguments[4], group)

    return jax.jit(jax.grad(loss, argnums=range(5), has_aux=True))


def tiles_of(masks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_BYTES", 4 * HEIGHT * WIDTH * masks)


@pytest.mark.parametrize(
    ("count", "masks", "group"), [(8, 4, 2), (7, 3, 4), (5, 99, 64), (1, 1, 0)]
)
def test_losses_and_gradients_equal_those_of_whole_masks(
    count: int, masks: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles_of(masks, monkeypatch)
    arguments = inputs(count)
    ours, theirs = (gradient(f, group)(*arguments) for f in (pair_statistics, of_whole_masks))
    for name, mine, expected in zip(NAMES, ours[1], theirs[1], strict=True):
        assert float(mine) == pytest.approx(float(expected), rel=1e-5), name
    for name, mine, expected in zip(
        ("pixels", "texts", "w", "b", "scale"), ours[0], theirs[0], strict=True
    ):
        if count == 1 and name == "scale":  # one pair has no other to be told from
            np.testing.assert_allclose([mine, expected], 0, atol=1e-6)
        else:
            assert np.abs(expected).max() > 1e-4
            assert relative_error(mine, np.asarray(expected)) < 1e-5, name


@pytest.mark.parametrize(("images", "texts", "masks"), [(3, 7, 2), (4, 1, 99), (1, 9, 4)])
def test_statistics_of_other_numbers_of_texts(
    images: int, texts: int, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles_of(masks, monkeypatch)
    arguments = inputs(images, texts)[:4]
    found, expected = (
        jax.jit(lambda *x: pair_statistics(*x))(*arguments),
        of_whole_masks(*arguments),
    )
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_gradient_is_finite_where_an_embedding_is_zero() -> None:
    pixels, texts, *rest = inputs(4)
    pixels, texts = pixels.at[0].set(0.0).at[1, 2, 3].set(0.0), texts.at[2].set(0.0)
    ours, theirs = (
        gradient(f)(pixels, texts, *rest)[0][0] for f in (pair_statistics, of_whole_masks)
    )
    assert relative_error(ours, np.asarray(theirs)) < 1e-5


@pytest.mark.parametrize(
    ("images", "texts", "pixels", "expected"),
    [
        (64, 1024, 56 * 56, (1, 1024)),
        (64, 16384, 56 * 56, (1, 1024)),
        (64, 1500, 56 * 56, (1, 750)),
        (64, 64, 56 * 56, (16, 64)),
        (6, 64, 56 * 56, (6, 64)),
        (2, 9, 10**8, (1, 1)),
    ],
)
def test_tiles_fit_and_divide(
    images: int, texts: int, pixels: int, expected: tuple[int, int]
) -> None:
    assert tile_sizes(images, texts, pixels) == expected
    assert 4 * pixels * expected[0] * expected[1] <= module.TILE_BYTES or expected == (1, 1)


def temporary(statistics: Statistics, texts: int) -> int:
    """Bytes that the gradient of statistics of eight images takes."""

    def loss(*arguments: jax.Array) -> jax.Array:
        return sum(map(jnp.mean, statistics(*arguments)), start=jnp.zeros(()))

    shapes = [(8, 28, 28, 16), (texts, 16), (), ()]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(jax.grad(loss, argnums=(0, 2, 3))).lower(*arguments).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_memory_is_flat_in_the_number_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TILE_BYTES", 4 * 28 * 28 * 32)
    few, many = (temporary(pair_statistics, texts) for texts in (256, 4096))
    assert many < 1.15 * few
    assert few < temporary(of_whole_masks, 256) / 4


EIGHT_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from tcl_jax.ops import pair_statistics as module
from tcl_jax.parallel.mesh import batch_sharded, data_mesh, replicated
from tests.devices import collectives
from tests.ops.test_pair_statistics import *

jax.config.update("jax_default_matmul_precision", "highest")
module.TILE_BYTES = 4 * HEIGHT * WIDTH * 5
mesh, given = data_mesh(), inputs(16)
assert mesh.size == 8
rows, everywhere = batch_sharded(mesh), replicated(mesh)
lying = (rows, rows, everywhere, everywhere, everywhere)
placed = jax.device_put(given, lying)
# A group of images lies on two devices.
gradients = gradient(pair_statistics, 4)
for mine, expected in zip(
    *map(jax.tree.leaves, (gradients(*placed), gradient(of_whole_masks, 4)(*given))), strict=True
):
    assert relative_error(mine, np.asarray(expected)) < 1e-5
# As in training, where pixels' gradients stay where the pixels are and texts have none: the texts
# are gathered, and neither rows [n, n] nor anything of pixels.
loss = lambda pixels, rest: weighted(pair_statistics(pixels, *rest[:3]), rest[3], 4)[0]
program = jax.jit(jax.grad(loss)).lower(placed[0], placed[1:]).compile()
assert max(size for _, size in collectives(program.as_text())) == 16 * SIZE

# The losses of 1,024 images and texts exchange [n] maxima, [n] sums and a few means; besides the
# statistics there are two more arrays of a device's rows.
statistics = PairStatistics(*[jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=rows)] * 3)
scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
both = jax.value_and_grad(lambda *x: weighted(*x, 64)[0], argnums=(0, 1))
program = jax.jit(both).lower(statistics, scale).compile()
found = collectives(program.as_text())
assert {kind for kind, _ in found} == {"all-reduce"}, found
assert 4 * sum(size for _, size in found) == 8216, found
assert program.memory_analysis().temp_size_in_bytes < 1.01 * 2 * 4 * 128 * 1024
"""


def test_eight_devices_give_the_answer_of_one_and_exchange_little() -> None:
    run_on_eight_devices(EIGHT_DEVICES)
