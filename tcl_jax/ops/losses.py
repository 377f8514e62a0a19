"""The terms of TCL's objective (Cha et al., CVPR 2023, section 3.3), unweighted, float32.

Each is a plain function of the whole batch, and these are the functions that training runs. Under
`jit` over a mesh the whole batch is the global one: a matrix [n, n] of all images and texts keeps
the rows of a device's images on that device, the compiler adds the sums over devices, [n] numbers
each, and no value depends on how many there are.
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
    """Weights and priors of the terms, by the names of the config's `loss`; defaults: the paper's,
    but for `area_group`.

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


def image_text_similarity(
    images: Float[Array, "b d"], texts: Float[Array, "n d"]
) -> Float[Array, "b n"]:
    """Cosine of every image with every text; CLIP's loss and `tcli` are its InfoNCE."""
    return jnp.einsum(
        "id,jd->ij", l2_normalize(images), l2_normalize(texts), precision=Precision.HIGHEST
    )


def region_text_similarity(
    regions: Float[Array, "b n d"], texts: Float[Array, "n d"]
) -> Float[Array, "b n"]:
    """Cosine of text j with the region that it grounds in image i; `tclf` is its InfoNCE."""
    return jnp.einsum(
        "ijd,jd->ij", l2_normalize(regions), l2_normalize(texts), precision=Precision.HIGHEST
    )


def info_nce(similarity: Float[Array, "n n"], logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Symmetric InfoNCE: 0.5 (cross-entropy over rows + over columns), positives on the diagonal.

    The original's `InfoNCE` and `ExtendedInfoNCE`, which differ in the similarity alone.

    Args:
        similarity: cosine of image i with text j.
        logit_scale: log of the learned inverse temperature; its exponential is clipped at 100.
    """
    logits = similarity * jnp.minimum(jnp.exp(logit_scale), MAX_LOGIT_SCALE)
    over_texts = jnp.mean(jax.nn.logsumexp(logits, axis=1))
    over_images = jnp.mean(jax.nn.logsumexp(logits, axis=0))
    # Means before differences: over a mesh the one matrix's columns are sums over all devices, and
    # the diagonal is split over them.
    return 0.5 * (over_texts + over_images) - jnp.mean(positives(logits))


def area_losses(
    areas: Float[Array, "n n"], prior: float, group: int = 0
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`area`: |mean positive mask - prior|; `neg_area`: mean negative mask (both `AreaTCLLoss`).

    Args:
        areas: mean over pixels of the soft mask of image i and text j.
        prior: of the mean positive mask.
        group: images whose mean is compared with the prior, as consecutive rows of the batch; the
            differences are averaged. 0: all images. Where it does not divide the batch the last
            group is smaller.
    """
    count = len(areas)
    negatives = jnp.where(jnp.eye(count, dtype=bool), 0.0, areas)
    neg_area = jnp.sum(negatives) / max(count * (count - 1), 1)
    size = group or count
    padding = -count % size
    groups = jnp.pad(positives(areas), (0, padding)).reshape(-1, size)
    images = np.full(len(groups), size, np.float32)
    images[-1] -= padding
    return jnp.mean(jnp.abs(jnp.sum(groups, axis=1) / images - prior)), neg_area


def total_variation(x: Float[Array, "*maps h w"]) -> Float[Array, "*maps"]:
    """Mean absolute difference of neighbours along rows plus that along columns, of each map.

    `tv_mask` and `tv_img` (the original's `tv_loss`) are its means over maps of one size.
    """
    down, right = (jnp.abs(jnp.diff(x, axis=axis)) for axis in (-2, -1))
    return jnp.mean(down, axis=(-2, -1)) + jnp.mean(right, axis=(-2, -1))


def positives(x: Float[Array, "n n"]) -> Float[Array, " n"]:
    """The diagonal: the entry of every image with its own text."""
    # The gradient of jnp.diagonal is a branch that holds collectives; XLA orders those less
    # strictly, and gathers the matrix for it.
    return jnp.sum(jnp.where(jnp.eye(len(x), dtype=bool), x, 0.0), axis=1)


def accuracy(similarity: Float[Array, "n n"]) -> Float[Array, ""]:
    """Share of the rows in which the largest entry is the positive."""
    return jnp.mean(jnp.argmax(similarity, axis=1) == jnp.arange(len(similarity)))
