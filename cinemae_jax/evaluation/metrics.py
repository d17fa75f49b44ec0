"""Scores to numbers with bootstrap intervals: of every generator, their mean, and the worst.

In: a table of scores, one row an image.  Undefined values (one class only, no image) are NaN.
Percentile intervals know nothing of what was never drawn: where all of n images are right, the
interval has no width, though up to 3/n of them could be wrong; nor has it where a class has but one
image or group.  AI images found at a rate of false alarms have none where photographs are too few.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.evaluation.bootstrap import (
    ECE_BINS,
    FALSE_POSITIVE_RATES,
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
Names = np.ndarray  # (N,) strings

NAN = float("nan")
LOWER_IS_BETTER = frozenset({"ece", "brier"})
# That a rate must allow among a generator's photographs for an interval of the AI images found at
# it: below, the threshold is one of the few highest photographs, which resamples leave out or
# keep but never exceed, and the interval may lie above the value itself.
LEAST_FALSE_ALARMS = 5


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its bootstrap interval; NaN where undefined."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Row:
    """Results on one generator, or the mean of several.

    Attributes:
      name: of the generator.
      nature, ai: number of images scored.
      bad: number that could not be read or whose score is NaN; they count nowhere else.
      metrics: by name (``METRICS``).
    """

    name: str
    nature: int
    ai: int
    bad: int
    metrics: dict[str, Estimate]


# --- one number ---------------------------------------------------------------------------------


def accuracy(labels: Labels, logits: Logits, threshold: float = 0.0) -> float:
    """Share of images on the right side of a logit; 0 is probability 0.5 of the head itself."""
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
    """Share of AI images called AI at the lowest threshold that calls at most ``fpr`` of the
    photographs AI; without interpolation, and with the threshold taken on these very images."""
    if not _ranked(labels, logits):
        return NAN
    false, true, _ = roc_curve(labels, _ranks(logits), drop_intermediate=False)
    return float(true[false <= fpr].max())


def brier(labels: Labels, probability: Probabilities) -> float:
    """Mean squared difference of the probability of AI and the label."""
    if not len(labels) or np.isnan(probability).any():
        return NAN
    return float(brier_score_loss(labels, probability, pos_label=1, labels=[0, 1]))


def ece(labels: Labels, probability: Probabilities) -> float:
    """Expected calibration error: |mean probability - share of AI|, weighted by images.

    Of ``ECE_BINS`` equally wide bins of the probability of AI.  Noise within bins adds to it: few
    images, and resamples all the more, put it too high.  Naeini et al., AAAI 2015.
    """
    if not len(labels) or np.isnan(probability).any():
        return NAN
    errors = np.bincount(ece_bin(probability), weights=probability - labels, minlength=ECE_BINS)
    return float(np.abs(errors).sum() / len(labels))


def values(
    labels: Labels, logits: Logits, calibration: Calibration | None = None
) -> dict[str, float]:
    """Every metric; NaN where undefined.

    Args:
      labels: (N,) 0 nature, 1 AI.
      logits: (N,) positive for AI.
      calibration: gives ``*_calibrated`` its threshold (without one they are NaN), and ECE and
        Brier their probabilities (without it, the head's own).
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
    """Whether both classes are there, and every score is a number."""
    return len(np.unique(labels)) == 2 and not bool(np.isnan(logits).any())


def _ranks(logits: Logits) -> np.ndarray:
    """In the same order, with the same ties; scikit-learn takes no infinite scores."""
    return np.unique(logits, return_inverse=True)[1]


# Names of all metrics.
METRICS = tuple(values(np.zeros(0, np.int64), np.zeros(0)))


# --- tables -------------------------------------------------------------------------------------


def evaluate(
    labels: Labels,
    logits: Logits,
    generators: Names,
    valid: Bool[np.ndarray, " n"],
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
    calibration: Calibration | None = None,
    groups: Names | None = None,
) -> list[Row]:
    """One row a generator, sorted by name, and last the unweighted mean of all.

    Args:
      labels: (N,) 0 nature, 1 AI.
      logits: (N,) positive for AI.
      generators: (N,) names.
      valid: (N,) False for images that could not be read; counted, not scored.
      bootstrap: resamples, in which each class of a generator keeps its size.
      confidence: of the percentile intervals.
      seed: of the resampling.
      calibration: as in ``values``.
      groups: (N,) names of what is drawn as one, for example prompts, of several generators or not;
        each class is weighted back to its size.  None draws images.
    """
    table = _Table(labels, generators, valid & ~np.isnan(logits), groups)
    (results,) = table.measure([(logits, calibration)], bootstrap, seed)
    return table.summary(results, confidence)


def compare(
    labels: Labels,
    first: Logits,
    second: Logits,
    generators: Names,
    valid: Bool[np.ndarray, " n"],
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
    calibrations: tuple[Calibration | None, Calibration | None] = (None, None),
    groups: Names | None = None,
) -> list[Row]:
    """Every metric of a second scoring of the same images less that of the first.

    Paired: each resample draws the same images for both, so that what makes an image hard for both
    does not widen the interval.  The arguments are those of ``evaluate``; an image that is NaN in
    either scoring counts in neither.
    """
    table = _Table(labels, generators, valid & ~np.isnan(first) & ~np.isnan(second), groups)
    scorings = list(zip((first, second), calibrations, strict=True))
    before, after = table.measure(scorings, bootstrap, seed)
    return table.summary(after - before, confidence)


def worst(rows: Sequence[Row]) -> dict[str, Row]:
    """Of each metric, the row of the generator that is worst in it; none where all are undefined.

    Its interval is that generator's own, as if it had not been picked for being the worst.

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
    """The scored images of each generator, and how they are resampled."""

    def __init__(
        self, labels: Labels, generators: Names, scored: np.ndarray, groups: Names | None
    ) -> None:
        self.names, index = np.unique(generators, return_inverse=True)
        self.labels, self.scored, self.groups = labels, scored, groups
        self.cells = 2 * index + labels
        self.rows = [np.flatnonzero((index == i) & scored) for i in range(len(self.names))]
        self.bad = np.bincount(index[~scored], minlength=len(self.names))

    def measure(
        self, scorings: Sequence[tuple[Logits, Calibration | None]], times: int, seed: int
    ) -> Float[np.ndarray, "s g m r"]:
        """Of each scoring, generator and metric: the value, and then its ``times`` resamples."""
        result = np.full((len(scorings), len(self.names), len(METRICS), 1 + times), np.nan)
        for s, (logits, known) in enumerate(scorings):
            for g, own in enumerate(self.rows):
                result[s, g, :, 0] = list(values(self.labels[own], logits[own], known).values())
        ready = [
            [Weighted.of(self.labels[own], logits[own], known) for own in self.rows]
            for logits, known in scorings
        ]
        place = np.cumsum(self.scored) - 1  # of each image among the scored ones
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
        """A row a generator, and their mean, with intervals of a confidence."""
        rows = []
        for name, own, bad, result in zip(self.names, self.rows, self.bad, results, strict=True):
            ai = int((self.labels[own] == 1).sum())
            rows.append(Row(str(name), len(own) - ai, ai, int(bad), _estimates(result, confidence)))
        nature, ai, bad = (
            sum(getattr(row, count) for row in rows) for count in ("nature", "ai", "bad")
        )
        mean = results.mean(axis=0) if rows else np.full(results.shape[1:], np.nan)
        return [*rows, Row("mean", nature, ai, bad, _estimates(mean, confidence))]


def _centre_ece(results: Float[np.ndarray, "s g m r"]) -> Float[np.ndarray, "s g m r"]:
    """Shifts the resamples of the ECE to a mean of its value, at least 0.

    Noise adds to an ECE, and a resample has twice the noise of its sample: as they come, their
    percentiles may lie above the value itself.
    """
    ece_of = results[:, :, METRICS.index("ece")]
    if ece_of.shape[-1] > 1:
        drawn = ece_of[..., 1:]
        bias = drawn.mean(axis=-1, keepdims=True) - ece_of[..., :1]
        drawn[...] = np.maximum(drawn - bias, 0)
    return results


def _estimates(results: Float[np.ndarray, "m r"], confidence: float) -> dict[str, Estimate]:
    return {
        name: interval(float(result[0]), result[1:], confidence)
        for name, result in zip(METRICS, results, strict=True)
    }


def interval(value: float, replicates: np.ndarray, confidence: float) -> Estimate:
    """A value between the percentiles of its resamples; without them where any is undefined."""
    if np.isnan(value) or not len(replicates) or np.isnan(replicates).any():
        return Estimate(value, NAN, NAN)
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
