"""The command line of jobs: a config file, every field of it a flag, and how to meet other hosts.

Only entry points import this: it defines global flags, which a library must not.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cinemae_jax.runtime import compilation, hosts, preemption
from cinemae_jax.runtime.console import OK, SOME_FAILED, fail, interrupted
from cinemae_jax.runtime.preemption import Preempted

# Exit code: told to stop, its state saved, so that the same command goes on (EX_TEMPFAIL of
# sysexits.h).
PREEMPTED = 75

_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and reports.")

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes; found by itself on TPU, Slurm and MPI."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "Seconds to wait for the other processes."
)


def run_config(
    argv: list[str], job: Callable[[ConfigDict, Path], Sequence[Any]], doc: str | None
) -> int:
    """Parses ``--config FILE --workdir DIR --config.a.b=v`` and runs a job, on one host or many.

    Errors that a user can mend end in one line on stderr and exit code 2; SIGTERM in exit code 75,
    when the state is saved.

    Args:
      argv: command line, program name first.
      job: returns the inputs that failed; any make the exit code 1.
      doc: of the entry point, shown by ``--help``.
    """
    if {"-h", "--help"} & set(argv):
        print(
            (doc or "").strip(),
            "\n\nEvery field of the config file is a flag: --config.a.b=value\n\n"
            "On several hosts: --distributed, and where the cluster does not say it by itself,\n"
            "--coordinator=HOST:PORT --num_processes=N --process_id=I",
        )
        return OK
    if lost := _missing_config(argv):
        return fail(ValueError(f"no config file {lost}: the repository has some in configs/"))
    try:
        flags.mark_flags_as_required(["config", "workdir"])
        stray = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        return fail(error)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:  # of the config
        return fail(error)
    code = _run(stray, job)
    return hosts.leave(code) if _DISTRIBUTED.value else code


def _missing_config(argv: Sequence[str]) -> str:
    """The config file that is named and not there; ml_collections says it in a page."""
    for i, word in enumerate(argv):
        flag, _, value = word.partition("=")
        if flag in ("--config", "-config"):
            file = (value or "".join(argv[i + 1 : i + 2])).partition(":")[0]
            return "" if Path(file).exists() else file
    return ""


def _run(stray: Sequence[str], job: Callable[[ConfigDict, Path], Sequence[Any]]) -> int:
    try:
        if stray:
            raise ValueError(f"{' '.join(stray)} is no flag: did you mean --{stray[0]}?")
        named = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        if _DISTRIBUTED.value:
            hosts.join(*named, timeout=_INITIALIZATION_TIMEOUT.value)
        elif any(value is not None for value in named):
            raise ValueError("--coordinator, --num_processes, --process_id need --distributed")
        workdir = Path(str(_WORKDIR.value))
        with hosts.together(), preemption.listening(), compilation.kept_compilations():
            hosts.require_shared(workdir)
            failed = job(_CONFIG.value, workdir)
    except Preempted as stop:
        print(f"stopped   {stop}: the same command goes on there", file=sys.stderr, flush=True)
        return PREEMPTED
    except hosts.Lost as lost:
        print(f"stopped   {lost}: the same command goes on", file=sys.stderr, flush=True)
        return hosts.LOST
    except KeyboardInterrupt:
        return interrupted()
    except (ValueError, OSError) as error:
        return fail(error)
    return SOME_FAILED if failed else OK
