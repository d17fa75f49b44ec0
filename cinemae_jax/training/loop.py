"""What every training loop shares: steps, losses between records, being told to stop."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from cinemae_jax.runtime import progress
from cinemae_jax.runtime.checkpoints import Interrupted
from cinemae_jax.runtime.preemption import Preempted

Batch = TypeVar("Batch")


class Loop:
    """Counts the steps of a training and keeps the losses that no record has reported yet.

    Attributes:
      step: taken last.
      untold: losses since the last record; they stay on the devices.
    """

    def __init__(
        self, start: int, num_steps: int, untold: Sequence[Any] = (), *, rate_field: str
    ) -> None:
        """
        Args:
          start: steps taken before.
          num_steps: steps taken at the end.
          untold: of a run that was stopped (``Interrupted.resume``).
          rate_field: field of the config to lower when the loss is not finite.
        """
        self.step, self.num_steps, self.untold = start, num_steps, list(untold)
        self._rate_field = rate_field

    def steps(
        self,
        batches: Iterable[Batch],
        what: str,
        is_recorded: Callable[[int], bool],
        record: Callable[[], None],
    ) -> Iterator[tuple[int, Batch]]:
        """(step, batch) of the steps that are left, with a progress bar called ``what``.

        Calls ``record`` after each step that ``is_recorded``, and at once if the run was stopped
        during its last record.

        Raises:
          Preempted: between two steps, once the run was told to stop.
        """
        if self.untold and is_recorded(self.step):
            record()
            self.untold.clear()
        for step, batch in progress.steps(batches, self.step, self.num_steps, what):
            self.step = step
            yield step, batch
            if is_recorded(step):
                record()
                self.untold.clear()

    def mean_loss(self) -> float:
        """Mean of the losses since the last record, which this is.

        Raises:
          ValueError: if it is not finite; what was saved before stays.
        """
        loss = float(np.mean(jax.device_get(self.untold)))
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at step {self.step}: lower {self._rate_field}")
        return loss

    @contextlib.contextmanager
    def saved_when_stopped(
        self,
        items: Callable[[], dict[str, Any]],
        interrupted: Interrupted,
        metadata: dict[str, Any],
    ) -> Iterator[None]:
        """Saves the state of a run that is told to stop, in a step or in a record.

        Args:
          items: the state then, as ``Interrupted.save`` takes it.
          interrupted: where it goes.
          metadata: of the run.

        Raises:
          Preempted: naming the step.
        """
        try:
            yield
        except Preempted as stop:
            interrupted.save(self.step, items(), metadata, self.untold)
            raise Preempted(f"at step {self.step} of {self.num_steps}") from stop
