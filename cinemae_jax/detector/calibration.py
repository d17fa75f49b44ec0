"""Logits to probabilities and verdicts, fitted on held-out images of the training generator.

In: logits and labels of images that neither trained the head nor test it.  Out: a ``Calibration``,
a few numbers that travel with the checkpoint.  What it promises holds for images drawn like the
held-out ones; other cameras, sizes and generators are for the audit.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from scipy.special import betaincinv, expit, logit

Verdict = Literal["nature", "ai", "inconclusive"]

# Of each class: with fewer, probabilities stay the head's own.
MIN_IMAGES = 20


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What turns a logit into a probability and a verdict.

    ``probability`` is Platt's: sigmoid(scale · logit + offset).  Temperature alone could not move
    the point of even odds, and a head that leans to one class on held-out images needs just that.

    The thresholds are order statistics of the n held-out logits of one class (split conformal
    prediction): with r = ⌊(n + 1) · rate⌋, ``ai_threshold`` is the logit of a photograph that r - 1
    others lie above, and ``nature_threshold`` that of an AI image that r - 1 others lie below.  A
    further image drawn alike lies beyond it with probability r / (n + 1) ≤ rate, whatever the
    distribution (less with ties).  Where r = 0 there are too few images for the promise: the
    threshold is None, and the verdict it would give is never given.

    Attributes:
      scale: not negative; 0 if the logits do not rank the held-out images better than chance.
      offset: added after scaling.
      ai_threshold: logits above it are called AI.
      nature_threshold: logits below it are called nature.
      fpr: promised share, at most, of photographs called AI.
      fnr: promised share, at most, of AI images called nature.
      num_nature, num_ai: number of held-out images.
      images: fingerprint of the held-out images (``Catalog.fingerprint``); empty if not given.
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

    def __post_init__(self) -> None:
        for name in ("fpr", "fnr"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"calibration.{name} must be in (0, 1), is {getattr(self, name)}")
        if not (0 <= self.scale < math.inf and math.isfinite(self.offset)):
            raise ValueError(
                "calibration.scale must be 0 or more and its offset finite, are "
                f"{self.scale} and {self.offset}"
            )
        for name in ("ai_threshold", "nature_threshold"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise ValueError(f"calibration.{name} must be finite or null, is {value}")

    def probability(self, logits: Any) -> np.ndarray:
        """Probability of AI, where every second image is one.

        Args:
          logits: any shape.

        Returns:
          float64 of that shape; NaN stays NaN.
        """
        z = np.asarray(logits, np.float64)
        return expit(self.scale * z + self.offset) if self.scale else expit(0 * z + self.offset)

    def verdict(self, logits: Any, low_context: Any = False) -> np.ndarray:
        """``nature``, ``ai`` or ``inconclusive``.

        Inconclusive is all that lies between the two thresholds, in whichever order they are: where
        the classes overlap it looks like both, where they lie apart like neither.  So are images
        of low context (METHOD 8), and NaN.

        Args:
          logits: any shape.
          low_context: flags; broadcast against the logits.

        Returns:
          Strings of the common shape.
        """
        z, low_context = np.broadcast_arrays(np.asarray(logits, np.float64), low_context)
        known = [t for t in (self.nature_threshold, self.ai_threshold) if t is not None]
        is_ai = z > max(known) if self.ai_threshold is not None else np.zeros(z.shape, bool)
        is_nature = z < min(known) if self.nature_threshold is not None else np.zeros_like(is_ai)
        sure = ~low_context.astype(bool)
        return np.select([is_ai & sure, is_nature & sure], ["ai", "nature"], "inconclusive")

    def fpr_range(self, confidence: float = 0.95) -> tuple[float, float]:
        """Within which the true share of photographs above ``ai_threshold`` lies.

        The promise is kept on average over draws of held-out images; one draw of n has a share of
        its own, which is Beta(r, n + 1 - r) if logits have no ties.  (0, 0) without a threshold.

        Args:
          confidence: share of the draws that are within.
        """
        rank = _rank(self.num_nature, self.fpr)
        if not rank:
            return 0.0, 0.0
        ends = (1 - confidence) / 2, (1 + confidence) / 2
        low, high = betaincinv(rank, self.num_nature + 1 - rank, ends)
        return float(low), float(high)

    def in_words(self) -> list[str]:
        """What a reader should know: the promises, and those that cannot be made."""
        said = [
            f"calibrated on {self.num_nature:,} nature and {self.num_ai:,} ai images that it "
            "was not trained on"
        ]
        if min(self.num_nature, self.num_ai) < MIN_IMAGES:
            said.append(
                f"probabilities are not calibrated: {MIN_IMAGES} held-out images of each class "
                "are needed"
            )
        for count, rate, kind, wrong in (
            (self.num_nature, self.fpr, "nature", "ai"),
            (self.num_ai, self.fnr, "ai", "nature"),
        ):
            if _rank(count, rate):
                said.append(f"at most {rate:.3g} of {kind} images like those are called {wrong}")
            else:
                said.append(
                    f"no image is called {wrong}: {needed(rate):,} held-out {kind} images are "
                    f"needed to promise an error of {rate:.3g}, there are {count:,}"
                )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; ``from_dict`` gives the equal object back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Calibration":
        """What ``to_dict`` made.

        Raises:
          ValueError: naming the fields that are missing, unknown or impossible.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if wrong := sorted(names ^ set(record)):
            raise ValueError(f"calibration: missing or unknown fields {', '.join(wrong)}")
        return cls(**record)


def fit(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    fpr: float = 0.05,
    fnr: float = 0.05,
    images: str = "",
) -> Calibration:
    """Fits probability and thresholds.

    Args:
      logits: (N,) of held-out images of the training generator, readable ones alone.
      labels: (N,) 0 nature, 1 AI.
      fpr: share, at most, of photographs to be called AI.
      fnr: share, at most, of AI images to be called nature.
      images: fingerprint of the images.

    Raises:
      ValueError: if shapes differ, a logit is not finite, or a label is neither 0 nor 1.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    if z.shape != y.shape or z.ndim != 1:
        raise ValueError(f"logits {z.shape} and labels {y.shape} must be of one shape (N,)")
    if count := int((~np.isfinite(z)).sum()):
        raise ValueError(f"{count} of {len(z)} held-out logits are not finite: leave them out")
    if not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 (nature) or 1 (ai)")
    nature, ai = z[y == 0], z[y == 1]
    below = threshold(-ai, fnr)
    scale, offset = _platt(z, y == 1) if min(len(nature), len(ai)) >= MIN_IMAGES else (1.0, 0.0)
    return Calibration(
        scale=scale,
        offset=offset,
        ai_threshold=threshold(nature, fpr),
        nature_threshold=None if below is None else -below,
        fpr=fpr,
        fnr=fnr,
        num_nature=len(nature),
        num_ai=len(ai),
        images=images,
    )


def threshold(logits: np.ndarray, rate: float) -> float | None:
    """Logit that a further image of one class lies above with probability ``rate`` at most.

    The rule is that of ``Calibration``; None if there are too few images (``needed``).

    Args:
      logits: (n,) of held-out images of that class.
      rate: between 0 and 1.
    """
    rank = _rank(len(logits), rate)
    return float(np.partition(logits, -rank)[-rank]) if rank else None


def needed(rate: float) -> int:
    """Least number of held-out images of a class for which an error rate can be promised."""
    return next(
        n for n in range(math.ceil(1 / rate) - 2, math.ceil(1 / rate) + 2) if _rank(n, rate)
    )


def _rank(count: int, rate: float) -> int:
    """⌊(n + 1) · rate⌋, where a product such as 20 · 0.05 is a whole number."""
    return math.floor(round((count + 1) * rate, 9))


def _platt(z: np.ndarray, is_ai: np.ndarray) -> tuple[float, float]:
    """Scale and offset of greatest likelihood, for Platt's targets (1999, section 2.2).

    The targets (n₁ + 1) / (n₁ + 2) and 1 / (n₀ + 2), in place of 1 and 0, keep the scale finite
    where the classes do not overlap.  Each image enters twice, with the weights of both outcomes,
    and each class counts as much as the other, however many images it has.
    """
    from sklearn.linear_model import LogisticRegression  # a second, which only fitting pays

    num_ai = int(is_ai.sum())
    num_nature = len(z) - num_ai
    target = np.where(is_ai, (num_ai + 1) / (num_ai + 2), 1 / (num_nature + 2))
    weight = np.where(is_ai, 1 / num_ai, 1 / num_nature) * len(z) / 2
    mean, spread = float(z.mean()), float(z.std())
    if spread > 0:
        x = np.tile((z - mean) / spread, 2)[:, None]  # so that units do not matter to the solver
        outcome = np.repeat([1, 0], len(z))
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8)
        model.fit(
            x, outcome, sample_weight=np.tile(weight, 2) * np.concatenate([target, 1 - target])
        )
        scale = float(model.coef_[0, 0]) / spread
        if scale > 0:
            return scale, float(model.intercept_[0]) - scale * mean
    return 0.0, float(
        logit(np.average(target, weights=weight))
    )  # the likelihood's maximum over scales from 0 on
