"""Where a picture is anomalous: LCAS of every patch, averaged over many masks, and shown over it.

The map covers what the detector looks at and nothing else.  It shows where reconstruction
surprises, which is not where a forgery is.
"""

import dataclasses
import os
import textwrap
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from cinemae_jax.data.augment import resize_short
from cinemae_jax.data.transforms import MultiCrop, multi_crop
from cinemae_jax.model.config import Score
from cinemae_jax.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Masks by default: at a mask ratio of 0.75 a patch is hidden in 12 of them on average.
RUNS = 16
# What the pictures show. The deviation of the default score compares true patches with visible
# ones and never asks the model: its map hardly changes when the weights are random.
SHOWN: Score = "mismatch"

STATEMENT = (
    "Bright: the autoencoder, seeing the rest of the picture, guessed this patch badly. That is "
    "where reconstruction surprises, not where a forgery is: fine texture, text and edges are "
    "bright in photographs too. Grey: not looked at."
)
OVERLAY = 0.65  # opacity of the map over the picture
QUANTILES = (0.02, 0.98)  # ends of the colour scale, so that one patch does not dim the others


@dataclasses.dataclass(frozen=True, eq=False)
class LcasMap:
    """LCAS over one picture.

    Attributes:
      image: as the detector takes it: upright, and resized where its preprocessing does.
      values: (H, W) of that image, float32: the mean score of the patch at each pixel; NaN where no
        crop looked.
      patches: (n, g, g), the same by crop and patch.
      shown: (n, g, g), number of masks that hid each patch: what its mean is over.
      runs: masks.
      score: LCAS variant.
    """

    image: Image.Image
    values: Float[np.ndarray, "h w"]
    patches: Float[np.ndarray, "n g g"]
    shown: Int[np.ndarray, "n g g"]
    runs: int
    score: Score

    def figure(self) -> "Figure":
        """The picture, and the map over it with its legend."""
        from matplotlib.figure import Figure  # half a second, which only drawing pays

        figure = Figure(figsize=(9, 5), layout="constrained", dpi=120)
        picture, overlay = figure.subplots(1, 2)
        grey = np.asarray(self.image.convert("L"))
        picture.imshow(self.image)
        picture.set_title("as the detector takes it", fontsize="medium")
        known = self.values[np.isfinite(self.values)]
        low, high = np.quantile(known, QUANTILES) if known.size else (0.0, 1.0)
        overlay.imshow(grey, cmap="gray", vmin=0, vmax=255)
        drawn = overlay.imshow(self.values, cmap="inferno", alpha=OVERLAY, vmin=low, vmax=high)
        overlay.set_title("where reconstruction surprises", fontsize="medium")
        for axes in (picture, overlay):
            axes.set_axis_off()
        label = (
            f"{self.score.replace('_', ' ')}, mean of {self.runs} masks\n"
            f"(each patch hidden {self.shown.min()} to {self.shown.max()} times)"
        )
        figure.colorbar(drawn, ax=overlay, label=label, shrink=0.8, extend="both")
        figure.supxlabel("\n".join(textwrap.wrap(STATEMENT, 110)), fontsize="small")
        return figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the figure as PNG, complete or not at all."""
        with replacing(path) as partial:
            self.figure().savefig(partial, format="png")


def assemble(
    image: Image.Image,
    transform: MultiCrop,
    values: Float[np.ndarray, "n l"],
    shown: Int[np.ndarray, "n l"],
    *,
    runs: int,
    score: Score,
) -> LcasMap:
    """Lays the patches of all crops where their pixels come from; where they overlap, the mean.

    Args:
      image: upright, before any resize.
      transform: that made the crops.
      values: mean score of every patch of every crop.
      shown: number of masks that hid it.
      runs, score: for ``LcasMap``.
    """
    if transform.resize:
        image = resize_short(image, transform.resize)
    grid = round(values.shape[1] ** 0.5)
    patches, shown = (part.reshape(-1, grid, grid) for part in (values, shown))
    side = transform.size // grid
    pixels = patches.repeat(side, axis=1).repeat(side, axis=2).astype(np.float64)
    total, count = np.zeros((2, image.height, image.width))
    for (rows, columns), crop in zip(origins(image.size, transform), pixels, strict=True):
        known = np.isfinite(crop)
        np.add.at(total, (rows[known], columns[known]), crop[known])
        np.add.at(count, (rows[known], columns[known]), 1)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return LcasMap(image, mean.astype(np.float32), patches, shown, runs, score)


def origins(size: tuple[int, int], transform: MultiCrop) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row and column that each pixel of each crop comes from, reflection included.

    They are cut out of a picture that holds its own coordinates, by the function that cuts.
    """
    width, height = size
    coded = np.empty((height, width, 4), np.uint8)
    for channel, along in ((0, np.arange(height)[:, None]), (2, np.arange(width)[None])):
        coded[..., channel], coded[..., channel + 1] = along >> 8, along & 255
    image = Image.fromarray(coded)
    cut = multi_crop(image, transform.size, num_crops=transform.num_crops).astype(np.int64)
    return [(crop[..., 0] << 8 | crop[..., 1], crop[..., 2] << 8 | crop[..., 3]) for crop in cut]
