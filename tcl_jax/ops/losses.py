"""The terms of TCL's objective (section 3.3 of the paper), unweighted, float32.

Every one is the loss of the whole batch that it is given: under `jit` over a mesh that is the
global batch, so the value does not depend on the number of devices.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float

from tcl_jax.ops.masking import l2_normalize

MAX_LOGIT_SCALE = 100.0
"""CLIP clips its learned inverse temperature here."""


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights and priors of the terms; the defaults are the paper's.

    Attributes:
        tcl: of both contrastive terms, `tclf` and `tcli`.
        area: of `area` and `neg_area`.
        tv: of both total variations.
        area_prior: expected share of the image that a caption's mask covers.
        area_group: images whose mean area is compared with it, see `area_losses`. The paper's run
            compared that of each GPU's 64 images.
    """

    tcl: float = 0.1
    area: float = 0.4
    tv: float = 1.0
    area_prior: float = 0.4
    area_group: int = 0


def info_nce(similarity: Float[Array, "b b"], log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Symmetric InfoNCE: 0.5 (cross-entropy over rows + over columns), matches on the diagonal.

    Args:
        similarity: cosine of image i with text j.
        log_scale: learned log inverse temperature; its exponential is clipped at 100.
    """
    logits = similarity * jnp.minimum(jnp.exp(log_scale), MAX_LOGIT_SCALE)
    # jnp.diagonal's gradient is a branch that holds collectives; XLA orders those less strictly.
    matched = jnp.sum(jnp.where(jnp.eye(len(logits), dtype=bool), logits, 0), axis=1)
    rows = jax.nn.logsumexp(logits, axis=1) - matched
    columns = jax.nn.logsumexp(logits, axis=0) - matched
    return 0.5 * (jnp.mean(rows) + jnp.mean(columns))


def image_text_similarity(
    images: Float[Array, "b d"], texts: Float[Array, "n d"]
) -> Float[Array, "b n"]:
    """Cosine of every image with every text; CLIP's loss and `tcli` are its InfoNCE."""
    return jnp.einsum(
        "id,jd->ij", l2_normalize(images), l2_normalize(texts), precision=Precision.HIGHEST
    )


def region_text_loss(
    regions: Float[Array, "b b d"], texts: Float[Array, "b d"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """`tclf`: InfoNCE where entry (i, j) compares text j with the region it grounds in image i."""
    similarity = jnp.einsum(
        "ijd,jd->ij", l2_normalize(regions), l2_normalize(texts), precision=Precision.HIGHEST
    )
    return info_nce(similarity, log_scale)


def area_losses(
    masks: Float[Array, "b b h w"], prior: float, group: int = 0
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(`area`, `neg_area`): |mean own mask - prior|, and the mean mask of texts of other images.

    Args:
        masks: of every image with every text.
        prior: of the mean own mask.
        group: images whose mean is compared with the prior, as consecutive rows of the batch; the
            differences are averaged. 0: all images. Where it does not divide the batch the last
            group is smaller.
    """
    areas = jnp.mean(masks, axis=(2, 3))
    batch = areas.shape[0]
    own = jnp.diagonal(areas)
    others = (jnp.sum(areas) - jnp.sum(own)) / max(batch * (batch - 1), 1)
    return jnp.mean(jnp.abs(_group_means(own, group) - prior)), others


def total_variation(x: Float[Array, "... h w"]) -> Float[Array, ""]:
    """Mean absolute difference of neighbours along rows plus that along columns."""
    down, right = _steps(x)
    return jnp.mean(down) + jnp.mean(right)


def variation_of_each(x: Float[Array, "b n h w"]) -> Float[Array, "b n"]:
    """`total_variation` of every map by itself; their mean is that of all."""
    down, right = _steps(x)
    return jnp.mean(down, axis=(2, 3)) + jnp.mean(right, axis=(2, 3))


def _steps(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Absolute differences of neighbours, of rows and of columns."""
    return jnp.abs(x[..., 1:, :] - x[..., :-1, :]), jnp.abs(x[..., :, 1:] - x[..., :, :-1])


def strip_info_nce(
    similarity: Float[Array, "b n"], log_scale: Float[Array, ""], axis: str | None = None
) -> Float[Array, ""]:
    """`info_nce` of the [n, n] matrix of which each device along a mesh axis has b rows.

    Over columns the devices exchange [n] maxima and [n] sums.

    Args:
        similarity: the rows of this device's images, in the order of the devices.
        log_scale: as in `info_nce`.
        axis: name of the mesh axis inside `jax.shard_map`; None if all rows are here.
    """
    logits = similarity * jnp.minimum(jnp.exp(log_scale), MAX_LOGIT_SCALE)
    count = similarity.shape[1]
    matched = _total(jnp.where(_is_own(similarity, axis), logits, 0.0), axis)
    rows = _total(jax.nn.logsumexp(logits, axis=1), axis)
    # Any number near the maximum will do, and its gradient cancels.
    top = jax.lax.stop_gradient(jnp.max(logits, axis=0))
    top = top if axis is None else jax.lax.pmax(top, axis)
    sums = jnp.sum(jnp.exp(logits - top), axis=0)
    sums = sums if axis is None else jax.lax.psum(sums, axis)
    columns = jnp.sum(top + jnp.log(sums))
    return (0.5 * (rows + columns) - matched) / count


def strip_area_losses(
    areas: Float[Array, "b n"], prior: float, axis: str | None = None, group: int = 0
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """`area_losses` from the mean of each mask, and the mean own mask itself.

    Args:
        areas: the rows of this device's images, as in `strip_info_nce`.
        prior, group: as in `area_losses`; of the global batch, so that groups may cross devices.
        axis: as in `strip_info_nce`.
    """
    count = areas.shape[1]
    is_own = _is_own(areas, axis)
    # The zeros of other devices' images add nothing to the means.
    means = _group_means(jnp.sum(jnp.where(is_own, areas, 0.0), axis=0), group)
    means = means if axis is None else jax.lax.psum(means, axis)
    others = _total(jnp.where(is_own, 0.0, areas), axis) / max(count * (count - 1), 1)
    own = _total(jnp.where(is_own, areas, 0.0), axis) / count
    return jnp.mean(jnp.abs(means - prior)), others, own


def _group_means(x: Float[Array, " n"], group: int) -> Float[Array, " m"]:
    size = group or x.shape[0]
    padding = -x.shape[0] % size
    groups = jnp.pad(x, (0, padding)).reshape(-1, size)
    counts = np.full(groups.shape[0], size, np.float32)
    counts[-1] -= padding
    return jnp.sum(groups, axis=1) / counts


def strip_mean(x: Float[Array, "b n"], axis: str | None = None) -> Float[Array, ""]:
    """Mean of the [n, n] matrix of which each device along a mesh axis has b rows."""
    return _total(x, axis) / x.shape[1] ** 2


def _total(x: jax.Array, axis: str | None) -> jax.Array:
    total = jnp.sum(x)
    return total if axis is None else jax.lax.psum(total, axis)


def _is_own(strip: jax.Array, axis: str | None) -> jax.Array:
    first = 0 if axis is None else jax.lax.axis_index(axis) * strip.shape[0]
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, strip.shape, i) for i in (0, 1))
    return rows + first == columns
