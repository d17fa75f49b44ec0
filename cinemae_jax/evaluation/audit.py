"""What an accuracy is worth: the same images scored under other conditions, and what follows.

In: a function that scores images after a change of the detector's transform.  Out: comparisons with
paired intervals, and sentences about them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.equalise import Equalise
from cinemae_jax.data.records import NATURE
from cinemae_jax.data.shortcuts import CLEAR
from cinemae_jax.data.transforms import Transform
from cinemae_jax.evaluation import metrics
from cinemae_jax.evaluation.calibration import Calibration
from cinemae_jax.evaluation.controls import CONTENT, CONTENT_SIDE, RECIPE
from cinemae_jax.evaluation.corruptions import PUSHES, Corrupted, Corruption
from cinemae_jax.evaluation.metrics import Estimate, Row
from cinemae_jax.evaluation.probes import SPECTRUM_BINS, ProbeResult

Change = Callable[[Transform], Transform]
"""The detector's transform to the one that is used in its place."""


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


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Of every interval; fields as in ``metrics.evaluate``."""

    bootstrap: int = 1000
    confidence: float = 0.95
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two scorings of the same images: a row a generator, and last the mean of all.

    Attributes:
      before, after: of ``metrics.evaluate``.
      difference: after less before, paired (``metrics.compare``).
    """

    before: list[Row]
    after: list[Row]
    difference: list[Row]


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
    options = dataclasses.asdict(resampling)

    def measured(scored: Scored) -> list[Row]:
        known = images.labels, scored.logit, generators, valid
        return metrics.evaluate(*known, calibration=calibration, **options)

    difference = metrics.compare(
        images.labels,
        before.logit,
        after.logit,
        generators,
        valid,
        calibrations=(calibration, calibration),
        **options,
    )
    return Comparison(measured(before), measured(after), difference)


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


# --- in words -----------------------------------------------------------------------------------

PROBES = {
    "file facts": "file facts alone (format, mode, size, JPEG quality)",
    "spectrum": f"{SPECTRUM_BINS} numbers of the spectrum alone",
}


def probes_in_words(found: Mapping[str, ProbeResult]) -> list[str]:
    """A sentence a probe: how much of the task is solved without any detector."""
    said = []
    for name, probe in found.items():
        metrics_of = probe.rows[-1].metrics
        auc = metrics_of["auc"]
        if math.isnan(auc.value):
            does = "cannot be judged: a generator has too few readable images of a class"
            said.append(f"{PROBES[name]} {does}")
            continue
        known = "say something about the class" if auc.low > 0.5 else "tell nothing measurable"
        does = "separate the classes" if auc.value >= CLEAR else known
        said.append(
            f"{PROBES[name]} {does}, without any detector: AUC {number(auc)}, accuracy "
            f"{percent(metrics_of['accuracy'])} (mean of generators, {probe.learned})"
        )
    return said


def equalised_in_words(found: Comparison, *, side: int, quality: int) -> list[str]:
    """What is left once format, size and quality say nothing any more."""
    before, after, change = (
        rows[-1].metrics for rows in (found.before, found.after, found.difference)
    )
    return [
        f"with both classes saved anew (short side {side}, JPEG {quality}) the mean {name} "
        f"{moves(change[metric])}: {shown(before[metric])} raw, {shown(after[metric])} equalised "
        f"({signed(change[metric])})"
        for metric, name, shown in (("accuracy", "accuracy", percent), ("auc", "AUC", number))
    ]


def pushes_in_words(found: Mapping[str, Comparison]) -> list[str]:
    """A sentence a push: how many photographs become AI."""
    said = []
    for name, comparison in found.items():
        shares = []
        for metric, where in (
            ("nature_accuracy", "at probability 0.5"),
            ("nature_accuracy_calibrated", "at the calibrated threshold"),
        ):
            before, after = (
                called_ai(rows[-1].metrics[metric])
                for rows in (comparison.before, comparison.after)
            )
            if not math.isnan(before.value):
                change = negative(comparison.difference[-1].metrics[metric])
                shares.append(
                    f"{percent(before)} before and {percent(after)} after {where} "
                    f"({signed(change)})"
                )
        said.append(f"of photographs pushed through {name}, called ai: {'; '.join(shares)}")
    return said


def controls_in_words(found: Mapping[str, Comparison]) -> list[str]:
    """A sentence a control: whether the recipe with a trained MAE is any better."""
    said = []
    for name, comparison in found.items():
        if name == RECIPE:
            continue
        recipe, other, change = (
            rows[-1].metrics["auc"]
            for rows in (comparison.before, comparison.after, comparison.difference)
        )
        if other.value == other.low == other.high == 0.5:  # all scores alike, in every resample
            said.append(f"{name} has learned nothing: its scores are all alike, and say nothing")
            continue
        numbers = f"AUC {number(other)} against {number(recipe)} ({signed(change)})"
        if name == CONTENT:
            said.append(
                f"on images reduced to {CONTENT_SIDE} pixels and blown up, trained and scored "
                f"anew, the recipe reaches {numbers}: what is left is subject and style"
            )
        elif change.high < 0:
            said.append(f"the recipe is better than {name}: {numbers}")
        elif change.low > 0:
            said.append(f"the recipe is worse than {name}: {numbers}")
        else:
            said.append(f"the recipe is not measurably better than {name}: {numbers}")
    return said


def called_ai(right: Estimate) -> Estimate:
    """Share of photographs called AI, from the share called nature."""
    return Estimate(1 - right.value, 1 - right.high, 1 - right.low)


def negative(estimate: Estimate) -> Estimate:
    """Of a difference: the other way round."""
    return Estimate(-estimate.value, -estimate.high, -estimate.low)


def moves(change: Estimate) -> str:
    """Falls, rises, or neither as far as the interval tells."""
    if change.high < 0:
        return "falls"
    return "rises" if change.low > 0 else "does not change measurably"


def percent(estimate: Estimate) -> str:
    """For example ``71.3 %``."""
    return "–" if math.isnan(estimate.value) else f"{100 * estimate.value:.1f} %"


def number(estimate: Estimate) -> str:
    """For example ``0.713``."""
    return "–" if math.isnan(estimate.value) else f"{estimate.value:.3f}"


def signed(change: Estimate) -> str:
    """A difference in points of 100, with its interval: ``-3.1 [-5.0, -1.2]``."""
    if math.isnan(change.value):
        return "–"
    interval = "" if math.isnan(change.low) else f" [{_point(change.low)}, {_point(change.high)}]"
    return f"{_point(change.value)}{interval}"


def _point(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # + 0.0: no minus before nothing
