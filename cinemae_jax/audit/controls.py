"""Does the MAE help?  Controls: heads trained by the same recipe on features without it.

In: the configuration of a detector.  Out: its controls, and Gaussian in-painting for some of them.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cinemae_jax.audit.corruptions import Shrink
from cinemae_jax.model.cinemae import Reconstruct
from cinemae_jax.model.config import DetectorConfig, MAEConfig
from cinemae_jax.model.mae import patchify, to_target, unpatchify

# Where features come from: the frozen MAE; the same architecture untrained; the MAE's encoder with
# in-painting instead of its reconstruction; the MAE on images without fine structure.
Source = Literal["MAE", "random weights", "Gaussian in-painting", "MAE on shrunken images"]

RECIPE = "the recipe as it is"
CONTENT = "content alone"
# Shorter side in pixels to which images are reduced, and then enlarged again, to keep only content.
CONTENT_SIDE = 64
SHRINK = Shrink(CONTENT_SIDE)


@dataclasses.dataclass(frozen=True)
class Control:
    """One head to train by the detector's recipe, which differs in what the name says.

    Attributes:
      name: for tables.
      source: of its features.
      detector: configuration of the head.
    """

    name: str
    source: Source
    detector: DetectorConfig


def controls(config: DetectorConfig) -> list[Control]:
    """The recipe first, then the controls that it is compared with; all are different."""
    encoder = dataclasses.replace(config, fusion="global", num_runs=0, frequency="none")
    made = [
        Control(RECIPE, "MAE", config),
        Control("random weights", "random weights", config),
    ]
    if config.num_runs:
        alone = dataclasses.replace(config, fusion="lcas", frequency="none")
        made += [
            Control("Gaussian in-painting", "Gaussian in-painting", config),
            Control("encoder alone", "MAE", encoder),
            Control("LCAS alone", "MAE", alone),
            Control("LCAS alone, random weights", "random weights", alone),
            Control("LCAS alone, Gaussian in-painting", "Gaussian in-painting", alone),
        ]
    if config.reads_frequency:
        made.append(
            Control("frequency alone", "MAE", dataclasses.replace(config, fusion="frequency"))
        )
    made.append(Control(CONTENT, "MAE on shrunken images", config))
    distinct: dict[tuple[str, DetectorConfig], Control] = {}
    for control in made:
        distinct.setdefault((control.source, control.detector), control)
    return list(distinct.values())


# --- Gaussian in-painting -----------------------------------------------------------------------

WIDTH = 1.0  # standard deviation of the kernel, in patches
# Weight of the mean of all visible pixels; it matters only where no visible pixel is in reach.
FLOOR = 1e-30


def gaussian_inpainting(model: MAEConfig, width: float = WIDTH) -> Reconstruct:
    """Predicts masked pixels as the Gaussian-weighted mean of the visible ones.

    Normalised convolution (Knutsson and Westin, CVPR 1993), per channel, without any training.

    Args:
      model: gives patch size and target.  For ``norm_pix`` an in-painted patch is normalised by
        its own mean and variance, never by those of the true patch.
      width: standard deviation of the kernel, in patches.
    """
    size, patch = model.image_size, model.patch_size
    offset = jnp.arange(size)[:, None] - jnp.arange(size)[None]
    kernel = jnp.exp(-0.5 * (offset / (width * patch)) ** 2)

    def smooth(images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("ij,bjkc,lk->bilc", kernel, images, kernel, precision=highest)

    def reconstruct(
        pixels: Float[Array, "b h w 3"], visible: Int[Array, "b n"], masked: Int[Array, "b m"]
    ) -> Float[Array, "b m d"]:
        rows = jnp.arange(len(pixels))[:, None]
        seen = jnp.zeros((len(pixels), model.num_patches, patch**2)).at[rows, visible].set(1.0)
        weight = unpatchify(seen, patch)
        known = weight * pixels
        mean = known.sum(axis=(1, 2), keepdims=True) / weight.sum(axis=(1, 2), keepdims=True)
        filled = (smooth(known) + FLOOR * mean) / (smooth(weight) + FLOOR)
        patches = jnp.take_along_axis(patchify(filled, patch), masked[..., None], axis=1)
        return to_target(patches, model.target)

    return reconstruct
