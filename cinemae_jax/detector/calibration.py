"""From logits to probabilities and verdicts, fitted on held-out images of the training generators.

In: logits and labels of images that are used neither for training nor for testing.  Out: a
``Calibration``, a few numbers.  Its promises hold for images drawn like the held-out ones;
``cinemae audit`` shows what happens with other cameras, sizes and generators.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped
from numpy.typing import ArrayLike
from scipy.special import betaincinv, expit, logit

Verdict = Literal["nature", "ai", "inconclusive"]

# Held-out images per class; with fewer, probabilities stay the sigmoid of the logit.
MIN_IMAGES = 20
# Promises by source: sources that are needed, photographs that make one, and the share of sources
# for which the promise must hold.
MIN_SOURCES, MIN_OF_SOURCE, SHARE_OF_SOURCES = 5, 10, 0.9


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Maps logits to probabilities and verdicts.

    ``probability`` is Platt scaling: sigmoid(scale · logit + offset).  Temperature scaling alone
    cannot move the decision point, which a head that leans to one class needs.

    The thresholds are order statistics of the n held-out logits of one class (split conformal
    prediction).  With r = ⌊(n + 1) · rate⌋, ``ai_threshold`` is the r-th largest logit of the
    photographs and ``nature_threshold`` the r-th smallest of the AI images.  A new image of the
    same distribution lies beyond the threshold with probability r / (n + 1) ≤ rate (less with
    ties).  If r = 0, there are too few images for the promise: the threshold is None, and its
    verdict is never given.

    Where the photographs come from several sources (``num_sources``), ``ai_threshold`` is at least
    so high that nine of ten sources have at most ``fpr`` of their photographs above it
    (``SHARE_OF_SOURCES``): a camera or a collection that nobody has seen is a new source, not a new
    image of an old one.

    Attributes:
      scale: 0 or more; 0 if the logits do not rank the held-out images better than chance.
      offset: added after scaling.
      ai_threshold: logits above it are called AI.
      nature_threshold: logits below it are called nature.
      fpr: largest promised share of photographs called AI.
      fnr: largest promised share of AI images called nature.
      num_nature, num_ai: number of held-out images.
      images: fingerprint of the held-out images (``Catalog.fingerprint``); may be empty.
      num_sources: sources of photographs that the promise was made by; 0 if by images alone.
    """

    scale: float
    offset: float
    ai_threshold: float | None
    nature_threshold: float | None
    fpr: float
    fnr: float
    num_nature: int
    num_ai: int
    images: str = ""
    num_sources: int = 0

    def __post_init__(self) -> None:
        for name in ("fpr", "fnr"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"calibration.{name} must be in (0, 1), is {getattr(self, name)}")
        if not (0 <= self.scale < math.inf and math.isfinite(self.offset)):
            raise ValueError(
                "calibration.scale must be 0 or more and calibration.offset finite, are "
                f"{self.scale} and {self.offset}"
            )
        for name in ("ai_threshold", "nature_threshold"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise ValueError(f"calibration.{name} must be finite or null, is {value}")

    def probability(self, logits: ArrayLike) -> Float64[np.ndarray, "..."]:
        """Probability of AI if half of the images are AI-generated.

        Args:
          logits: of any shape.

        Returns:
          Probabilities of the same shape; NaN stays NaN.
        """
        z = np.asarray(logits, np.float64)
        return expit(self.scale * z + self.offset) if self.scale else expit(0 * z + self.offset)

    def verdict(
        self, logits: ArrayLike, low_context: ArrayLike = False
    ) -> Shaped[np.ndarray, "..."]:
        """``nature``, ``ai`` or ``inconclusive``.

        Logits between the two thresholds are inconclusive, whichever threshold is larger: with
        overlapping classes they look like both, with separated classes like neither.  So are
        images of low context (method.md 6) and NaN.

        Args:
          logits: of any shape.
          low_context: flags, broadcast against the logits.

        Returns:
          Strings of the broadcast shape.
        """
        z, low_context = np.broadcast_arrays(np.asarray(logits, np.float64), low_context)
        known = [t for t in (self.nature_threshold, self.ai_threshold) if t is not None]
        is_ai = z > max(known) if self.ai_threshold is not None else np.zeros(z.shape, bool)
        is_nature = z < min(known) if self.nature_threshold is not None else np.zeros_like(is_ai)
        sure = ~low_context.astype(bool)
        return np.select([is_ai & sure, is_nature & sure], ["ai", "nature"], "inconclusive")

    def fpr_range(self, confidence: float = 0.95) -> tuple[float, float]:
        """Central range of the true false-positive rate of ``ai_threshold``.

        The promise holds on average over draws of held-out images.  For one draw of n images the
        rate is distributed as Beta(r, n + 1 - r) if logits have no ties.  (0, 0) without a
        threshold.

        Args:
          confidence: share of the draws whose rate lies within the range.
        """
        rank = _rank(self.num_nature, self.fpr)
        if not rank:
            return 0.0, 0.0
        ends = (1 - confidence) / 2, (1 + confidence) / 2
        low, high = betaincinv(rank, self.num_nature + 1 - rank, ends)
        return float(low), float(high)

    def in_words(self) -> list[str]:
        """What to tell a reader: the promises, and why others cannot be made."""
        said = [
            f"calibrated on {self.num_nature:,} nature and {self.num_ai:,} ai images held out of "
            "training"
        ]
        if min(self.num_nature, self.num_ai) < MIN_IMAGES:
            said.append(
                f"probabilities are not calibrated: that needs {MIN_IMAGES} held-out images per "
                "class"
            )
        for count, rate, kind, wrong in (
            (self.num_nature, self.fpr, "nature", "ai"),
            (self.num_ai, self.fnr, "ai", "nature"),
        ):
            if kind == "nature" and self.num_sources and _rank(count, rate):
                said.append(
                    f"in {SHARE_OF_SOURCES:.0%} of {self.num_sources} sources of held-out "
                    f"photographs, at most {100 * rate:.3g} % are called {wrong}"
                )
            elif _rank(count, rate):
                images = f"{kind} images like the held-out ones"
                said.append(f"at most {100 * rate:.3g} % of {images} are called {wrong}")
            else:
                said.append(
                    f"no image is called {wrong}: to promise an error rate of {100 * rate:.3g} % "
                    f"takes {needed(rate):,} held-out {kind} images, there are {count:,}"
                )
        return said

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; ``from_dict`` inverts it exactly."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Calibration":
        """Inverse of ``to_dict``.

        Raises:
          ValueError: naming the missing, unknown or invalid fields.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        record = {"num_sources": 0, **record}  # records of before had none
        if wrong := sorted(names ^ set(record)):
            raise ValueError(f"calibration: missing or unknown fields {', '.join(wrong)}")
        return cls(**record)


def fit(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    fpr: float = 0.05,
    fnr: float = 0.05,
    images: str = "",
    sources: ArrayLike = (),
) -> Calibration:
    """Fits probabilities and thresholds.

    Args:
      logits: (N,) of held-out images of the training generators, without unread ones.
      labels: (N,) 0 nature, 1 AI.
      fpr: largest share of photographs that may be called AI.
      fnr: largest share of AI images that may be called nature.
      images: fingerprint of the images.
      sources: (N,) number of each image's source, or none; used where ``MIN_SOURCES`` sources have
        enough photographs.

    Raises:
      ValueError: if shapes differ, a logit is not finite, or a label is neither 0 nor 1.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    if z.shape != y.shape or z.ndim != 1:
        raise ValueError(
            f"logits and labels must have the same shape (N,), are {z.shape} and {y.shape}"
        )
    if count := int((~np.isfinite(z)).sum()):
        raise ValueError(f"{count} of {len(z)} held-out logits are not finite: drop them")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 (nature) or 1 (ai)")
    nature, ai = z[y == 0], z[y == 1]
    above, below = threshold(nature, fpr), threshold(-ai, fnr)
    given = np.asarray(sources)
    by_source = _by_source(nature, given[y == 0], fpr) if given.size else []
    if above is not None and by_source:
        above = max(above, float(np.quantile(by_source, SHARE_OF_SOURCES, method="higher")))
    scale, offset = _platt(z, y == 1) if min(len(nature), len(ai)) >= MIN_IMAGES else (1.0, 0.0)
    return Calibration(
        scale=scale,
        offset=offset,
        ai_threshold=above,
        nature_threshold=None if below is None else -below,
        fpr=fpr,
        fnr=fnr,
        num_nature=len(nature),
        num_ai=len(ai),
        images=images,
        num_sources=len(by_source),
    )


def _by_source(
    logits: Float[np.ndarray, " n"], sources: Int[np.ndarray, " n"], rate: float
) -> list[float]:
    """The logit of each source that at most ``rate`` of its photographs exceed.

    Empty if fewer than ``MIN_SOURCES`` sources have ``MIN_OF_SOURCE`` photographs.
    """
    groups = [logits[sources == source] for source in np.unique(sources)]
    enough = [np.sort(group)[::-1] for group in groups if len(group) >= MIN_OF_SOURCE]
    if len(enough) < MIN_SOURCES:
        return []
    return [float(group[math.floor(round(len(group) * rate, 9))]) for group in enough]


def threshold(logits: Float[np.ndarray, " n"], rate: float) -> float | None:
    """Logit that a new image of the class exceeds with probability ``rate`` at most.

    See ``Calibration`` for the rule.  None if there are fewer than ``needed`` images.

    Args:
      logits: of held-out images of one class.
      rate: between 0 and 1.
    """
    rank = _rank(len(logits), rate)
    return float(np.partition(logits, -rank)[-rank]) if rank else None


def needed(rate: float) -> int:
    """Smallest number of held-out images of a class that can promise an error rate."""
    return next(
        n for n in range(math.ceil(1 / rate) - 2, math.ceil(1 / rate) + 2) if _rank(n, rate)
    )


def _rank(count: int, rate: float) -> int:
    """⌊(n + 1) · rate⌋; products such as 20 · 0.05 are rounded to the integer they stand for."""
    return math.floor(round((count + 1) * rate, 9))


def _platt(z: Float[np.ndarray, " n"], is_ai: Bool[np.ndarray, " n"]) -> tuple[float, float]:
    """Maximum-likelihood scale and offset for Platt's targets (1999, section 2.2).

    The targets (n₁ + 1) / (n₁ + 2) and 1 / (n₀ + 2) instead of 1 and 0 keep the scale finite for
    separated classes.  Every image enters twice, weighted by its target as AI and as nature; both
    classes have the same total weight.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second: only fitting pays

    num_ai = int(is_ai.sum())
    num_nature = len(z) - num_ai
    target = np.where(is_ai, (num_ai + 1) / (num_ai + 2), 1 / (num_nature + 2))
    weight = np.where(is_ai, 1 / num_ai, 1 / num_nature) * len(z) / 2
    mean, spread = float(z.mean()), float(z.std())
    if spread > 0:
        x = np.tile((z - mean) / spread, 2)[:, None]  # standardised: the solver needs no units
        outcome = np.repeat([1, 0], len(z))
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8)
        model.fit(
            x, outcome, sample_weight=np.tile(weight, 2) * np.concatenate([target, 1 - target])
        )
        scale = float(model.coef_[0, 0]) / spread
        if scale > 0:
            return scale, float(model.intercept_[0]) - scale * mean
    # the likelihood is largest at scale 0: a constant probability
    return 0.0, float(logit(np.average(target, weights=weight)))
