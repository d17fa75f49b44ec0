"""What an accuracy is worth: the same images scored under other conditions, and what follows.

In: a function that scores images after a change of the detector's transform.  Out: comparisons with
paired intervals, and sentences about them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
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

# The detector's transform to the one that is used in its place.
Change = Callable[[Transform], Transform]


@dataclasses.dataclass(frozen=True)
class Scored:
    """What a detector says of some images.

    Attributes:
      logit: (N,), positive for AI; NaN where an image could not be read.
      low_context: (N,) flags (METHOD 8).
    """

    logit: Float[np.ndarray, " n"]
    low_context: Bool[np.ndarray, " n"]


class Score(Protocol):
    """A detector, as the audit needs it."""

    def __call__(self, images: Catalog, change: Change) -> Scored:
        """Scores images through a changed transform."""


def compared(
    images: Catalog,
    before: Scored,
    after: Scored,
    resampling: Resampling,
    calibration: Calibration | None = None,
) -> Comparison:
    """Measures both; an image that either could not read counts in neither."""
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
    """At most ``count`` images of each class of each generator: those of the least example ids.

    The same images whatever else is there; 0 takes all.
    """
    if not count:
        return images
    ids = images.table["example_id"].to_numpy()
    cells = [f"{g}\0{label}" for g, label in zip(*_cells(images), strict=True)]
    _, cell = np.unique(cells, return_inverse=True)
    order = np.lexsort((ids, cell))
    starts = np.searchsorted(cell[order], cell[order])
    kept = np.zeros(len(ids), bool)
    kept[order[np.arange(len(ids)) - starts < count]] = True
    return dataclasses.replace(images, table=images.table.filter(pa.array(kept)))


def _cells(images: Catalog) -> tuple[list[str], list[int]]:
    return images.table["generator"].to_pylist(), images.labels.tolist()


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
    """Raw against equalised: every file saved anew with the same short side and JPEG quality."""
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
    """Photographs alone, before and after a change that has nothing to do with generation.

    The share called AI is one less ``nature_accuracy``; metrics of two classes are undefined.
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
    """A corruption as a change of the detector's transform."""
    return functools.partial(Corrupted, corruption=corruption)


def unchanged(transform: Transform) -> Transform:
    """No change: the detector as it is."""
    return transform
