"""Estimates and comparisons as text."""

import math

from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.metrics import Estimate


def equalised_in_words(found: Comparison, *, side: int, quality: int) -> list[str]:
    """Phrases on the effect of equalised format, size and quality: accuracy, then AUC."""
    before, after, change = (
        rows[-1].metrics for rows in (found.before, found.after, found.difference)
    )
    return [
        f"after re-saving both classes (short side {side}, JPEG {quality}), the mean {name} "
        f"{moves(change[metric])}: {shown(before[metric])} raw, {shown(after[metric])} equalised "
        f"({signed(change[metric])})"
        for metric, name, shown in (("accuracy", "accuracy", percent), ("auc", "AUC", number))
    ]


def called_ai(right: Estimate) -> Estimate:
    """One minus an estimate: the share of photographs called AI from the share called nature."""
    return Estimate(1 - right.value, 1 - right.high, 1 - right.low)


def negative(estimate: Estimate) -> Estimate:
    """A difference with the opposite sign."""
    return Estimate(-estimate.value, -estimate.high, -estimate.low)


def moves(change: Estimate) -> str:
    """The direction of a change, if its interval excludes 0."""
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
    """A difference in percentage points, with its interval: ``-3.1 [-5.0, -1.2]``."""
    if math.isnan(change.value):
        return "–"
    interval = "" if math.isnan(change.low) else f" [{_point(change.low)}, {_point(change.high)}]"
    return f"{_point(change.value)}{interval}"


def _point(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # + 0.0 turns -0.0 into 0.0
