"""Metrics with bootstrap intervals: per generator, their mean, and the worst generator.

In: labelled scores, one row per image.  Undefined values (a single class, no image) are NaN.
A percentile interval cannot show what was never drawn.  If all n images are right, its width is 0
although the error rate may be as high as 3/n; the same holds for a class with a single image or
group.  The true-positive rate at a false-positive rate has no interval with too few photographs.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.evaluation.bootstrap import (
    ECE_BINS,
    FALSE_POSITIVE_RATES,
    Names,
    Resampling,
    Weighted,
    balanced,
    ece_bin,
    probability_of,
    resamples,
    threshold_of,
)

Labels = Int[np.ndarray, " n"]
Logits = Float[np.ndarray, " n"]
Probabilities = Float[np.ndarray, " n"]

NAN = float("nan")
LOWER_IS_BETTER = frozenset({"ece", "brier"})
# False positives that a rate must allow among a generator's photographs for an interval of the
# true-positive rate.  With fewer, the threshold is one of the few highest photographs.  Resamples
# can drop these but not exceed them, so the interval may lie above the value itself.
LEAST_FALSE_ALARMS = 5


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredImages:
    """Labelled scores, one row per image.

    Attributes:
      label: 0 nature, 1 AI.
      logit: positive for AI; an image whose logit is NaN counts as unread.
      generator: whose set the image belongs to.
      valid: False for unread images; they are counted but not scored.
      group: name of the group that is resampled as one, for example the prompt; a group may span
        generators.  None resamples images one by one.
    """

    label: Labels
    logit: Logits
    generator: Names
    valid: Bool[np.ndarray, " n"]
    group: Names | None = None

    @property
    def scored(self) -> Bool[np.ndarray, " n"]:
        """Images that the metrics count."""
        return self.valid & ~np.isnan(self.logit)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap interval; NaN where undefined."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Row:
    """Results on one generator, or the mean over generators.

    Attributes:
      name: of the generator.
      nature, ai: number of scored images.
      bad: number of unread images, including those whose score is NaN; no metric counts them.
      metrics: by name (``METRICS``).
    """

    name: str
    nature: int
    ai: int
    bad: int
    metrics: dict[str, Estimate]


# --- one metric ---------------------------------------------------------------------------------


def accuracy(labels: Labels, logits: Logits, threshold: float = 0.0) -> float:
    """Share of images on the right side of a logit; 0 is the head's probability 0.5."""
    if not len(labels) or np.isnan(threshold) or np.isnan(logits).any():
        return NAN
    return float(((logits > threshold) == (labels == 1)).mean())


def nature_accuracy(labels: Labels, logits: Logits, threshold: float = 0.0) -> float:
    """Share of photographs called nature."""
    return accuracy(labels[labels == 0], logits[labels == 0], threshold)


def ai_accuracy(labels: Labels, logits: Logits, threshold: float = 0.0) -> float:
    """Share of AI-generated images called AI."""
    return accuracy(labels[labels == 1], logits[labels == 1], threshold)


def auc(labels: Labels, logits: Logits) -> float:
    """Area under the ROC curve."""
    return float(roc_auc_score(labels, _ranks(logits))) if _ranked(labels, logits) else NAN


def average_precision(labels: Labels, logits: Logits) -> float:
    """Average precision with AI as the positive class."""
    known = _ranked(labels, logits)
    return float(average_precision_score(labels, _ranks(logits))) if known else NAN


def tpr_at_fpr(labels: Labels, logits: Logits, fpr: float) -> float:
    """True-positive rate at the lowest threshold whose false-positive rate is at most ``fpr``.

    The threshold is chosen on the same images, without interpolation.
    """
    if not _ranked(labels, logits):
        return NAN
    false, true, _ = roc_curve(labels, _ranks(logits), drop_intermediate=False)
    return float(true[false <= fpr].max())


def brier(labels: Labels, probability: Probabilities) -> float:
    """Mean squared difference between the probability of AI and the label."""
    if not len(labels) or np.isnan(probability).any():
        return NAN
    return float(brier_score_loss(labels, probability, pos_label=1, labels=[0, 1]))


def ece(labels: Labels, probability: Probabilities) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015).

    |mean probability - share of AI images| per bin, averaged with the bins' image counts over
    ``ECE_BINS`` equally wide bins.  Noise within bins biases it upwards, the more so for few images
    and for resamples.
    """
    if not len(labels) or np.isnan(probability).any():
        return NAN
    errors = np.bincount(ece_bin(probability), weights=probability - labels, minlength=ECE_BINS)
    return float(np.abs(errors).sum() / len(labels))


def values(
    labels: Labels, logits: Logits, calibration: Calibration | None = None
) -> dict[str, float]:
    """Every metric by name; NaN where undefined.

    Args:
      labels: (N,) 0 nature, 1 AI.
      logits: (N,) positive for AI.
      calibration: threshold of ``*_calibrated`` (NaN without one), and probabilities of ECE and
        Brier score (without a calibration, the sigmoid of the logit).
    """
    probability, threshold = probability_of(logits, calibration), threshold_of(calibration)
    return {
        "accuracy": accuracy(labels, logits),
        "nature_accuracy": nature_accuracy(labels, logits),
        "ai_accuracy": ai_accuracy(labels, logits),
        "ap": average_precision(labels, logits),
        "auc": auc(labels, logits),
        **{name: tpr_at_fpr(labels, logits, rate) for name, rate in FALSE_POSITIVE_RATES.items()},
        "accuracy_calibrated": accuracy(labels, logits, threshold),
        "nature_accuracy_calibrated": nature_accuracy(labels, logits, threshold),
        "ai_accuracy_calibrated": ai_accuracy(labels, logits, threshold),
        "ece": ece(labels, probability),
        "brier": brier(labels, probability),
    }


def _ranked(labels: Labels, logits: Logits) -> bool:
    """Whether both classes are present and no score is NaN."""
    return len(np.unique(labels)) == 2 and not bool(np.isnan(logits).any())


def _ranks(logits: Logits) -> np.ndarray:
    """Ranks with the same order and ties: scikit-learn rejects infinite scores."""
    return np.unique(logits, return_inverse=True)[1]


# Names of all metrics.
METRICS = tuple(values(np.zeros(0, np.int64), np.zeros(0)))


# --- tables -------------------------------------------------------------------------------------


def evaluate(
    images: ScoredImages, resampling: Resampling, *, calibration: Calibration | None = None
) -> list[Row]:
    """One row per generator, sorted by name, and the unweighted mean as the last row.

    Each class of a generator keeps its size in every resample: by construction if images are drawn
    one by one, by weights if groups are drawn.

    Args:
      images: labelled scores.
      resampling: settings of the intervals.
      calibration: as in ``values``.
    """
    table = _Table(images, images.scored)
    (results,) = table.measure([images.logit], calibration, resampling)
    return table.summary(results, resampling.confidence)


def compare(
    images: ScoredImages,
    other: Logits,
    resampling: Resampling,
    *,
    calibration: Calibration | None = None,
) -> list[Row]:
    """Every metric of a second scoring of the same images, minus that of the first.

    The intervals are paired: a resample draws the same images for both scorings, so difficulty
    that they share does not widen the interval.  An image that is NaN in one counts in neither.

    Args:
      images: with the first scoring.
      other: (N,) logits of the second scoring.
      resampling, calibration: as in ``evaluate``.
    """
    table = _Table(images, images.scored & ~np.isnan(other))
    before, after = table.measure([images.logit, other], calibration, resampling)
    return table.summary(after - before, resampling.confidence)


def worst(rows: Sequence[Row]) -> dict[str, Row]:
    """The row of the worst generator, by metric; without metrics that are undefined everywhere.

    The interval is that generator's own and ignores the selection of the worst.

    Args:
      rows: of ``evaluate``.
    """
    found = {}
    for name in METRICS:
        known = [row for row in rows[:-1] if not np.isnan(row.metrics[name].value)]
        pick = max if name in LOWER_IS_BETTER else min
        if known:
            found[name] = pick(known, key=lambda row: row.metrics[name].value)
    return found


class _Table:
    """The scored images of every generator, and their resamples."""

    def __init__(self, images: ScoredImages, scored: Bool[np.ndarray, " n"]) -> None:
        self.names, index = np.unique(images.generator, return_inverse=True)
        self.labels, self.scored, self.groups = images.label, scored, images.group
        self.cells = 2 * index + self.labels
        self.rows = [np.flatnonzero((index == i) & scored) for i in range(len(self.names))]
        self.bad = np.bincount(index[~scored], minlength=len(self.names))

    def measure(
        self, scorings: Sequence[Logits], calibration: Calibration | None, resampling: Resampling
    ) -> Float[np.ndarray, "s g m r"]:
        """Metrics per scoring and generator: the value first, then its resamples."""
        times, seed = resampling.bootstrap, resampling.seed
        result = np.full((len(scorings), len(self.names), len(METRICS), 1 + times), np.nan)
        for s, logits in enumerate(scorings):
            for g, own in enumerate(self.rows):
                known = values(self.labels[own], logits[own], calibration)
                result[s, g, :, 0] = list(known.values())
        ready = [
            [Weighted.of(self.labels[own], logits[own], calibration) for own in self.rows]
            for logits in scorings
        ]
        place = np.cumsum(self.scored) - 1  # index of each image among the scored ones
        groups = None if self.groups is None else self.groups[self.scored]
        start = 1
        for drawn in resamples(self.cells[self.scored], groups, times=times, seed=seed):
            end = start + len(drawn)
            for g, own in enumerate(self.rows):
                weights = drawn[:, place[own]]
                if groups is not None:
                    weights = balanced(weights, self.labels[own])
                for s, scoring in enumerate(ready):
                    found = scoring[g].metrics(weights)
                    result[s, g, :, start:end] = [found[name] for name in METRICS]
            start = end
        for g, own in enumerate(self.rows):
            nature = (self.labels[own] == 0).sum()
            for name, rate in FALSE_POSITIVE_RATES.items():
                if rate * nature < LEAST_FALSE_ALARMS:
                    result[:, g, METRICS.index(name), 1:] = NAN
        return _centre_ece(result)

    def summary(self, results: Float[np.ndarray, "g m r"], confidence: float) -> list[Row]:
        """One row per generator, then their mean."""
        rows = []
        for name, own, bad, result in zip(self.names, self.rows, self.bad, results, strict=True):
            ai = int((self.labels[own] == 1).sum())
            rows.append(Row(str(name), len(own) - ai, ai, int(bad), estimates(result, confidence)))
        nature, ai, bad = (
            sum(getattr(row, count) for row in rows) for count in ("nature", "ai", "bad")
        )
        mean = results.mean(axis=0) if rows else np.full(results.shape[1:], np.nan)
        return [*rows, Row("mean", nature, ai, bad, estimates(mean, confidence))]


def _centre_ece(results: Float[np.ndarray, "s g m r"]) -> Float[np.ndarray, "s g m r"]:
    """Shifts the resamples of the ECE so that their mean is its value; none falls below 0.

    Noise biases an ECE upwards, and a resample has twice the noise variance of its sample, so the
    raw percentiles may lie above the value itself.
    """
    ece_of = results[:, :, METRICS.index("ece")]
    if ece_of.shape[-1] > 1:
        drawn = ece_of[..., 1:]
        bias = drawn.mean(axis=-1, keepdims=True) - ece_of[..., :1]
        drawn[...] = np.maximum(drawn - bias, 0)
    return results


def estimates(
    results: Float[np.ndarray, "m r"], confidence: float, names: Iterable[str] = METRICS
) -> dict[str, Estimate]:
    """Values and intervals by metric.

    Args:
      results: one row per metric: the value, then its resamples.
      confidence: of the intervals.
      names: of the metrics.
    """
    return {
        name: _interval(float(result[0]), result[1:], confidence)
        for name, result in zip(names, results, strict=True)
    }


def _interval(value: float, replicates: Float[np.ndarray, " r"], confidence: float) -> Estimate:
    """A value and the percentiles of its resamples; no interval if any of them is undefined."""
    if np.isnan(value) or not len(replicates) or np.isnan(replicates).any():
        return Estimate(value, NAN, NAN)
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
