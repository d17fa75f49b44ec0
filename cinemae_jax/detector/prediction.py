"""What a detector says of one picture: numbers, a verdict, and reasons for care in plain words."""

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

# Share of the picture below which the detector's crops count as a partial view.
SMALL_SHARE = 0.5

# What a verdict should survive: a picture meets as much whenever it is sent to a friend.
ALTERATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 90": functools.partial(recompress, quality=90),
    "JPEG 75": functools.partial(recompress, quality=75),
    "resize 75 %": functools.partial(rescale, scale=0.75),
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the detector says of one picture.

    Attributes:
      path: of the file; empty for what was not one.
      probability: of AI, calibrated; None if the picture could not be scored.
      verdict: ``ai``, ``nature`` or ``inconclusive``; None if it could not be scored.
      flags: reasons for care, each ``name: words``.
      error: why it could not be scored; None if it was.
      detector: which one: its name and the first digits of its hash.
      seconds: of decoding, and its share of its batch; compilation apart.
      logit: what probability and verdict come from: the mean over all masks and crops.
      uncertainty: standard deviation of the probability between groups of as many masks as the
        detector was trained with; None unless at least two groups were asked for (``runs``).
      example_id: hash of the pixels, by which masks are drawn; None if there are none.
      stability: probabilities after mild changes, if asked for.
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
        """Where the picture is anomalous, computed when asked for (``Detector.lcas_map``).

        Raises:
          ValueError: if the picture could not be scored.
        """
        if self._map is None:
            raise ValueError(f"{self.path or 'this picture'} was not scored: {self.error}")
        return self._map(runs=runs, score=score)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        record.pop("_map")
        return record | {"flags": list(self.flags)}


@dataclasses.dataclass(frozen=True, eq=False)
class PictureFacts:
    """What of a picture outlives its pixels.

    Attributes:
      source: where to read it again.
      size: width and height.
    """

    source: Source
    size: tuple[int, int]
    example_id: int
    format: str
    animated: bool
    transparent: bool

    @classmethod
    def of(cls, picture: Picture, source: Source) -> "PictureFacts":
        return cls(
            source,
            picture.image.size,
            picture.example_id,
            picture.format,
            picture.animated,
            picture.transparent,
        )


def flags_of(facts: PictureFacts, transform: MultiCrop, seen: TrainingView | None) -> list[str]:
    """Reasons for care that the file itself gives.

    Args:
      facts: of the picture.
      transform: of the detector.
      seen: what the detector was trained on, where that is known: nothing is guessed.
    """
    found = []
    short, (width, height) = min(facts.size), facts.size
    if seen and facts.format and facts.format not in seen.formats:
        formats = ", ".join(seen.formats)
        found.append(f"format: {facts.format}, and training saw {formats} alone")
    if seen and not seen.shorter_sides[0] <= short <= seen.shorter_sides[1]:
        sides = "-".join(str(side) for side in dict.fromkeys(seen.shorter_sides))
        found.append(
            f"size: its shorter side is {short} pixels, those of the training images {sides}"
        )
    if short < (transform.resize or transform.size):
        what = "enlarged to" if transform.resize else "mirrored at its border to fill"
        wanted = transform.resize or transform.size
        found.append(f"small: {width} x {height} pixels, {what} {wanted}")
    if (share := share_seen(facts.size, transform)) < SMALL_SHARE:
        found.append(f"partial_view: the score rests on {percent(share)} of the picture")
    if facts.animated:
        found.append("animated: its first frame was scored, the others were not")
    if facts.transparent:
        found.append("transparent: it was laid over white")
    return found


def low_context(uniform_share: float) -> str:
    """The flag of a picture with little to reconstruct from."""
    return (
        f"low_context: {percent(uniform_share)} of what was looked at is nearly uniform, so that "
        "there is little to go by; the verdict is inconclusive whatever the probability"
    )


def unstable(verdict: str, others: dict[str, str]) -> list[str]:
    """A flag if mild changes turn the verdict into another."""
    turned = [f"{other} after {name}" for name, other in others.items() if other != verdict]
    return [f"unstable: {verdict} as it is, {', '.join(turned)}"] if turned else []


def share_seen(size: tuple[int, int], transform: MultiCrop) -> float:
    """Share of a picture's area that lies in a crop."""
    scale = transform.resize / min(size) if transform.resize else 1.0
    reach = math.isqrt(transform.num_crops) * transform.size  # of a grid, along each side
    return math.prod(min(1.0, reach / (side * scale)) for side in size)


def percent(share: float) -> str:
    """What is not quite nothing is not shown as nothing."""
    return "less than 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %"
