"""Lines and progress bars of a job, printed by host 0 only."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from cinemae_jax.runtime import preemption

EVERY = 15  # seconds between two lines of progress


def say(text: str) -> None:
    """Prints a line, on host 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def steps(batches: Iterable[Any], start: int, total: int, what: str) -> Iterator[tuple[int, Any]]:
    """(step number, batch) pairs, with a progress bar, or lines where there is no terminal.

    Raises:
      Preempted: between two steps, if the run was asked to stop; all hosts must iterate alike.
    """
    with bar(what, total, "step", start=start) as update:
        for step, batch in enumerate(preemption.checked(batches), start + 1):
            yield step, batch
            update(1)


@contextlib.contextmanager
def bar(what: str, total: int, unit: str, *, start: int = 0) -> Iterator[Callable[[int], object]]:
    """A progress bar; where there is no terminal, a line every ``EVERY`` seconds.

    Host 0 alone shows it.  Yields a function that is told how many units were done.
    """
    if jax.process_index() or sys.stderr.isatty():
        hidden = bool(jax.process_index())
        with tqdm(desc=what, initial=start, total=total, unit=unit, disable=hidden) as shown:
            yield shown.update
        return
    done, begin, told = start, time.monotonic(), time.monotonic()

    def update(count: int) -> None:
        nonlocal done, told
        done, now = done + count, time.monotonic()
        if now - told < EVERY or done >= total:
            return
        told = now
        left = (now - begin) / max(done - start, 1) * (total - done)
        line = f"{what:<9} {done:,} of {total:,} {unit}s, about {_duration(left)} left"
        print(line, file=sys.stderr, flush=True)

    yield update


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
