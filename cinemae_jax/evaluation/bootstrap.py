"""Resamples of scored images as weights, and every metric of many resamples at once.

A resample says how often each image is drawn; ``Weighted`` sorts the scores once and turns many
such weightings into metrics, equal to scikit-learn's with ``sample_weight``.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from cinemae_jax.detector.calibration import Calibration

# Of the expected calibration error: equally wide in the probability of AI, the last closed.
ECE_BINS = 15
# Metric: share of photographs called AI at which the AI images found are counted.
FALSE_POSITIVE_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}
CHUNK = 32  # resamples at a time: their weights stay within a few MB

Weights = Float[np.ndarray, "b n"]


def resamples(
    cells: Int[np.ndarray, " n"], groups: np.ndarray | None, *, times: int, seed: int
) -> Iterator[Weights]:
    """How often each image is drawn in each of ``times`` resamples, some resamples at a time.

    Groups are drawn whole, with replacement, one draw for all generators: a prompt that several of
    them were given counts in all or in none.  Those within one cell are drawn among themselves, so
    that without groups every class of every generator keeps its size; the others are drawn among
    those that hold the same classes.

    Args:
      cells: 2 · generator + label, of each image.
      groups: name of the group of each image; None makes each image its own.
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
    """Of each group: the cell it lies in, or, negative, the classes that it holds."""
    count = group.max(initial=-1) + 1
    low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(low, group, cells)
    np.maximum.at(high, group, cells)
    classes = [np.bincount(group[cells % 2 == label], minlength=count) > 0 for label in (0, 1)]
    return np.where(low == high, low, -(classes[0] + 2 * classes[1]))


def _draw(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """(count, size): how often each of ``size`` things comes up in ``size`` draws."""
    drawn = rng.integers(size, size=(count, size)) + size * np.arange(count)[:, None]
    return np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size)


def balanced(weights: Weights, labels: Int[np.ndarray, " n"]) -> Weights:
    """Scales each class to the sum of weights that it has in the set: its number of images.

    Groups differ in size, and the share of AI images is a choice of the set's, not chance.  NaN
    where a class was not drawn at all.
    """
    scaled = weights.copy()
    with np.errstate(invalid="ignore", divide="ignore"):
        for label in (0, 1):
            own = labels == label
            scaled[:, own] *= own.sum() / weights[:, own].sum(axis=1, keepdims=True)
    return scaled


def ece_bin(probability: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Which of ``ECE_BINS`` a probability falls into."""
    return np.minimum((probability * ECE_BINS).astype(np.int64), ECE_BINS - 1)


def probability_of(
    logits: Float[np.ndarray, " n"], calibration: Calibration | None
) -> Float[np.ndarray, " n"]:
    """Of AI; the head's own where there is no calibration."""
    return (
        expit(logits.astype(np.float64)) if calibration is None else calibration.probability(logits)
    )


def threshold_of(calibration: Calibration | None) -> float:
    """Logit above which an image is called AI; NaN if none was fitted."""
    threshold = None if calibration is None else calibration.ai_threshold
    return float("nan") if threshold is None else threshold


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Scores of some images, made ready for any number of weightings.

    Attributes:
      order: of the images, by falling logit.
      ends: in that order, the last image of each run of equal logits.
      is_ai: in that order.
      sums: (N, C), in that order: what is summed over images, column by column (``_SUMS``).
      has_threshold: whether a calibrated threshold is known.
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
        """Sorts scores, none of which is NaN."""
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
        """Each metric under each weighting (of the images as they were given); NaN if undefined."""
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
        """What depends on the order alone; a threshold lies after each of ``ends``."""
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
