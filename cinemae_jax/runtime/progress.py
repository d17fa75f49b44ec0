"""Lines and progress bars of a job, from the first host only."""

from collections.abc import Iterable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from cinemae_jax.runtime import preemption


def say(text: str) -> None:
    """A line for the reader, from the first host only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def steps(batches: Iterable[Any], start: int, total: int, what: str) -> Iterator[tuple[int, Any]]:
    """(number of the step, batch) with a bar on a terminal and none in a pipe.

    Raises:
      Preempted: between two steps, once the run was told to stop; all hosts must iterate alike.
    """
    silent = None if jax.process_index() == 0 else True
    with tqdm(desc=what, initial=start, total=total, unit="step", disable=silent) as bar:
        for step, batch in enumerate(preemption.checked(batches), start + 1):
            yield step, batch
            bar.update()
