"""Disturbs a job from inside its process, as the environment variable DISTURB says.

"part N" and "line N": process 1 kills itself before it writes the N-th part of a bank, or the N-th
line of the log.  "slow N": every batch takes N milliseconds more.  A ``sitecustomize`` module calls
this, since the processes are started by a launch script.
"""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def disturb() -> None:
    disturbance = os.environ.get("DISTURB", "")
    if not disturbance or not any(word.startswith("cinemae_jax.") for word in sys.orig_argv):
        return
    from cinemae_jax.data.unread import BadImages
    from cinemae_jax.features import bank
    from cinemae_jax.training.metrics_log import Metrics

    what, number = disturbance.split()
    if what == "slow":
        _before(BadImages, "note", lambda: time.sleep(int(number) / 1000))
    elif "--process_id=1" in sys.orig_argv:
        _before({"part": bank, "line": Metrics}[what], "write", _killing(int(number)))


def _before(owner: Any, name: str, action: Callable[[], None]) -> None:
    original = getattr(owner, name)

    def function(*arguments: Any, **options: Any) -> Any:
        action()
        return original(*arguments, **options)

    setattr(owner, name, function)


def _killing(number: int) -> Callable[[], None]:
    calls = itertools.count(1)

    def action() -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return action
