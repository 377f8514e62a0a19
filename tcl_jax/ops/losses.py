"""The terms of TCL's objective (section 3.3 of the paper), unweighted, float32.

Every one is the loss of the whole batch that it is given: under `jit` over a mesh that is the
global batch, so the value does not depend on the number of devices.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
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
    """

    tcl: float = 0.1
    area: float = 0.4
    tv: float = 1.0
    area_prior: float = 0.4


def info_nce(similarity: Float[Array, "b b"], log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Symmetric InfoNCE: 0.5 (cross-entropy over rows + over columns), matches on the diagonal.

    Args:
        similarity: cosine of image i with text j.
        log_scale: learned log inverse temperature; its exponential is clipped at 100.
    """
    logits = similarity * jnp.minimum(jnp.exp(log_scale), MAX_LOGIT_SCALE)
    matched = jnp.diagonal(logits)
    rows = jax.nn.logsumexp(logits, axis=1) - matched
    columns = jax.nn.logsumexp(logits, axis=0) - matched
    return 0.5 * (jnp.mean(rows) + jnp.mean(columns))


def image_text_loss(
    images: Float[Array, "b d"], texts: Float[Array, "b d"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """InfoNCE between one embedding per image and one per text (CLIP's loss, and `tcli`)."""
    similarity = jnp.einsum("id,jd->ij", l2_normalize(images), l2_normalize(texts))
    return info_nce(similarity, log_scale)


def region_text_loss(
    regions: Float[Array, "b b d"], texts: Float[Array, "b d"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """`tclf`: InfoNCE where entry (i, j) compares text j with the region it grounds in image i."""
    similarity = jnp.einsum("ijd,jd->ij", l2_normalize(regions), l2_normalize(texts))
    return info_nce(similarity, log_scale)


def area_losses(
    masks: Float[Array, "b b h w"], prior: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(`area`, `neg_area`): |mean own mask - prior|, and the mean mask of texts of other images."""
    areas = jnp.mean(masks, axis=(2, 3))
    batch = areas.shape[0]
    own = jnp.trace(areas)
    others = (jnp.sum(areas) - own) / max(batch * (batch - 1), 1)
    return jnp.abs(own / batch - prior), others


def total_variation(x: Float[Array, "... h w"]) -> Float[Array, ""]:
    """Mean absolute difference of neighbours along rows plus that along columns."""
    down = jnp.mean(jnp.abs(x[..., 1:, :] - x[..., :-1, :]))
    right = jnp.mean(jnp.abs(x[..., :, 1:] - x[..., :, :-1]))
    return down + right
