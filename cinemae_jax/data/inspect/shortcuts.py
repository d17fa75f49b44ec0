"""Measures shortcuts: how well a single file fact, without the pixels, tells the classes apart.

In: the facts about readable, labelled files.  Out: an AUC per fact, and a sentence per finding.  A
detector trained on such a set may learn the fact instead of traces of generation (method.md 6).
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

# Images per class below which no AUC is given.
MIN_IMAGES = 10
# Images per class below which an AUC is called uncertain.
FEW_IMAGES = 100
# Images per class above which a sample of this size is used; its error stays below 0.002.
MAX_IMAGES = 50_000
FOLDS = 5
# Minimum AUC to say that a fact separates the classes, and to mention it at all.
CLEAR, WORTH_SAYING = 0.9, 0.6
CHANCE_DEVIATIONS = 3.0  # minimum distance from 0.5, in standard deviations of a chance AUC

ALL = "all"  # scope of the whole set
BETTER = "predicts the class better than chance"
# Columns behind each fact.
FACTS = {
    "file format": ("format",),
    "pixel mode": ("mode", "deep", "alpha"),
    "image size": ("width", "height"),
    "aspect ratio": ("aspect",),
    "JPEG quality": ("quality",),
}


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """How well one fact tells the classes apart in one part of a data set.

    Attributes:
      scope: a generator, or ``ALL``.
      fact: a key of ``FACTS``.
      auc: 0.5 to 1, of a small cross-validated decision tree; None if there are too few images.
      num_nature, num_ai: images that have the fact.
      chance_sd: standard deviation of the AUC of random scores on that many images.
      note: why the AUC is missing or uncertain.
    """

    scope: str
    fact: str
    auc: float | None
    num_nature: int
    num_ai: int
    chance_sd: float | None = None
    note: str = ""

    @property
    def found(self) -> bool:
        """Whether the AUC is high enough to mention and above chance."""
        if self.auc is None or self.chance_sd is None:
            return False
        return self.auc >= max(WORTH_SAYING, 0.5 + CHANCE_DEVIATIONS * self.chance_sd)

    @property
    def is_all(self) -> bool:
        return self.scope == ALL

    def in_words(self) -> str:
        """For example ``AUC 0.71 (120 nature + 130 ai)``."""
        value = "no AUC" if self.auc is None else f"AUC {rounded(self.auc)}"
        note = f"; {self.note}" if self.note else ""
        return f"{value} ({self.num_nature:,} nature + {self.num_ai:,} ai{note})"


def rounded(auc: float) -> str:
    """Two decimals; values just below 1 are not rounded up to it."""
    return ">0.99" if 0.995 <= auc < 1 else f"{auc:.2f}"


def find(files: pa.Table, *, scope: str) -> list[Shortcut]:
    """One ``Shortcut`` per fact over some files.

    Args:
      files: readable files, with the columns of ``Facts`` and ``label``, nature or ai.
      scope: name of this part of the data set.
    """
    ai = pc.equal(files["label"], "ai").to_numpy(zero_copy_only=False)
    columns = _columns(files)
    return [
        _shortcut(np.stack([columns[name] for name in names], axis=1), ai, fact, scope)
        for fact, names in FACTS.items()
    ]


def _columns(files: pa.Table) -> dict[str, np.ndarray]:
    """Every column as (N,) float64; NaN for files that lack it."""
    width, height = (files[name].to_numpy().astype(float) for name in ("width", "height"))
    codes = {
        name: files[name].combine_chunks().dictionary_encode().indices.to_numpy().astype(float)
        for name in ("format", "mode")
    }
    flags = {
        name: files[name].to_numpy(zero_copy_only=False).astype(float) for name in ("deep", "alpha")
    }
    quality = files["quality"].to_numpy(zero_copy_only=False).astype(float)
    sides = {"width": width, "height": height, "aspect": width / height}
    return codes | flags | sides | {"quality": quality}


def _shortcut(values: np.ndarray, ai: np.ndarray, fact: str, scope: str) -> Shortcut:
    has_it = ~np.isnan(values).any(axis=1)
    values, ai = values[has_it], ai[has_it]
    counts = int((~ai).sum()), int(ai.sum())
    if min(counts) < MIN_IMAGES:
        note = f"fewer than {MIN_IMAGES} images of a class"
        return Shortcut(scope, fact, None, *counts, note=note)
    is_uncertain = min(counts) < FEW_IMAGES
    note = f"fewer than {FEW_IMAGES} images of a class: uncertain" if is_uncertain else ""
    auc, (n, m) = _auc(values, ai), (min(count, MAX_IMAGES) for count in counts)
    return Shortcut(scope, fact, auc, *counts, math.sqrt((n + m + 1) / (12 * n * m)), note)


def _auc(values: np.ndarray, ai: np.ndarray) -> float:
    """Out-of-fold AUC of a tree of at most 16 leaves, as max(AUC, 1 - AUC)."""
    rng = np.random.default_rng(0)
    rows = [np.flatnonzero(ai == label) for label in (False, True)]
    rows = [rng.choice(r, MAX_IMAGES, replace=False) if len(r) > MAX_IMAGES else r for r in rows]
    drawn = np.concatenate(rows)
    values, ai = values[drawn], ai[drawn]
    if (values == values[0]).all():
        return 0.5
    tree = DecisionTreeClassifier(max_leaf_nodes=16, min_samples_leaf=5, random_state=0)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(tree, values, ai, cv=folds, method="predict_proba")[:, 1]
    auc = float(roc_auc_score(ai, scores))
    return max(auc, 1 - auc)


def in_words(found: Sequence[Shortcut]) -> list[str]:
    """The verdict: a sentence per fact that tells the classes apart, or one if none does."""
    known = [one.auc for one in found if one.auc is not None]
    if not known:
        return [f"shortcuts cannot be measured: fewer than {MIN_IMAGES} readable images of a class"]
    said = []
    parts = len({one.scope for one in found} - {ALL})
    for fact in FACTS:
        here = [one for one in found if one.found and one.fact == fact]
        said += [f"{fact} alone {_does(one)} with {one.in_words()}" for one in here if one.is_all]
        inside = [one for one in here if not one.is_all]
        if inside:
            most = max(inside, key=lambda one: (round(one.auc or 0, 2), one.num_ai))
            said.append(
                f"within {len(inside)} of {parts} generators, {fact} alone {BETTER}; highest in "
                f"{most.scope} with {most.in_words()}"
            )
    if not said:
        said.append(
            "of the file facts that were tested, none alone tells the classes apart beyond chance "
            f"(highest AUC {max(known):.2f})"
        )
    untested = {
        fact: sum(one.auc is None for one in found if one.fact == fact and not one.is_all)
        for fact in FACTS
    }
    alone = [one.fact for one in found if one.is_all and one.auc is None]
    if parts_of := [
        *(f"{fact} in {n} of {parts} generators" for fact, n in untested.items() if n),
        *(f"{fact} in the whole set" for fact in alone),
    ]:
        said.append(f"not tested, too few images with this property: {', '.join(parts_of)}")
    return said


def _does(one: Shortcut) -> str:
    is_clear = one.auc is not None and one.auc >= CLEAR
    return "separates the classes" if is_clear else BETTER
