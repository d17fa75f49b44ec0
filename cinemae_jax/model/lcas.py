"""Local conditional anomaly scores (LCAS) and their three statistics (method.md 3, 4), in float32.

Functions take the arrays of one image, or of one run of it; callers vmap.  Patches are in the
target space of the backbone, their d values ordered (p, q, c).
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from cinemae_jax.model.arrays import AnyArray
from cinemae_jax.model.config import SCORES, Score, Sensitivity

EPS = 1e-6

# The terms that each score reads; the other terms of ``Terms`` may be None.
TERMS_OF: dict[str, tuple[str, ...]] = {
    "context_nll": ("deviation", "mismatch", "context_variance"),
    "deviation_plus_mismatch": ("deviation", "mismatch"),
    "reconstruction_deviation": ("reconstruction_deviation", "mismatch"),
    "mismatch": ("mismatch",),
    "conditional_nll": ("mismatch", "context_variance"),
    "relative": ("mismatch", "patch_variance"),
    "log_variance": ("mismatch", "context_variance"),
}


@struct.dataclass
class Terms:
    """What masked runs say of each masked patch, kept apart until the score is formed.

    Float32.  ``batch`` is () for one run, (K,) for an image, (B, K) for a batch.  A term that was
    not computed or not stored is None.

    Attributes:
      deviation: D, of the true patch from the visible context.
      reconstruction_deviation: D', of the reconstruction from the visible context.
      mismatch: R, mean squared error of the reconstruction.
      patch_variance: V, of the true patch's own values.
      context_variance: σ² of the visible pixels of each channel.
      bands: statistics by frequency band (``bands.band_statistics``).
    """

    deviation: Float[AnyArray, "*batch m"] | None
    reconstruction_deviation: Float[AnyArray, "*batch m"] | None
    mismatch: Float[AnyArray, "*batch m"] | None
    patch_variance: Float[AnyArray, "*batch m"] | None
    context_variance: Float[AnyArray, "*batch c"] | None
    bands: Float[AnyArray, "*batch n"] | None = None

    def read(self, *names: str) -> list[Array]:
        """The named terms.

        Raises:
          ValueError: if one of them is None.
        """
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise ValueError(
                f"features without {', '.join(missing)}: extract them with this detector's settings"
            )
        return [jnp.asarray(getattr(self, name)) for name in names]


def context_stats(
    patches: Float[Array, "l d"], visible: Int[Array, " n"], *, channels: int = 3
) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
    """Mean and biased variance of each channel over all pixels of the visible patches."""
    pixels = patches[visible].astype(jnp.float32).reshape(-1, channels)
    return pixels.mean(axis=0), pixels.var(axis=0)


def deviation(
    patches: Float[Array, "m d"], mean: Float[Array, " c"], var: Float[Array, " c"]
) -> Float[Array, " m"]:
    """D_i = mean_j (x_ij - μ_c(j))² / (σ²_c(j) + ε), with ε = 1e-6."""
    values = patches.astype(jnp.float32).reshape(len(patches), -1, len(mean))
    mean, var = mean[None, None], var[None, None]
    return ((values - mean) ** 2 / (var + EPS)).mean(axis=(1, 2))


def mismatch(patches: Float[Array, "m d"], predictions: Float[Array, "m d"]) -> Float[Array, " m"]:
    """R_i = mean_j (x_ij - x̂_ij)², the loss of a patch in MAE's training."""
    difference = patches.astype(jnp.float32) - predictions.astype(jnp.float32)
    return (difference**2).mean(axis=-1)


def patch_variance(patches: Float[Array, "m d"]) -> Float[Array, " m"]:
    """V_i, the biased variance of the d values of a patch."""
    return patches.astype(jnp.float32).var(axis=-1)


def uniform_share(
    patches: Float[Array, "l d"], threshold: float, *, channels: int = 3
) -> Float[Array, ""]:
    """Share of nearly uniform patches in an image; on those, LCAS has little to measure.

    Args:
      patches: ImageNet-normalised pixels, whatever the target space.
      threshold: a patch is uniform if its variance over pixels, averaged over channels, is below.
    """
    pixels = patches.astype(jnp.float32).reshape(len(patches), -1, channels)
    return (pixels.var(axis=1).mean(axis=-1) < threshold).mean()


def texture(levels: Int[Array, "l d"], *, channels: int = 3) -> Float[Array, " l"]:
    """Variance of the pixels of every patch, averaged over channels, in squared grey levels.

    Each channel's mean is rounded to a whole level, so that all sums are whole numbers: patches
    have the same order, and flat ones are equal, on any device and in any batch.

    Args:
      levels: whole grey levels, 0 to 255; up to 104 x 104 pixels a patch.
    """
    pixels = levels.reshape(len(levels), -1, channels)
    count = pixels.shape[1]
    mean = (2 * pixels.sum(axis=1, keepdims=True) + count) // (2 * count)
    squares = ((pixels - mean) ** 2).sum(axis=(1, 2))
    return squares.astype(jnp.float32) / (count * channels)


def run_terms(
    patches: Float[Array, "l d"],
    predictions: Float[Array, "m d"],
    visible: Int[Array, " n"],
    masked: Int[Array, " m"],
) -> Terms:
    """All terms except ``bands``, of one masked run of one image."""
    mean, var = context_stats(patches, visible)
    truth = patches[masked]
    return Terms(
        deviation=deviation(truth, mean, var),
        reconstruction_deviation=deviation(predictions, mean, var),
        mismatch=mismatch(truth, predictions),
        patch_variance=patch_variance(truth),
        context_variance=var,
    )


def lcas(
    deviation: Float[Array, "*batch k m"],
    mismatch: Float[Array, "*batch k m"],
    weight: float | Float[Array, ""],
) -> Float[Array, "*batch k m"]:
    """S = D + λ R, the score ``deviation_plus_mismatch``."""
    return deviation + weight * mismatch


def score(
    terms: Terms, variant: Score, weight: float | Float[Array, ""]
) -> Float[Array, "*batch k m"]:
    """The anomaly score of every masked patch, in the named variant (method.md 3).

    ``context_nll`` is ½[D + mean_c log(σ²_c + ε)] + λR: up to a constant, the negative
    log-likelihood of a patch under a Gaussian with mean and variance of the visible context, and λ
    times the reconstruction error.  ``log_variance`` is its control: the context's contrast alone.

    Args:
      terms: of one image or a batch; those of ``TERMS_OF[variant]`` are read.
      variant: one of ``SCORES``.
      weight: λ, ``mismatch_weight``; only ``WEIGHTED_SCORES`` use it.

    Raises:
      ValueError: if the variant is unknown, or a term that it reads is None.
    """
    if variant not in TERMS_OF:
        raise ValueError(f"unknown LCAS score {variant!r}: use one of {', '.join(SCORES)}")
    needed = terms.read(*TERMS_OF[variant])
    if variant == "mismatch":
        return needed[0]
    if variant == "context_nll":
        d, r, context_variance = needed
        return 0.5 * (d + _log_determinant(context_variance)) + weight * r
    if variant == "log_variance":
        r, context_variance = needed
        return jnp.broadcast_to(_log_determinant(context_variance), r.shape)
    if variant == "conditional_nll":
        r, context_variance = needed
        var = context_variance.mean(axis=-1, keepdims=True) + EPS
        return 0.5 * (jnp.log(var) + r / var)
    if variant == "relative":
        r, v = needed
        return jnp.log(r + EPS) - jnp.log(v + EPS)
    d, r = needed
    return lcas(d, r, weight)


def _log_determinant(context_variance: Float[Array, "*batch k c"]) -> Float[Array, "*batch k 1"]:
    """mean_c log(σ²_c + ε): what the negative log-likelihood of a Gaussian has beyond D."""
    return jnp.log(context_variance + EPS).mean(axis=-1, keepdims=True)


def most_textured(
    patch_variance: Float[AnyArray, "*batch m"], share: float
) -> Int[Array, "*batch n"]:
    """Places (0 … M-1) of the ⌈share · M⌉ masked patches of a run with the largest V, int32.

    Of equal patches, the first ones.  Method.md 4, beyond the paper.

    Args:
      patch_variance: V, of the true patches.
      share: above 0, at most 1.
    """
    order = jnp.argsort(-jnp.asarray(patch_variance), axis=-1, stable=True)
    return order[..., : share_of(order.shape[-1], share)].astype(jnp.int32)


def any_patches(num_runs: int, num_masked: int, share: float) -> Int[Array, "k n"]:
    """As many places, chosen without regard to the image: the control of ``most_textured``."""
    order = np.random.default_rng(0).random((num_runs, num_masked)).argsort(axis=1)
    return jnp.asarray(order[:, : share_of(num_masked, share)], jnp.int32)


def share_of(count: int, share: float) -> int:
    """⌈share · count⌉, whatever the rounding of the product."""
    return math.ceil(share * count - 1e-9)


def summarize(
    lcas: Float[Array, "k m"],
    *,
    sensitivity: Sensitivity = "run",
    masked: Int[AnyArray, "k m"] | None = None,
    num_patches: int | None = None,
) -> Float[Array, " 3"]:
    """[s1 variability, s2 mean anomaly, s3 perturbation sensitivity] of one image.

    Args:
      lcas: scores of the masked patches, (K, M).
      sensitivity: ``run``: standard deviation over runs of the per-run mean; ``patch``: mean
        absolute difference over patches masked in both of two runs, averaged over pairs of runs.
      masked, num_patches: ids of the scored patches and L; only ``patch`` needs them.

    Raises:
      ValueError: if the sensitivity is unknown, or ``patch`` lacks its arguments.
    """
    scores = lcas.astype(jnp.float32)
    if sensitivity == "run":
        s3 = _deviation(scores.mean(axis=1))
    elif sensitivity == "patch":
        if masked is None or num_patches is None:
            raise ValueError("sensitivity 'patch' needs masked and num_patches")
        s3 = _patch_sensitivity(scores, masked, num_patches)
    else:
        raise ValueError(f"unknown sensitivity {sensitivity!r}: use 'run' or 'patch'")
    return jnp.stack([_deviation(scores), scores.mean(), s3])


def _deviation(values: Float[Array, "..."]) -> Float[Array, ""]:
    """Standard deviation; where it is 0, so is its gradient (not infinite)."""
    variance = values.var()
    varies = variance > 0
    return jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)


def _patch_sensitivity(
    scores: Float[Array, "k m"], masked: Int[AnyArray, "k m"], num_patches: int
) -> Float[Array, ""]:
    num_runs = len(scores)
    rows = jnp.arange(num_runs)[:, None]
    on_grid = jnp.zeros((num_runs, num_patches)).at[rows, masked].set(scores)
    is_masked = jnp.zeros((num_runs, num_patches)).at[rows, masked].set(1.0)
    pair_means = []
    for a in range(num_runs):
        for b in range(a + 1, num_runs):
            both = is_masked[a] * is_masked[b]
            difference = jnp.abs(on_grid[a] - on_grid[b]) * both
            pair_means.append(difference.sum() / jnp.maximum(both.sum(), 1.0))
    return jnp.stack(pair_means).mean() if pair_means else jnp.zeros(())
