"""The prediction for one image: score, verdict, and reasons for caution in words."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from PIL import Image

from cinemae_jax.data.augment import recompress, rescale
from cinemae_jax.data.transforms import MultiCrop
from cinemae_jax.detector.bundle import TrainingView
from cinemae_jax.detector.calibration import Verdict
from cinemae_jax.detector.heatmap import RUNS, LcasMap
from cinemae_jax.detector.inputs import Picture, Source
from cinemae_jax.model.config import Score

# The crops are a partial view if they cover a smaller share of the image than this.
SMALL_SHARE = 0.5

# Mild changes that should not change a verdict: sending an image in a chat does as much.
ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 90": functools.partial(recompress, quality=90),
    "JPEG 75": functools.partial(recompress, quality=75),
    "resize 75 %": functools.partial(rescale, scale=0.75),
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
      path: of the file; empty for other sources.
      probability: calibrated probability of AI; None if the image could not be scored.
      verdict: ``ai``, ``nature`` or ``inconclusive``; None if the image could not be scored.
      flags: reasons for caution, each ``name: words``.
      error: why the image could not be scored; None if it was.
      detector: name of the detector and the first digits of its hash.
      seconds: decoding time plus this image's share of its batch, without compilation.
      logit: mean over all groups of runs and all crops; gives probability and verdict.
      uncertainty: standard deviation of the probability between groups of runs, each as large as
        in training; None with fewer than two groups (``runs``).
      example_id: hash of the pixels, by which the masks are drawn; None for an unread image.
      stability: probability after each mild change, if requested.
    """

    path: str
    probability: float | None
    verdict: Verdict | None
    flags: tuple[str, ...]
    error: str | None
    detector: str
    seconds: float
    logit: float | None = None
    uncertainty: float | None = None
    example_id: int | None = None
    stability: dict[str, float] | None = None
    _map: Callable[..., LcasMap] | None = dataclasses.field(
        default=None, repr=False, compare=False, kw_only=True
    )

    def lcas_map(self, runs: int = RUNS, score: Score | None = None) -> LcasMap:
        """The heat map of the image, computed on demand (``Detector.lcas_map``).

        Raises:
          ValueError: if the image could not be scored.
        """
        if self._map is None:
            raise ValueError(f"{self.path or 'this image'} was not scored: {self.error}")
        return self._map(runs=runs, score=score)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        record.pop("_map")
        return record | {"flags": list(self.flags)}


@dataclasses.dataclass(frozen=True, eq=False)
class PictureFacts:
    """A ``Picture`` without its pixels.

    Attributes:
      source: to read the image again.
      size: width and height, pixels.
      example_id, format, animated, transparent, notes: as in ``Picture``.
    """

    source: Source
    size: tuple[int, int]
    example_id: int
    format: str
    animated: bool
    transparent: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, picture: Picture, source: Source) -> "PictureFacts":
        return cls(
            source,
            picture.image.size,
            picture.example_id,
            picture.format,
            picture.animated,
            picture.transparent,
            picture.notes,
        )


def flags_of(facts: PictureFacts, transform: MultiCrop, seen: TrainingView | None) -> list[str]:
    """Reasons for caution that follow from the file alone.

    Args:
      facts: of the image.
      transform: of the detector.
      seen: training files of the detector; None gives no flags about them.
    """
    found = []
    short, (width, height) = min(facts.size), facts.size
    if seen and facts.format and facts.format not in seen.formats:
        formats = ", ".join(seen.formats)
        found.append(f"format: {facts.format}, but the training images were {formats}")
    if seen and not seen.shorter_sides[0] <= short <= seen.shorter_sides[1]:
        sides = "-".join(str(side) for side in dict.fromkeys(seen.shorter_sides))
        found.append(
            f"size: the shorter side is {short} pixels; in the training images it was {sides}"
        )
    if short < (transform.resize or transform.size):
        what = "enlarged to" if transform.resize else "mirrored at its border to fill"
        wanted = transform.resize or transform.size
        found.append(f"small: {width} x {height} pixels, {what} {wanted} pixels")
    if (share := share_seen(facts.size, transform)) < SMALL_SHARE:
        found.append(f"partial_view: the score covers {percent(share)} of the image")
    if facts.animated:
        found.append("animated: only the first frame was scored")
    if facts.transparent:
        found.append("transparent: composited over white")
    return [*found, *facts.notes]


def low_context(uniform_share: float) -> str:
    """The flag of an image with too little context to reconstruct from."""
    return (
        f"low_context: {percent(uniform_share)} of the scored area is nearly uniform, too little "
        "to reconstruct from; the verdict is inconclusive whatever the probability"
    )


def unstable(verdict: str, others: dict[str, str]) -> list[str]:
    """A flag if a mild change changes the verdict."""
    changed = [f"{other} after {name}" for name, other in others.items() if other != verdict]
    return [f"unstable: the verdict {verdict} becomes {', '.join(changed)}"] if changed else []


def share_seen(size: tuple[int, int], transform: MultiCrop) -> float:
    """Share of the image's area inside the crops."""
    scale = transform.resize / min(size) if transform.resize else 1.0
    reach = math.isqrt(transform.num_crops) * transform.size  # of a grid, along each side
    return math.prod(min(1.0, reach / (side * scale)) for side in size)


def percent(share: float) -> str:
    """For example ``42 %``; a small positive share is not rounded to 0."""
    return "less than 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"
