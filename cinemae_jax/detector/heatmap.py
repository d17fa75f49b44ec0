"""Heat maps: LCAS of every patch, averaged over masking runs and drawn over the image.

A heat map covers what the detector looks at and nothing else.  It shows where reconstruction fails,
not where a forgery is.
"""

import dataclasses
import functools
import os
import textwrap
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key
from PIL import Image

from cinemae_jax.data.augment import resize_short
from cinemae_jax.data.transforms import MultiCrop, multi_crop
from cinemae_jax.detector import inference
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.config import DetectorConfig, Score
from cinemae_jax.model.head import HeadState
from cinemae_jax.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Default number of masking runs: at a mask ratio of 0.75, 12 of them mask a patch on average.
RUNS = 16
# LCAS variant of the figures.  The deviation of the default score compares true patches with
# visible ones without using the model: its map hardly changes when the weights are random.
SHOWN: Score = "mismatch"

TITLE = "where reconstruction fails"
STATEMENT = (
    "Bright: the autoencoder predicted this patch badly from the rest of the image. The map shows "
    "where reconstruction fails, not where a forgery is: fine texture, text and edges are bright "
    "in photographs too. Grey: not looked at."
)
COLOURS = "inferno"
OVERLAY = 0.65  # opacity of the map over the image
QUANTILES = (0.02, 0.98)  # ends of the colour scale: one extreme patch does not dim the others

Frozen = tuple[Backbone, HeadState, Key[Array, ""]]


@dataclasses.dataclass(frozen=True, eq=False)
class LcasMap:
    """LCAS of every patch of one image.

    Attributes:
      image: input of the detector: upright, and resized if its preprocessing resizes.
      values: float32, the mean score of the patch at every pixel; NaN outside all crops.
      patches: mean score by crop and patch; NaN if no run masked the patch.
      shown: number of runs that masked each patch.
      runs: number of masking runs.
      score: LCAS variant.
    """

    image: Image.Image
    values: Float[np.ndarray, "h w"]
    patches: Float[np.ndarray, "n g g"]
    shown: Int[np.ndarray, "n g g"]
    runs: int
    score: Score

    @property
    def limits(self) -> tuple[float, float]:
        """Scores at the dark and at the bright end of the colours."""
        known = self.values[np.isfinite(self.values)]
        low, high = np.quantile(known, QUANTILES) if known.size else (0.0, 1.0)
        return float(low), float(high)

    def overlay(self, max_side: int | None = None) -> Image.Image:
        """The map in colours over the image in grey; plain grey outside all crops.

        Args:
          max_side: of the result, pixels; None keeps the size of the image.
        """
        from matplotlib import colormaps  # takes half a second: only drawing pays
        from matplotlib.colors import Normalize

        grey = self.image.convert("L")
        if max_side is not None:
            grey.thumbnail((max_side, max_side))
        rows, columns = (
            np.arange(side) * full // side
            for side, full in zip(grey.size[::-1], self.values.shape, strict=True)
        )
        values = self.values[np.ix_(rows, columns)]
        colours = colormaps[COLOURS](Normalize(*self.limits, clip=True)(values))[..., :3]
        ground = np.asarray(grey, np.float64)[..., None] / 255
        opacity = np.where(np.isfinite(values), OVERLAY, 0.0)[..., None]
        pixels = 255 * (opacity * colours + (1 - opacity) * ground)
        return Image.fromarray(np.round(pixels).astype(np.uint8))

    def figure(self) -> "Figure":
        """The image, and the overlay with its legend."""
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 5), layout="constrained", dpi=120)
        left, right = figure.subplots(1, 2)
        for axes, shown, title in (
            (left, self.image, "input of the detector"),
            (right, self.overlay(), TITLE),
        ):
            axes.imshow(shown)
            axes.set_title(title, fontsize="medium")
            axes.set_axis_off()
        label = (
            f"{self.score.replace('_', ' ')}, mean of {self.runs} masking runs\n"
            f"(each patch masked {self.shown.min()} to {self.shown.max()} times)"
        )
        colours = ScalarMappable(Normalize(*self.limits), COLOURS)
        figure.colorbar(colours, ax=right, label=label, shrink=0.8, extend="both", alpha=OVERLAY)
        figure.supxlabel("\n".join(textwrap.wrap(STATEMENT, 120)), fontsize="small")
        return figure

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the figure as PNG, atomically."""
        with replacing(path) as partial:
            self.figure().savefig(partial, format="png")


def compute(
    frozen: Frozen,
    image: Image.Image,
    example_id: int,
    transform: MultiCrop,
    config: DetectorConfig,
    *,
    runs: int = RUNS,
    score: Score = SHOWN,
) -> LcasMap:
    """The heat map of one image; compiled once per detector configuration, runs and score.

    Args:
      frozen: backbone, head and base key of the masks, on one device.
      image: upright RGB.
      example_id: the masks are drawn by its low 32 bits.
      transform: of the detector.
      config: of the detector.
      runs: number of masking runs.
      score: LCAS variant.
    """
    maps = _compiled(config, runs, score)
    crops = dataclasses.replace(transform, view=None).cut(image)
    values, shown = jax.device_get(maps(*frozen, crops, np.uint32(example_id & 0xFFFFFFFF)))
    return assemble(image, transform, values, shown, runs=runs, score=score)


@functools.cache
def _compiled(config: DetectorConfig, runs: int, score: Score) -> Any:
    return jax.jit(inference.make_maps(config, runs, score))


def assemble(
    image: Image.Image,
    transform: MultiCrop,
    values: Float[np.ndarray, "n l"],
    shown: Int[np.ndarray, "n l"],
    *,
    runs: int,
    score: Score,
) -> LcasMap:
    """Puts the patches of all crops where their pixels come from; overlaps are averaged.

    Args:
      image: upright, before any resize.
      transform: that made the crops.
      values: mean score of every patch of every crop.
      shown: number of runs that masked the patch.
      runs, score: of ``LcasMap``.
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
    """Source row and column of every pixel of every crop, including reflection at the border.

    Applies ``multi_crop`` to an image whose pixels encode their own coordinates.
    """
    width, height = size
    coded = np.empty((height, width, 4), np.uint8)
    for channel, along in ((0, np.arange(height)[:, None]), (2, np.arange(width)[None])):
        coded[..., channel], coded[..., channel + 1] = along >> 8, along & 255
    image = Image.fromarray(coded)
    cut = multi_crop(image, transform.size, num_crops=transform.num_crops).astype(np.int64)
    return [(crop[..., 0] << 8 | crop[..., 1], crop[..., 2] << 8 | crop[..., 3]) for crop in cut]
