"""Estimates and comparisons in words and numbers."""

import math

from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.metrics import Estimate


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
