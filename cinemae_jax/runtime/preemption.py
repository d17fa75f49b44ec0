"""Being told to stop: by SIGTERM, as clusters do it before they take a machine away.

All hosts ask at the same moments, between two steps, and get the same answer, so that all of them
save the same step.  Among several, JAX's preemption service (the one that Orbax asks, too) agrees
on it, whichever of them got the signal; alone, a signal handler remembers it.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

T = TypeVar("T")

_asked = threading.Event()  # of the process, as its signals are
_polls = itertools.count(1)


class Preempted(Exception):  # noqa: N818 - it is no error
    """The run was told to stop; what it says is where it will go on."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While it lasts, SIGTERM asks to stop instead of ending the process.

    Enter after ``jax.distributed.initialize``, whose service listens for several hosts.
    """
    _asked.clear()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if jax.process_count() > 1 or not in_main_thread:
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: _asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def asked() -> bool:
    """Whether to stop now.  All hosts must call it equally often, with a step between."""
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_polls)):
        _asked.set()
    return _asked.is_set()


def check() -> None:
    """Raises Preempted if the run was told to stop."""
    if asked():
        raise Preempted("nothing since its last checkpoint is lost but the time")


def checked(batches: Iterable[T]) -> Iterator[T]:
    """The same batches; raises Preempted between two of them if the run was told to stop."""
    check()
    for batch in batches:
        yield batch
        check()
