"""Joining and leaving the other processes of a run, so that none of them waits for ever.

A process that loses the others is aborted by JAX with a C++ stack trace.  Before that happens, one
line names what a user can fix: a wrong address, a process that never started, a folder that is not
shared.
"""

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from cinemae_jax.runtime import collectives, files

# Exit code of a process that did not find the others; the same as for a usage error.
UNREACHED = 2
# Exit code of a process that lost another one; the same as JAX's own abort.
LOST = 134
# First words of JAX's messages about a lost connection to another process.
BROKEN = ("UNKNOWN: ", "UNAVAILABLE: ", "DEADLINE_EXCEEDED: ", "ABORTED: ", "CANCELLED: ")
# Seconds that a process waits for the others to leave, too.
PATIENCE = 30
# Seconds within which the files written by one host must be visible to the others.
VISIBLE = 60


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    timeout: int,
) -> None:
    """Makes this process one of several.  Call it before anything asks JAX for a device.

    Args:
      coordinator: HOST:PORT of process 0; None on TPU pods, Slurm and MPI, where JAX finds it.
      num_processes, process_id: given together with the coordinator, or None.
      timeout: seconds after which the process ends with a message and exit code 2.

    Raises:
      ValueError: if only some of the three are given, or none and JAX finds no cluster.
    """
    named = (coordinator, num_processes, process_id)
    if None in named and any(value is not None for value in named):
        raise ValueError("--coordinator, --num_processes and --process_id go together: give all")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise ValueError(f"--coordinator is {coordinator!r}: give HOST:PORT of process 0")
    where = f"{coordinator}, process {process_id} of {num_processes}" if coordinator else "detected"
    if coordinator is not None and process_id == 0:
        _require_free(coordinator)
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
            "--distributed found no TPU pod, Slurm or MPI: give --coordinator=HOST:PORT, "
            "--num_processes=N and --process_id=I"
        ) from error
    finally:
        watchdog.cancel()


def _require_free(coordinator: str) -> None:
    """Raises ValueError if something listens on the port: JAX would end with a C++ stack trace."""
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"process 0 cannot listen on port {port} of --coordinator={coordinator} ({error}): "
                "end the program that uses it, or give another port to all processes"
            ) from error


def _give_up(where: str, timeout: int) -> None:
    print(
        f"error: the processes of this run did not all connect within {timeout} s (coordinator "
        f"{where}): check that all are started, with the same --coordinator, and can reach it, or "
        "raise --initialization_timeout",
        file=sys.stderr,
        flush=True,
    )
    os._exit(UNREACHED)  # the main thread is stuck inside JAX, which would abort


class Lost(RuntimeError):  # noqa: N818 - the error is another process's
    """Another process of the run has ended before its time."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raises Lost in place of the various errors that JAX raises when another process died."""
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if jax.process_count() > 1 and str(error).startswith(BROKEN):
            reason = " ".join(str(error).split())
            raise Lost(f"another process of this run is gone ({reason})") from error
        raise


def leave(code: int) -> int:
    """Leaves the distributed run; returns ``code``, or ends this process with it.

    If all processes call it, all return.  One that fails alone waits ``PATIENCE`` seconds and then
    exits at once, which tells the launcher, and through JAX the other processes.  One that has lost
    another does not wait.
    """
    client = _client()
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


def _client() -> Any:
    """JAX's connection to the coordinator, None on one process.

    JAX has no public name for it, nor for a barrier with a time limit.
    """
    try:
        return multihost_utils.distributed.global_state.client
    except AttributeError as error:
        raise RuntimeError(
            f"JAX {jax.__version__} has no multihost_utils.distributed.global_state.client: "
            "use a version of JAX that cinemae_jax names in its requirements"
        ) from error


def require_shared(folder: Path) -> None:
    """Makes the folder; raises ValueError unless all hosts see it.

    Host 0 writes a file there that the others look for.
    """
    if jax.process_count() == 1:
        return
    token = folder / f".shared-{collectives.exchange(secrets.token_hex(8))[0]}"
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    collectives.barrier("a file was written")
    seen = collectives.exchange(not unseen([token]))
    blind = [host for host, sees in enumerate(seen) if not sees]
    if jax.process_index() == 0:
        token.unlink()
    if blind:
        raise ValueError(
            f"--workdir {folder} of host 0 is not visible on hosts {blind}: use a folder on a file "
            "system that all hosts share"
        )


def unseen(paths: Sequence[Path]) -> list[Path]:
    """The files that are not visible here; shared systems may lag, so it waits, once for all."""
    left = [path for path in paths if not path.exists()]
    deadline = time.monotonic() + (VISIBLE if jax.process_count() > 1 else 0)
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [path for path in left if not path.exists()]
    return left


@contextlib.contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Inside, no other run works in the folder; a process that is killed gives it free.

    Raises:
      ValueError: on all hosts, if another run does.
    """
    with contextlib.ExitStack() as held:
        refused = ""
        if jax.process_index() == 0:
            try:
                held.enter_context(files.locked(folder))
            except files.LockedError as error:
                refused = (
                    f"--workdir {folder} is in use by another run ({error}): wait for it, stop "
                    "it, or name another --workdir"
                )
        if refused := collectives.exchange(refused)[0]:
            raise ValueError(refused)
        yield
