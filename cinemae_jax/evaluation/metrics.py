"""Accuracy, AP and AUC of every generator with bootstrap intervals, and their unweighted mean.

In: a table of scores, one row an image.  Undefined values (one class only, no image) are NaN.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.utils import resample

Labels = Int[np.ndarray, " n"]
Logits = Float[np.ndarray, " n"]


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
      bad: number that could not be read, and have no score.
      metrics: by name (``METRICS``).
    """

    name: str
    nature: int
    ai: int
    bad: int
    metrics: dict[str, Estimate]


def accuracy(labels: Labels, logits: Logits) -> float:
    """Share of images on the right side of probability 0.5."""
    return float(((logits > 0) == (labels == 1)).mean()) if len(labels) else float("nan")


def nature_accuracy(labels: Labels, logits: Logits) -> float:
    """Share of photographs called nature."""
    return accuracy(labels[labels == 0], logits[labels == 0])


def ai_accuracy(labels: Labels, logits: Logits) -> float:
    """Share of AI-generated images called AI."""
    return accuracy(labels[labels == 1], logits[labels == 1])


def auc(labels: Labels, logits: Logits) -> float:
    """Area under the ROC curve."""
    return float(roc_auc_score(labels, logits)) if _both(labels) else float("nan")


def average_precision(labels: Labels, logits: Logits) -> float:
    """Average precision with AI as the positive class."""
    return float(average_precision_score(labels, logits)) if _both(labels) else float("nan")


METRICS: dict[str, Callable[[Labels, Logits], float]] = {
    "accuracy": accuracy,
    "nature_accuracy": nature_accuracy,
    "ai_accuracy": ai_accuracy,
    "ap": average_precision,
    "auc": auc,
}


def evaluate(
    labels: Labels,
    logits: Logits,
    generators: np.ndarray,
    valid: np.ndarray,
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> list[Row]:
    """One row a generator, sorted by name, and last the unweighted mean of all.

    Args:
      labels: (N,) 0 nature, 1 AI.
      logits: (N,) positive for AI.
      generators: (N,) names.
      valid: (N,) False for images that could not be read; counted, not scored.
      bootstrap: resamples; each class is resampled by itself, so that its size stays.
      confidence: of the percentile intervals.
      seed: of the resampling.
    """
    names = sorted(set(generators))
    rows, samples = [], []
    for index, name in enumerate(names):
        mine = generators == name
        y, z = labels[mine & valid], logits[mine & valid]
        replicates = _bootstrap(y, z, bootstrap, np.random.RandomState([seed, index]))
        samples.append(replicates)
        estimates = {
            metric: _interval(function(y, z), replicates[metric], confidence)
            for metric, function in METRICS.items()
        }
        counts = (int((y == 0).sum()), int((y == 1).sum()), int((mine & ~valid).sum()))
        rows.append(Row(name, *counts, estimates))
    return [*rows, _mean(rows, samples, confidence)]


def _mean(rows: list[Row], samples: list[dict[str, np.ndarray]], confidence: float) -> Row:
    estimates = {}
    for metric in METRICS:
        value = float(np.mean([row.metrics[metric].value for row in rows]))
        replicates = np.mean([sample[metric] for sample in samples], axis=0)
        estimates[metric] = _interval(value, replicates, confidence)
    nature, ai, bad = (
        sum(column) for column in zip(*((r.nature, r.ai, r.bad) for r in rows), strict=True)
    )
    return Row("mean", nature, ai, bad, estimates)


def _bootstrap(
    labels: Labels, logits: Logits, times: int, rng: np.random.RandomState
) -> dict[str, np.ndarray]:
    values = {metric: np.full(max(times, 1), np.nan) for metric in METRICS}
    for i in range(times if len(labels) else 0):
        y, z = resample(labels, logits, stratify=labels, random_state=rng)
        for metric, function in METRICS.items():
            values[metric][i] = function(y, z)
    return values


def _interval(value: float, replicates: np.ndarray, confidence: float) -> Estimate:
    if np.isnan(value) or np.isnan(replicates).any():
        return Estimate(value, float("nan"), float("nan"))
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _both(labels: Labels) -> bool:
    return bool((labels == 0).any() and (labels == 1).any())
