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
from cinemae_jax.data.transforms import MultiCrop, crop_boxes, reflect_to
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
FIGURE_SIDE = 1024  # longest side of an image in a figure, pixels
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
            grey = _thumbnail(grey, max_side)
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
            (left, _thumbnail(self.image, FIGURE_SIDE), "input of the detector"),
            (right, self.overlay(FIGURE_SIDE), TITLE),
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


def _thumbnail(image: Image.Image, max_side: int) -> Image.Image:
    """The image, or a smaller copy whose longest side is ``max_side``."""
    if max(image.size) <= max_side:
        return image
    scale = max_side / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC, reducing_gap=2.0)


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
    origin = [rows * image.width + columns for rows, columns in origins(image.size, transform)]
    known = np.isfinite(pixels)
    places, at = np.unique(np.stack(origin)[known], return_inverse=True)
    mean = np.full(image.height * image.width, np.nan, np.float32)
    mean[places] = np.bincount(at, pixels[known]) / np.bincount(at)
    values = mean.reshape(image.height, image.width)
    return LcasMap(image, values, patches, shown, runs, score)


def origins(size: tuple[int, int], transform: MultiCrop) -> list[tuple[np.ndarray, np.ndarray]]:
    """Source row and column of every pixel of every crop, including reflection at the border."""
    found = []
    for left, top, right, bottom in crop_boxes(size, transform.size, num_crops=transform.num_crops):
        places = np.moveaxis(np.mgrid[top:bottom, left:right], 0, -1)
        cut = reflect_to(places, transform.size)
        found.append((cut[..., 0], cut[..., 1]))
    return found
