"""The loop that every training runs: steps, records at checkpoints, and being told to stop."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from cinemae_jax.runtime import progress
from cinemae_jax.runtime.preemption import Preempted

S = TypeVar("S")
B = TypeVar("B")


def run(
    state: S,
    batches: Iterable[B],
    advance: Callable[[S, B], tuple[S, Any]],
    *,
    start: int,
    num_steps: int,
    losses: Sequence[Any],
    at_checkpoint: Callable[[int], bool],
    record: Callable[[int, S, float], None],
    keep: Callable[[int, S, Sequence[Any]], None],
    what: str,
    rate_field: str,
) -> S:
    """Takes all steps that are left and returns the last state.

    Args:
      state: after ``start`` steps; ``advance`` may donate it.
      batches: of the steps after ``start``.
      advance: state and batch to the next state and its loss, which stays on the devices.
      start, num_steps: taken before, and taken at the end.
      losses: of steps that no record has told of (``Interrupted.resume``).
      at_checkpoint: whether the state after a step is recorded.
      record: of a step and its state: validates, logs and saves.  Its last argument is the mean
        loss since the record before.
      keep: saves the state of a run that was told to stop, and the losses of no record.
      what: name of the progress bar.
      rate_field: of the config, to be lowered where the loss is no longer finite.

    Raises:
      Preempted: when the run was told to stop, between two steps or while it was validated.
      ValueError: if the loss is not finite; what was saved before stays.
    """
    step, untold = start, list(losses)

    def tell() -> None:
        loss = float(np.mean(jax.device_get(untold)))
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss} at step {step}: lower {rate_field}")
        record(step, state, loss)
        untold.clear()

    try:
        if untold and at_checkpoint(step):  # stopped while it was validated
            tell()
        for step, batch in progress.steps(batches, start, num_steps, what):
            state, loss = advance(state, batch)
            untold.append(loss)
            if at_checkpoint(step):
                tell()
    except Preempted as stop:
        keep(step, state, untold)
        raise Preempted(f"at step {step} of {num_steps}") from stop
    return state
