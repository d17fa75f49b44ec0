"""Bootstrap resamples as image weights, and all metrics of many resamples at once.

A resample is the number of times that each image is drawn.  ``Weighted`` sorts the scores once and
turns many weightings into metrics, which equal scikit-learn's with ``sample_weight``.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.special import expit

from cinemae_jax.detector.calibration import Calibration

# Bins of the expected calibration error: equally wide in the probability of AI, the last closed.
ECE_BINS = 15
# Metric name → false-positive rate at which the true-positive rate is read.
FALSE_POSITIVE_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}
CHUNK = 32  # resamples at a time: their weights stay within a few MB

Weights = Float[np.ndarray, "b n"]
Names = Shaped[np.ndarray, " n"]  # strings, or anything that NumPy can sort


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Settings of the percentile bootstrap.

    Attributes:
      bootstrap: number of resamples; 0 gives no intervals.
      confidence: of the intervals, between 0 and 1.
      seed: of the draws.
    """

    bootstrap: int = 1000
    confidence: float = 0.95
    seed: int = 0


def resamples(
    cells: Int[np.ndarray, " n"], groups: Names | None, *, times: int, seed: int
) -> Iterator[Weights]:
    """Draw counts of every image in ``times`` resamples, up to ``CHUNK`` resamples at a time.

    Whole groups are drawn with replacement, once for all generators: a prompt given to several
    generators counts in all of them or in none.  Groups within one cell are drawn from that cell,
    so without groups every class of every generator keeps its size.  Groups that span cells are
    drawn from the groups with the same classes.

    Args:
      cells: 2 · generator + label of each image.
      groups: group name of each image; None draws images one by one.
      times: number of resamples.
      seed: of the draws.
    """
    if groups is None:
        group, strata = np.arange(len(cells)), cells
    else:
        _, group = np.unique(groups, return_inverse=True)
        strata = _strata(cells, group)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    rng = np.random.default_rng(seed)
    for start in range(0, times, CHUNK):
        count = min(CHUNK, times - start)
        drawn = np.zeros((count, len(strata)))
        for own in members:
            drawn[:, own] = _draw(rng, count, len(own))
        yield drawn if groups is None else drawn[:, group]


def _strata(cells: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Per group: its cell, or a negative code of its classes if it spans several cells."""
    count = group.max(initial=-1) + 1
    low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(low, group, cells)
    np.maximum.at(high, group, cells)
    classes = [np.bincount(group[cells % 2 == label], minlength=count) > 0 for label in (0, 1)]
    return np.where(low == high, low, -(classes[0] + 2 * classes[1]))


def _draw(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """(count, size) counts: ``size`` draws with replacement from ``size`` items, per row."""
    drawn = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)


def balanced(weights: Weights, labels: Int[np.ndarray, " n"]) -> Weights:
    """Scales the weights of each class to sum to its number of images; NaN if none was drawn.

    Groups differ in size, but the share of AI images is fixed by the data set, not random.
    """
    scaled = weights.copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        for label in (0, 1):
            own = labels == label
            scaled[:, own] *= own.sum() / weights[:, own].sum(axis=1, keepdims=True)
    return scaled


def ece_bin(probability: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Index of the ECE bin of each probability."""
    return np.minimum((probability * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def probability_of(
    logits: Float[np.ndarray, " n"], calibration: Calibration | None
) -> Float[np.ndarray, " n"]:
    """Probability of AI: calibrated, or the sigmoid of the logit without a calibration."""
    return (
        expit(logits.astype(np.float64)) if calibration is None else calibration.probability(logits)
    )


def threshold_of(calibration: Calibration | None) -> float:
    """Logit above which an image is called AI; NaN without a fitted threshold."""
    threshold = None if calibration is None else calibration.ai_threshold
    return float("nan") if threshold is None else threshold


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Sorted scores, ready for any number of weightings.

    Attributes:
      order: indices of the images by decreasing logit; the other arrays have this order.
      ends: last image of each run of equal logits.
      is_ai: whether an image is AI-generated.
      sums: per-image terms of the metrics that are weighted sums over images; one column each.
      has_threshold: whether there is a calibrated threshold.
    """

    order: Int[np.ndarray, " n"]
    ends: Int[np.ndarray, " u"]
    is_ai: Bool[np.ndarray, " n"]
    sums: Float[np.ndarray, "n c"]
    has_threshold: bool

    @classmethod
    def of(
        cls,
        labels: Int[np.ndarray, " n"],
        logits: Float[np.ndarray, " n"],
        calibration: Calibration | None = None,
    ) -> "Weighted":
        """Sorts scores; none may be NaN."""
        order = np.argsort(-logits, kind="stable")
        sorted_, is_ai = logits[order], labels[order] == 1
        ends = np.flatnonzero(np.append(sorted_[1:] != sorted_[:-1], True)[: len(order)])
        probability, threshold = probability_of(sorted_, calibration), threshold_of(calibration)
        errors = probability - is_ai
        bins = np.zeros((len(order), ECE_BINS))
        bins[np.arange(len(order)), ece_bin(probability)] = errors
        called, called_at = sorted_ > 0, sorted_ > threshold
        columns = (~is_ai, is_ai, ~is_ai & ~called, is_ai & called)
        calibrated = (~is_ai & ~called_at, is_ai & called_at)
        sums = np.column_stack([*columns, *calibrated, errors**2, bins]).astype(np.float64)
        return cls(order, ends, is_ai, sums, not np.isnan(threshold))

    def metrics(self, weights: Weights) -> dict[str, Float[np.ndarray, " b"]]:
        """Every metric under every weighting, NaN where undefined; columns are in input order."""
        weights = weights[:, self.order]
        sums = (weights @ self.sums).T
        nature, ai, nature_right, ai_right, nature_right_at, ai_right_at, squares = sums[:7]
        total = nature + ai
        with np.errstate(invalid="ignore", divide="ignore"):
            result = {
                "accuracy": (nature_right + ai_right) / total,
                "nature_accuracy": nature_right / nature,
                "ai_accuracy": ai_right / ai,
                **self._ranking(weights, nature, ai),
                "accuracy_calibrated": (nature_right_at + ai_right_at) / total,
                "nature_accuracy_calibrated": nature_right_at / nature,
                "ai_accuracy_calibrated": ai_right_at / ai,
                "ece": np.abs(sums[7:]).sum(axis=0) / total,
                "brier": squares / total,
            }
        if not self.has_threshold:
            result |= {name: np.full(len(weights), np.nan) for name in result if "calib" in name}
        return result

    def _ranking(
        self, weights: Weights, nature: np.ndarray, ai: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Metrics that depend only on the ranking, with one threshold after each of ``ends``."""
        above = np.cumsum(weights, axis=1)[:, self.ends]
        true = np.cumsum(weights * self.is_ai, axis=1)[:, self.ends]
        false = above - true
        new_true, new_false = (np.diff(part, axis=1, prepend=0) for part in (true, false))
        precision = np.divide(true, above, out=np.zeros_like(true), where=above > 0)
        both = np.where((nature > 0) & (ai > 0), 1.0, np.nan)
        rising = np.concatenate([np.zeros((len(true), 1)), true], axis=1)
        false_rate = false / nature[:, None]
        return {
            "ap": both * np.einsum("bu,bu->b", new_true, precision) / ai,
            "auc": both * np.einsum("bu,bu->b", new_false, true - new_true / 2) / (nature * ai),
            **{
                name: both * rising[np.arange(len(true)), (false_rate <= rate).sum(axis=1)] / ai
                for name, rate in FALSE_POSITIVE_RATES.items()
            },
        }
