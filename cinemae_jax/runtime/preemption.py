"""Stopping on SIGTERM, which clusters send before they take a machine away.

All hosts ask between the same two steps and get the same answer, so all of them save the same step.
On several hosts JAX's preemption service, which Orbax uses too, spreads the signal from whichever
host received it.  On one host a signal handler records it.
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

_asked = threading.Event()  # per process, like signal handlers
_polls = itertools.count(1)


class Preempted(Exception):  # noqa: N818 - not an error
    """The run was asked to stop; the message says where it will resume."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Inside, SIGTERM asks the run to stop instead of ending the process.

    On several hosts enter it after ``jax.distributed.initialize``, whose service listens there.
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
    """Whether to stop now.  All hosts must call it equally often, with a step in between."""
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_polls)):
        _asked.set()
    return _asked.is_set()


def check() -> None:
    """Raises Preempted if the run was asked to stop."""
    if asked():
        raise Preempted("on request, work since the last checkpoint will be repeated")


def checked(batches: Iterable[T]) -> Iterator[T]:
    """The same batches; raises Preempted between two of them if the run was asked to stop."""
    check()
    for batch in batches:
        yield batch
        check()
