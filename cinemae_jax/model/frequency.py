"""Frequency of whole images, apart from any backbone; beyond the paper (method.md 5).

Generators leave traces of upsampling in the spectrum of an image; so do JPEG and resizing.  In: RGB
in grey levels, 0 to 255.  Out: log powers and log variances, in grey levels², float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cinemae_jax.model.bands import LUMA_CHROMA, cosine_basis
from cinemae_jax.model.config import Frequency

NUM_RINGS = 24
BLOCK = 8  # pixels, as in JPEG
# Variance of rounding to whole grey levels: power below it is not a property of the image.
ROUNDING = 1 / 12

# Columns of ``describe`` that each kind reads.
COLUMNS: dict[Frequency, slice] = {
    "none": slice(0, 0),
    "radial": slice(0, NUM_RINGS),
    "blocks": slice(NUM_RINGS, NUM_RINGS + BLOCK**2),
    "residual": slice(NUM_RINGS + BLOCK**2, 2 * (NUM_RINGS + BLOCK**2)),
}
NUM_COLUMNS = COLUMNS["residual"].stop


def num_values(kind: Frequency) -> int:
    """Length of q, what a head reads of one kind."""
    columns = COLUMNS[kind]
    return int(columns.stop - columns.start)


def describe(levels: Float[Array, "h w 3"]) -> Float[Array, " n"]:
    """All kinds of one image: rings and blocks of its luma, then of the luma's high-pass residual.

    Args:
      levels: RGB in grey levels; at least 16 × 16.

    Returns:
      (``NUM_COLUMNS``,), of which ``COLUMNS`` selects a kind.
    """
    luma = (levels.astype(jnp.float32) * jnp.asarray(LUMA_CHROMA[0])[None, None]).sum(axis=-1)
    high = high_pass(luma)
    both = (radial(luma), blocks(luma), radial(high), blocks(high))
    return jnp.concatenate(both)


def radial(luma: Float[Array, "h w"]) -> Float[Array, " r"]:
    """Log power in ``NUM_RINGS`` equally wide rings from 0 to 0.5 cycles per pixel.

    The mean is removed and a Hann window applied; white noise of variance v has power v in every
    ring.  The corners of the spectrum beyond 0.5 are left out.
    """
    height, width = luma.shape
    hann = np.outer(np.hanning(height), np.hanning(width))
    window = jnp.asarray(hann, jnp.float32)
    around = luma - luma.mean()  # first, so that the weighted mean has little to round
    centred = (around - (around * window).sum() / window.sum()) * window
    spectrum = jnp.fft.fft2(centred)
    power = (spectrum.real**2 + spectrum.imag**2) / np.float32((hann**2).sum())
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    ring = jnp.asarray((radius * 2 * NUM_RINGS).astype(np.int32))

    def mean(number: Array) -> Array:
        inside = ring == number
        return jnp.where(inside, power, 0.0).sum() / jnp.maximum(inside.sum(), 1)

    return jnp.log(jax.vmap(mean)(jnp.arange(NUM_RINGS)) + ROUNDING)


def blocks(luma: Float[Array, "h w"]) -> Float[Array, " b"]:
    """Log variance of each orthonormal DCT coefficient over all whole 8 × 8 blocks.

    Blocks are counted from the upper left corner of the crop.  White noise of variance v has
    variance v in every coefficient; the variance is biased.
    """
    rows, columns = (side // BLOCK for side in luma.shape)
    basis = jnp.asarray(cosine_basis(BLOCK))
    whole = luma[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    coefficients = jnp.einsum("up,vq,rpcq->rcuv", basis, basis, whole, precision="highest")
    return jnp.log(coefficients.var(axis=(0, 1)) + ROUNDING).reshape(-1)


def high_pass(luma: Float[Array, "h w"]) -> Float[Array, "h2 w2"]:
    """x - up(down(x)): every 2 × 2 square minus its upper left pixel; odd sides lose a pixel.

    Both steps take the nearest pixel, as in neighbouring pixel relationships (NPR, arXiv
    2312.10461).
    """
    height, width = (side // 2 * 2 for side in luma.shape)
    even = luma[:height, :width]
    kept = even[::2, ::2]
    return even - jnp.repeat(jnp.repeat(kept, 2, axis=0), 2, axis=1)
