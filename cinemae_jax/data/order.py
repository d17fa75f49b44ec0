"""The order of training images, the same for files and for a bank of their features."""

import dataclasses
import functools

import numpy as np
from jaxtyping import Int64


@dataclasses.dataclass(frozen=True)
class Order:
    """All examples of a training run, reshuffled every epoch.

    A batch may span two epochs, so only the last incomplete batch of the whole run is dropped.  The
    order depends on the fields alone, so a run can resume at any step.

    Attributes:
      num_images: N.
      batch_size: over all hosts.
      epochs: passes over the images.
      seed: of the shuffling.

    Raises:
      ValueError: if the run has less than one full batch.
    """

    num_images: int
    batch_size: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        if not self.num_steps:
            raise ValueError(
                f"batch_size {self.batch_size} exceeds {self.num_images} images x {self.epochs} "
                "epochs: no step would be taken"
            )

    @property
    def num_steps(self) -> int:
        """Number of optimiser steps."""
        return self.num_images * self.epochs // self.batch_size

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(row, epoch) of one example."""
        epoch, place = divmod(int(position), self.num_images)
        return int(_permutation(self.seed, epoch, self.num_images)[place]), epoch

    def batch(self, step: int) -> tuple[Int64[np.ndarray, " b"], Int64[np.ndarray, " b"]]:
        """(rows, epochs) of the global batch after ``step`` steps."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.num_images)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = _permutation(self.seed, int(epoch), self.num_images)[places[here]]
        return rows, epochs

    def ends_epoch(self, step: int) -> bool:
        """Whether step ``step``, counted from 1, takes the last full batch of an epoch."""
        done, before = (s * self.epochs // self.num_steps for s in (step, step - 1))
        return done > before


@functools.lru_cache(maxsize=4)  # a batch may span two epochs, or more of a tiny set
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
