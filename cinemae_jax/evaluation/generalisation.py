"""Accuracy on the training generators, on unseen ones, and the drop between them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

NAN = float("nan")
# A larger drop is the paper's third signature of failure.
LARGE_DROP = 0.2


@dataclasses.dataclass(frozen=True)
class Generalisation:
    """Mean accuracies over generators, as fractions; NaN if undefined.

    Attributes:
      training_generators: those among the tested ones.
      in_domain: over the training generators.
      unseen: over the others.
      drop: ``in_domain`` minus ``unseen``.
      worst: lowest of all generators.
      worst_generator: its name; empty if there is none.
      deviation: sample standard deviation over all generators.
    """

    training_generators: tuple[str, ...]
    in_domain: float
    unseen: float
    drop: float
    worst: float
    worst_generator: str
    deviation: float

    @classmethod
    def of(cls, accuracy: Mapping[str, float], trained_on: Sequence[str]) -> "Generalisation":
        """From the accuracy by tested generator.

        Args:
          accuracy: at probability 0.5; NaN for a generator without readable images.
          trained_on: names of the training generators, tested or not.
        """
        seen = tuple(name for name in accuracy if name in trained_on)
        in_domain = _mean([accuracy[name] for name in seen])
        unseen = _mean([value for name, value in accuracy.items() if name not in seen])
        known = {name: value for name, value in accuracy.items() if not math.isnan(value)}
        worst = min(known, key=lambda name: known[name], default="")
        every = list(accuracy.values())
        deviation = float(np.std(every, ddof=1)) if len(every) > 1 else NAN
        return cls(
            seen,
            in_domain,
            unseen,
            in_domain - unseen,
            known.get(worst, NAN),
            worst,
            deviation,
        )

    def as_record(self) -> dict[str, object]:
        """For JSON, with None for undefined values."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def in_words(self) -> list[str]:
        """All numbers in a sentence, per cent."""
        if not self.worst_generator:
            return []
        seen = ", ".join(self.training_generators)
        parts = [f"{percent(self.in_domain)} on training generators ({seen})"] if seen else []
        parts.append(f"{percent(self.unseen)} on unseen ones")
        drop = f"drop {percent(self.drop)} points" if seen else "no training generator was tested"
        return [
            f"Generalisation, mean accuracy: {', '.join(parts)} ({drop}); worst "
            f"{percent(self.worst)} ({self.worst_generator}); standard deviation over generators "
            f"{percent(self.deviation)}."
        ]

    def warnings(self) -> list[str]:
        """A sentence if the drop is large."""
        if not self.drop > LARGE_DROP:
            return []
        return [
            f"Accuracy drops by {percent(self.drop)} points from the training generators to unseen "
            f"ones. The paper calls more than {100 * LARGE_DROP:.0f} points a failure to "
            "generalise (its third signature of failure)."
        ]


def percent(value: float) -> str:
    """For example ``91.2``; a dash if undefined."""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else NAN
