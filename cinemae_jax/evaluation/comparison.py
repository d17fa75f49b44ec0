"""Two scorings of the same images, measured with paired intervals."""

import dataclasses

from cinemae_jax.evaluation.metrics import Row


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two scorings of the same images: a row a generator, and last the mean of all.

    Attributes:
      before, after: of ``metrics.evaluate``.
      difference: after less before, paired (``metrics.compare``).
    """

    before: list[Row]
    after: list[Row]
    difference: list[Row]
