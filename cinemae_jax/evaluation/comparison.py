"""Metrics of two scorings of the same images, with paired intervals."""

import dataclasses

from cinemae_jax.evaluation.metrics import Row


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Metrics of two scorings: one row per generator, then their mean.

    Attributes:
      before, after: rows of ``metrics.evaluate``.
      difference: after minus before, paired (``metrics.compare``).
    """

    before: list[Row]
    after: list[Row]
    difference: list[Row]
