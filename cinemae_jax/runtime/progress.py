"""Lines and progress bars of a job, printed by host 0 only."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from cinemae_jax.runtime import preemption


def say(text: str) -> None:
    """Prints a line, on host 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def steps(batches: Iterable[Any], start: int, total: int, what: str) -> Iterator[tuple[int, Any]]:
    """(step number, batch) pairs, with a progress bar on a terminal.

    Raises:
      Preempted: between two steps, if the run was asked to stop; all hosts must iterate alike.
    """
    silent = None if jax.process_index() == 0 else True
    with tqdm(desc=what, initial=start, total=total, unit="step", disable=silent) as bar:
        for step, batch in enumerate(preemption.checked(batches), start + 1):
            yield step, batch
            bar.update()
