"""The same images scored by the same detector under changed conditions, and compared.

In: a function that scores images through a changed transform.  Out: comparisons with paired
intervals.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from cinemae_jax.audit.corruptions import PUSHES, Corrupted, Corruption
from cinemae_jax.audit.equalise import Equalise
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.records import NATURE
from cinemae_jax.data.transforms import Transform
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.evaluation import metrics
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.metrics import ScoredImages

# Maps the detector's transform to the one that replaces it.
Change = Callable[[Transform], Transform]


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of N images.

    Attributes:
      logit: (N,), positive for AI; NaN where an image could not be read.
      low_context: (N,) flags (method.md 6).
      statistics: what the head reads besides f_global, by name, in standard deviations of the
        training images; several columns form one vector.
    """

    logit: Float[np.ndarray, " n"]
    low_context: Bool[np.ndarray, " n"]
    statistics: Mapping[str, Float[np.ndarray, "n k"]] = dataclasses.field(default_factory=dict)


class Score(Protocol):
    """A detector that the audit can call."""

    def __call__(self, images: Catalog, change: Change) -> Scored:
        """Scores images through a changed transform."""


def compared(
    images: Catalog,
    before: Scored,
    after: Scored,
    resampling: Resampling,
    calibration: Calibration | None = None,
) -> Comparison:
    """Metrics before and after; an image that either scoring could not read counts in neither."""
    generators = np.array(images.table["generator"].to_pylist())
    valid = ~np.isnan(before.logit) & ~np.isnan(after.logit)
    first = ScoredImages(images.labels, before.logit, generators, valid)
    second = dataclasses.replace(first, logit=after.logit)
    return Comparison(
        metrics.evaluate(first, resampling, calibration=calibration),
        metrics.evaluate(second, resampling, calibration=calibration),
        metrics.compare(first, after.logit, resampling, calibration=calibration),
    )


def sample(images: Catalog, count: int) -> Catalog:
    """At most ``count`` images per class and generator: those with the smallest example ids.

    The choice does not depend on the order of the images, nor on other classes and generators.
    0 keeps all images.
    """
    if not count:
        return images
    ids = images.table["example_id"].to_numpy()
    generators, labels = images.table["generator"].to_pylist(), images.labels.tolist()
    cells = [f"{name}\0{label}" for name, label in zip(generators, labels, strict=True)]
    _, cell = np.unique(cells, return_inverse=True)
    order = np.lexsort((ids, cell))
    starts = np.searchsorted(cell[order], cell[order])
    kept = np.zeros(len(ids), bool)
    kept[order[np.arange(len(ids)) - starts < count]] = True
    return dataclasses.replace(images, table=images.table.filter(pa.array(kept)))


# --- the comparisons ----------------------------------------------------------------------------


def equalised(
    score: Score,
    images: Catalog,
    clean: Scored,
    *,
    side: int,
    quality: int,
    resampling: Resampling,
    calibration: Calibration | None = None,
) -> Comparison:
    """Files as they are against equalised ones: same shorter side, same JPEG quality."""
    again = score(images, functools.partial(Equalise, side=side, quality=quality))
    return compared(images, clean, again, resampling, calibration)


def pushed(
    score: Score,
    images: Catalog,
    clean: Scored,
    *,
    resampling: Resampling,
    calibration: Calibration | None = None,
    pushes: Sequence[Corruption] = PUSHES,
) -> dict[str, Comparison]:
    """Photographs alone, before and after changes that have nothing to do with generation.

    The share called AI is 1 - ``nature_accuracy``; metrics of two classes are undefined.
    """
    is_nature = images.labels == NATURE
    nature = dataclasses.replace(images, table=images.table.filter(pa.array(is_nature)))
    before = Scored(clean.logit[is_nature], clean.low_context[is_nature])
    return {
        repr(push): compared(
            nature, before, score(nature, corrupting(push)), resampling, calibration
        )
        for push in pushes
    }


def corrupting(corruption: Corruption) -> Change:
    """The change that applies a corruption before the detector's transform."""
    return functools.partial(Corrupted, corruption=corruption)


def unchanged(transform: Transform) -> Transform:
    """The change that changes nothing."""
    return transform
