"""Joining the other processes of a run, and leaving them, so that none waits for ever.

JAX ends a process that loses the others with a stack trace of C++.  What a user can mend (a wrong
address, a process that never started, a folder that is not shared) is said in one line before that.
"""

import contextlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from cinemae_jax.runtime import collectives

# Exit code of a process that did not find the others: usage or configuration.
UNREACHED = 2
# Exit code of a process that lost another one: that of JAX, where JAX notices first and aborts.
LOST = 134
# How messages of JAX begin when it is the connection to another process that failed.
BROKEN = ("UNKNOWN: ", "UNAVAILABLE: ", "DEADLINE_EXCEEDED: ", "ABORTED: ", "CANCELLED: ")
# Seconds that a process which stops early waits for the others to stop as well.
PATIENCE = 30
# Seconds in which a file that one host has written must be seen by the others.
VISIBLE = 60


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    timeout: int,
) -> None:
    """Makes this process one of several; before anything asks JAX for a device.

    Args:
      coordinator: HOST:PORT of process 0; None where the cluster tells (TPU, Slurm, MPI).
      num_processes, process_id: as the coordinator, all three or none.
      timeout: seconds, after which the process ends with a message and exit code 2.

    Raises:
      ValueError: if there is no cluster that tells, or only some of the three are given.
    """
    named = (coordinator, num_processes, process_id)
    if None in named and any(value is not None for value in named):
        raise ValueError("--coordinator, --num_processes and --process_id go together: give all")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator is {coordinator!r}: give HOST:PORT of process 0")
    where = f"{coordinator}, process {process_id} of {num_processes}" if coordinator else "found"
    watchdog = threading.Timer(timeout, _give_up, [where, timeout])
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=timeout + 60,  # beyond the watchdog: JAX aborts the process
            cluster_detection_method=None if coordinator is None else "deactivate",
        )
    except jax.errors.JaxRuntimeError as error:  # process 0 cannot listen there
        raise ValueError(f"coordinator {where}: {error}") from error
    except ValueError as error:
        if coordinator is not None:
            raise
        raise ValueError(
            "--distributed found neither TPU pod nor Slurm nor MPI: give --coordinator=HOST:PORT, "
            "--num_processes=N and --process_id=I"
        ) from error
    finally:
        watchdog.cancel()


def _give_up(where: str, timeout: int) -> None:
    print(
        f"error: the processes of this run did not all meet within {timeout} s (coordinator "
        f"{where}): are all started, with the same --coordinator, and can they reach it? "
        "--initialization_timeout waits longer",
        file=sys.stderr,
        flush=True,
    )
    os._exit(UNREACHED)  # the thread that waits is inside JAX, which would abort


class Lost(RuntimeError):  # noqa: N818 - not this process erred
    """Another process of the run is gone, and what it knew with it."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raises Lost where JAX raises any of several errors because another process died."""
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if jax.process_count() > 1 and str(error).startswith(BROKEN):
            reason = " ".join(str(error).split())
            raise Lost(f"another process of this run is gone ({reason})") from error
        raise


def leave(code: int) -> int:
    """Ends the company of the other processes; returns ``code``, or ends this process with it.

    Where all come here, all return.  A process that fails alone waits ``PATIENCE`` seconds, and
    then ends at once: its exit tells the launcher, and JAX the others.  One that has lost another
    does not wait.
    """
    client = multihost_utils.distributed.global_state.client
    if client is None:
        return code
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if code != LOST:
            client.wait_at_barrier("leaving", PATIENCE * 1000)
            jax.distributed.shutdown()
            return code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def require_shared(folder: Path) -> None:
    """Raises ValueError unless all hosts see the same folder; makes it.

    The first one writes a file there that the others look for.
    """
    if jax.process_count() == 1:
        return
    token = folder / f".shared-{collectives.exchange(secrets.token_hex(8))[0]}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    collectives.barrier("a file was written")
    blind = [host for host, sees in enumerate(collectives.exchange(appears(token))) if not sees]
    if jax.process_index() == 0:
        token.unlink()
    if blind:
        raise ValueError(
            f"--workdir {folder} is not the same folder on all hosts (not on {blind}, as on host "
            "0): put it on a file system that they share"
        )


def appears(path: Path) -> bool:
    """Whether a file that another host has written shows up here; shared systems may lag."""
    deadline = time.monotonic() + VISIBLE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
