"""Do verdicts survive changes of the images?  Accuracy, flips, and stability per image.

In: scores of the same images, clean and changed.  Out: one ``Effect`` per change, and how stable
the verdict on each image is.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cinemae_jax.audit.conditions import Scored, compared
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.phrases import moves, percent, signed

VERDICTS = ("nature", "ai", "inconclusive")
SIDES = ("nature", "ai")


@dataclasses.dataclass(frozen=True)
class NamedChange:
    """One change of the images.

    Attributes:
      name: for tables.
      family: changes of one family form a curve.
      strength: position on that curve.
    """

    name: str
    family: str
    strength: float


@dataclasses.dataclass(frozen=True)
class Effect:
    """What one change does.

    Attributes:
      change: which one.
      comparison: clean and changed, one row per generator.
      flips: number of images whose calibrated verdict changes, by ``before → after``.
      crossings: the same for the side of probability 0.5.
      flipped: images whose verdict changes: path, label, verdict before and after.
      shifts: by statistic and class, how far it moves, in standard deviations of the training
        images: mean of the change, or of a vector (``bands``, ``frequency``) its root mean square.
    """

    change: NamedChange
    comparison: Comparison
    flips: dict[str, int]
    crossings: dict[str, int]
    flipped: list[dict[str, str]]
    shifts: dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Robustness:
    """Effects of several changes on the same images.

    Attributes:
      effects: in the order of the changes.
      stability: (N,) share of changes that keep the calibrated verdict; NaN where the image
        itself could not be read.
      side_stability: (N,) the same for the side of probability 0.5.
    """

    effects: list[Effect]
    stability: Float[np.ndarray, " n"]
    side_stability: Float[np.ndarray, " n"]


def measure(
    images: Catalog,
    clean: Scored,
    changed: Mapping[NamedChange, Scored],
    calibration: Calibration,
    resampling: Resampling,
) -> Robustness:
    """Compares every change with the clean images.

    If a change makes an image unreadable (too small, say), the image does not count for this
    change, neither in its numbers nor in the image's stability.
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
                _shifts(images, clean, scored, both),
            )
        )
        same.append([np.where(both, b == a, np.nan) for b, a in zip(before, after, strict=True)])
    kept: np.ndarray = np.array(same, np.float64).reshape(len(same), 2, len(images))
    return Robustness(effects, _share(kept[:, 0]), _share(kept[:, 1]))


def verdicts(scored: Scored, calibration: Calibration) -> np.ndarray:
    """(N,) calibrated verdicts."""
    return calibration.verdict(scored.logit, scored.low_context)


def sides(scored: Scored) -> np.ndarray:
    """(N,) classes at probability 0.5, without calibration."""
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


def _shifts(
    images: Catalog, clean: Scored, scored: Scored, both: np.ndarray
) -> dict[str, dict[str, float]]:
    def far(name: str, label: int) -> float:
        rows = both & (images.labels == label)
        change = scored.statistics[name][rows] - clean.statistics[name][rows]
        if not len(change):
            return math.nan
        return float(change.mean() if change.shape[1] == 1 else np.sqrt((change**2).mean()))

    return {
        name: {CLASS_NAMES[label]: far(name, label) for label in range(len(CLASS_NAMES))}
        for name in clean.statistics
    }


def _share(kept: np.ndarray) -> np.ndarray:
    """Mean over the changes that count; NaN where none does."""
    counted = ~np.isnan(kept)
    total = counted.sum(axis=0)
    return np.where(total > 0, np.nansum(kept, axis=0) / np.maximum(total, 1), np.nan)


# --- in words -----------------------------------------------------------------------------------


def in_words(found: Robustness, kind: str) -> list[str]:
    """How bad the worst change is, and how many images never flip.

    Args:
      found: of ``measure``.
      kind: name of the changes, plural: ``corruptions``.
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
            f"the worst of {len(found.effects)} {kind} is {effect.change.name}: the mean accuracy "
            f"{moves(change)}, {percent(before)} → {percent(after)} ({signed(change)})"
        )
    for stability, what in (
        (found.stability, "calibrated verdict"),
        (found.side_stability, "side of probability 0.5"),
    ):
        known_of = stability[~np.isnan(stability)]
        if len(known_of):
            said.append(
                f"{(known_of == 1).sum():,} of {len(known_of):,} images keep their {what} under "
                f"all {kind}; the average image keeps it under {known_of.mean():.0%} of them"
            )
    return said


def stability_rows(images: Catalog, found: Robustness) -> list[dict[str, Any]]:
    """One record per image, the least stable first."""
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
