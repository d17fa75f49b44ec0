"""LCAS split by spatial frequency; beyond the paper.

The terms V and R (method.md 3) are split into coefficients of a discrete cosine transform (DCT) of
each patch in luma and chroma.  Traces of upsampling and of decoders are weak in energy but confined
in frequency: band by band, image content does not drown them.  Patches are pooled by texture.

In: masked patches of one run and their predictions (M, d).  Out: statistics (N,), float32.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cinemae_jax.model.config import CHANNELS, MAEConfig

# Groups of equally many patches: the smoothest, the middle, the most textured.
NUM_STRATA = 3

# RGB to Y, Cb, Cr. ITU-T T.871 (JFIF), section 7.
LUMA_CHROMA = np.array(
    ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813)), np.float32
)

# Variance of one grey level of 256 in ImageNet-normalised pixels; added to a patch's own variance.
GREY_LEVEL = 3e-4
# Added before a logarithm, as shares of the patch's own variance: to mean energies of a stratum,
# and to energies of single patches.
ENERGY_FLOOR, RATIO_FLOOR = 1e-5, 1e-3


def num_bands(config: MAEConfig) -> int:
    """Length of the result of ``band_statistics``."""
    return 2 * NUM_STRATA * config.patch_dim


@functools.cache
def cosine_basis(side: int) -> Float[np.ndarray, "side side"]:
    """The orthonormal DCT-II basis: row u is its u-th function, float32."""
    place, band = np.arange(side), np.arange(side)[:, None]
    basis: np.ndarray = np.cos(np.pi * band * (2 * place + 1) / (2 * side)) * np.sqrt(2 / side)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def spectrum(patches: Float[Array, "m d"]) -> Float[Array, "m 3 f"]:
    """DCT coefficients of patches in Y, Cb and Cr; f = P², the mean first."""
    side = round((patches.shape[-1] // CHANNELS) ** 0.5)
    basis = jnp.asarray(cosine_basis(side))
    pixels = patches.astype(jnp.float32).reshape(len(patches), side, side, CHANNELS)
    coefficients = jnp.einsum(
        "up,vq,kc,mpqc->mkuv", basis, basis, jnp.asarray(LUMA_CHROMA), pixels, precision="highest"
    )
    return coefficients.reshape(len(patches), CHANNELS, side * side)


def band_statistics(
    truth: Float[Array, "m d"], predictions: Float[Array, "m d"]
) -> Float[Array, " n"]:
    """Own energy and relative error of the masked patches of one run, by stratum and band.

    z is the spectrum of a patch, its mean colour relative to that of all masked patches; r is the
    spectrum of its error; s² is its variance around its own mean.  Per stratum: the log of the mean
    of z²/s², and the mean of log r²/s² - log z²/s² (``relative`` of method.md 3, per band).

    Args:
      truth: masked patches in target space, values ordered (p, q, c).
      predictions: the backbone's, in the same order.

    Returns:
      (2 · NUM_STRATA · d,): energies of all strata, then errors; bands in Y, Cb, Cr order.
    """
    z, error = spectrum(truth), spectrum(truth - predictions)
    own = (z[:, :, 1:] ** 2).mean(axis=(1, 2))
    scale = (own + GREY_LEVEL)[:, None, None]
    centred = z.at[:, :, 0].add(-z[:, :, 0].mean(axis=0)[None])
    energy = (centred**2 / scale).reshape(len(truth), -1)
    relative = jnp.log((error**2 / scale).reshape(len(truth), -1) + RATIO_FLOOR)
    relative = relative - jnp.log(energy + RATIO_FLOOR)
    strata = jnp.array_split(jnp.argsort(own, stable=True), NUM_STRATA)
    energies = [jnp.log(energy[ids].mean(axis=0) + ENERGY_FLOOR) for ids in strata]
    return jnp.concatenate([*energies, *(relative[ids].mean(axis=0) for ids in strata)])
