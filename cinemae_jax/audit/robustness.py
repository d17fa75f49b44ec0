"""How far verdicts hold when images change: accuracy, flips, stability of every image.

In: scores of the same images, clean and changed.  Out: a table row a change, and the images whose
verdict depends on it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cinemae_jax.audit.comparisons import Resampling, Scored, compared
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.phrases import moves, percent, signed

VERDICTS = ("nature", "ai", "inconclusive")
SIDES = ("nature", "ai")


@dataclasses.dataclass(frozen=True)
class Named:
    """One change of the images.

    Attributes:
      name: for tables.
      family: of which kind; changes of one kind make a curve.
      strength: where on that curve.
    """

    name: str
    family: str
    strength: float


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a change does.

    Attributes:
      change: which.
      comparison: clean and changed, a row a generator.
      flips: number of images by ``before → after``, where the calibrated verdict changes.
      crossings: the same of the side of probability 0.5.
      flipped: of each image whose verdict changes: path, label, verdict before and after.
    """

    change: Named
    comparison: Comparison
    flips: dict[str, int]
    crossings: dict[str, int]
    flipped: list[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Effects of several changes on the same images.

    Attributes:
      effects: in the order of the changes.
      stability: (N,) of each image, the share of changes that leave its verdict as it was; NaN
        where the image itself could not be read.
      side_stability: the same of the side of probability 0.5.
    """

    effects: list[Effect]
    stability: Float[np.ndarray, " n"]
    side_stability: Float[np.ndarray, " n"]


def measure(
    images: Catalog,
    clean: Scored,
    changed: Mapping[Named, Scored],
    calibration: Calibration,
    resampling: Resampling,
) -> Robustness:
    """Compares every change with the clean images.

    An image that a change has made unreadable (too small, say) counts in none of its numbers, and
    not in its own stability.
    """
    before = verdicts(clean, calibration), sides(clean)
    effects: list[Effect] = []
    same: list[list[np.ndarray]] = []
    for change, scored in changed.items():
        after = verdicts(scored, calibration), sides(scored)
        both = ~np.isnan(clean.logit) & ~np.isnan(scored.logit)
        effects.append(
            Effect(
                change,
                compared(images, clean, scored, resampling, calibration),
                _count(before[0][both], after[0][both], VERDICTS),
                _count(before[1][both], after[1][both], SIDES),
                _flipped(images, before[0], after[0], both),
            )
        )
        same.append([np.where(both, b == a, np.nan) for b, a in zip(before, after, strict=True)])
    kept: np.ndarray = np.array(same, np.float64).reshape(len(same), 2, len(images))
    return Robustness(effects, _share(kept[:, 0]), _share(kept[:, 1]))


def verdicts(scored: Scored, calibration: Calibration) -> np.ndarray:
    """(N,) calibrated verdicts."""
    return calibration.verdict(scored.logit, scored.low_context)


def sides(scored: Scored) -> np.ndarray:
    """(N,) the class at probability 0.5 of the head itself."""
    return np.where(scored.logit > 0, "ai", "nature")


def _count(before: np.ndarray, after: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    pairs = [(a, b) for a in names for b in names if a != b]
    return {f"{a} → {b}": int(((before == a) & (after == b)).sum()) for a, b in pairs}


def _flipped(
    images: Catalog, before: np.ndarray, after: np.ndarray, both: np.ndarray
) -> list[dict[str, str]]:
    paths, labels = images.table["path"], images.labels
    return [
        {
            "path": paths[int(row)].as_py(),
            "label": CLASS_NAMES[labels[row]],
            "before": str(before[row]),
            "after": str(after[row]),
        }
        for row in np.flatnonzero(both & (before != after))
    ]


def _share(kept: np.ndarray) -> np.ndarray:
    """Mean over changes, of those that count; NaN where none does."""
    counted = ~np.isnan(kept)
    total = counted.sum(axis=0)
    return np.where(total > 0, np.nansum(kept, axis=0) / np.maximum(total, 1), np.nan)


# --- in words -----------------------------------------------------------------------------------


def in_words(found: Robustness, kind: str) -> list[str]:
    """How bad the worst change is, and how many images never flip.

    Args:
      found: of ``measure``.
      kind: what the changes are called: ``corruptions``.
    """
    accuracies = [
        (effect.comparison.difference[-1].metrics["accuracy"], effect) for effect in found.effects
    ]
    known = [(change, effect) for change, effect in accuracies if not math.isnan(change.value)]
    said = []
    if known:
        change, effect = min(known, key=lambda one: one[0].value)
        before, after = (
            rows[-1].metrics["accuracy"]
            for rows in (effect.comparison.before, effect.comparison.after)
        )
        said.append(
            f"of {len(found.effects)} {kind} {effect.change.name} costs most: the mean accuracy "
            f"{moves(change)}, {percent(before)} to {percent(after)} ({signed(change)})"
        )
    for stability, what in (
        (found.stability, "calibrated verdict"),
        (found.side_stability, "side of probability 0.5"),
    ):
        known_of = stability[~np.isnan(stability)]
        if len(known_of):
            said.append(
                f"{(known_of == 1).sum():,} of {len(known_of):,} images keep their {what} under "
                f"all {kind}; on average one keeps it under {known_of.mean():.0%} of them"
            )
    return said


def stability_rows(images: Catalog, found: Robustness) -> list[dict[str, Any]]:
    """One record an image, the least stable first."""
    paths = images.table["path"].to_pylist()
    rows: list[dict[str, Any]] = [
        {
            "path": path,
            "label": CLASS_NAMES[label],
            "verdict_stability": float(stability),
            "side_stability": float(side),
        }
        for path, label, stability, side in zip(
            paths, images.labels, found.stability, found.side_stability, strict=True
        )
    ]

    def least_first(row: dict[str, Any]) -> tuple[bool, float, float, str]:
        stability = row["verdict_stability"]
        return math.isnan(stability), stability, row["side_stability"], row["path"]

    return sorted(rows, key=least_first)
