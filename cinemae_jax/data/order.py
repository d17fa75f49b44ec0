"""Which training image comes when: the same order from files and from a bank of their features."""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Order:
    """All examples of a training run, shuffled anew every epoch.

    Epochs follow each other without a gap, so that no image is ever dropped; only the last
    incomplete batch of the whole run is.  A function of its fields alone, so that a run can go on
    anywhere.

    Attributes:
      num_images: N.
      batch_size: global, over all hosts.
      epochs: passes over the images.
      seed: of the shuffling.

    Raises:
      ValueError: if there is not one full batch.
    """

    num_images: int
    batch_size: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        if not self.num_steps:
            raise ValueError(
                f"batch_size {self.batch_size} is above {self.num_images} images x {self.epochs} "
                "epochs: no step would be taken"
            )

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.num_images * self.epochs // self.batch_size

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(row, epoch) of one example of the run."""
        epoch, place = divmod(int(position), self.num_images)
        return int(_permutation(self.seed, epoch, self.num_images)[place]), epoch

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, epochs), each (batch_size,) int64, of the global batch after ``step`` steps."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(positions, self.num_images)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = _permutation(self.seed, int(epoch), self.num_images)[places[here]]
        return rows, epochs

    def ends_epoch(self, step: int) -> bool:
        """Whether the last full batch of an epoch was that of step ``step``, counted from 1."""
        done, before = (s * self.epochs // self.num_steps for s in (step, step - 1))
        return done > before


@functools.lru_cache(maxsize=4)  # a batch meets two epochs at their border, or more if tiny
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
