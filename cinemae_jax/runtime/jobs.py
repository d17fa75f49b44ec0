"""The command line of jobs: a config file, every field of it a flag, and how to meet other hosts.

Only entry points import this module: it defines global flags, which a library must not do.
"""

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from absl import flags
from ml_collections import ConfigDict, config_flags

from cinemae_jax.runtime import compilation, hosts, preemption
from cinemae_jax.runtime.console import (
    OK,
    SOME_FAILED,
    accept_any_name,
    at_home,
    crashed,
    fail,
    interrupted,
    silence_decoders,
)
from cinemae_jax.runtime.devices import SPMD, Replicas, Spmd
from cinemae_jax.runtime.preemption import Preempted

# Exit code: stopped on request with the state saved; the same command resumes (EX_TEMPFAIL of
# sysexits.h).
PREEMPTED = 75
# The package's own config files, which ``--config`` takes by name.
CONFIGS = Path(__file__).parents[1] / "configs"

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, or name of a packaged one.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and reports.")

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Join other processes; TPU pods, Slurm and MPI need no address."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes of this run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    "initialization_timeout", 300, "Seconds to wait for the other processes."
)
_SPMD = flags.DEFINE_enum("spmd", "pmap", SPMD, "How steps are mapped over the devices.")

HELP = """
--config takes a Python file with get_config(), or the name of a packaged config:
{packaged}.
Every field of the config is a flag: --config.a.b=value

On several hosts add --distributed, and outside TPU pods, Slurm and MPI also
--coordinator=HOST:PORT --num_processes=N --process_id=I

--spmd=shard_map maps steps over the devices by jax.shard_map instead of jax.pmap"""


def run_config(
    argv: list[str], job: Callable[[ConfigDict, Path], Sequence[Any]], doc: str | None
) -> int:
    """Parses ``--config FILE --workdir DIR --config.a.b=v`` and runs a job, on one host or many.

    A mistake of the user is one line on stderr and exit code 2.  SIGTERM saves the state and ends
    with exit code 75; a bug prints its traceback and ends with 70.

    Args:
      argv: command line, program name first.
      job: returns the inputs that failed; if there are any, the exit code is 1.
      doc: docstring of the entry point, shown by ``--help``.
    """
    if {"-h", "--help"} & set(argv):
        print((doc or "").strip(), HELP.format(packaged=", ".join(packaged_configs())), sep="\n")
        return OK
    silence_decoders()
    accept_any_name()
    words: list[str] = []
    try:
        flags.mark_flags_as_required(["config", "workdir"])
        words = with_config_files([at_home(word) for word in argv])
        stray = flags.FLAGS(words)[1:]
        _require_config_dict()
        _expand_home(_CONFIG.value)
    except flags.Error as error:
        return fail(_in_words(error))
    except Exception as error:
        return fail(ValueError(_fault_of_config(error, words)))
    code = _run(stray, job)
    return hosts.leave(code) if _DISTRIBUTED.value else code


def _in_words(error: flags.Error) -> Exception:
    """absl's message about missing flags, in words for users; others as they are."""
    missing = re.findall(r"Flag (--\w+) must have a value other than None", str(error))
    if not missing:
        return error
    return ValueError(
        f"{' and '.join(dict.fromkeys(missing))} is missing: give --config=FILE_OR_NAME and "
        "--workdir=FOLDER (see --help)"
    )


def replicas() -> Replicas:
    """All devices of the run, mapped as ``--spmd`` says; call it inside a job."""
    return Replicas(spmd=cast(Spmd, _SPMD.value))


def packaged_configs() -> dict[str, Path]:
    """The config files of this package, by the names that ``--config`` takes."""
    files = [path for path in sorted(CONFIGS.rglob("*.py")) if path.name != "__init__.py"]
    return {path.relative_to(CONFIGS).with_suffix("").as_posix(): path for path in files}


def with_config_files(argv: Sequence[str]) -> list[str]:
    """The command line with a path in place of the name of a packaged config.

    Raises:
      ValueError: if ``--config`` names neither a file nor a packaged config.
    """
    words, given = [], iter(argv)
    for word in given:
        flag, equals, value = word.partition("=")
        if flag in ("--flagfile", "-flagfile"):
            raise ValueError("--flagfile is not read: give the flags themselves, or a config file")
        if flag in ("--config", "-config"):
            word = f"--config={_config_file(value if equals else next(given, ''))}"
        words.append(word)
    return words


def _config_file(value: str) -> str:
    name, colon, argument = value.partition(":")  # what follows is passed to get_config
    if Path(name).is_file():
        return value
    packaged = packaged_configs()
    if name not in packaged:
        raise ValueError(
            f"--config {name}: neither a file nor a packaged config: give a path, or one of "
            f"{', '.join(packaged)}"
        )
    return f"{packaged[name]}{colon}{argument}"


def _require_config_dict() -> None:
    if not isinstance(_CONFIG.value, ConfigDict):
        kind = type(_CONFIG.value).__name__
        raise ValueError(
            f"--config: get_config() returns a {kind}: return an ml_collections.ConfigDict, as "
            f"{CONFIGS / 'sd14.py'} does"
        )


def _expand_home(config: ConfigDict) -> None:
    """Expands ``~`` in every text of the configuration."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            _expand_home(value)
            continue
        expanded = value
        if isinstance(value, str):
            expanded = at_home(value)
        elif isinstance(value, tuple) and all(isinstance(one, str) for one in value):
            expanded = tuple(map(at_home, value))
        if expanded != value:
            config[name] = expanded


def _fault_of_config(error: Exception, words: Sequence[str]) -> str:
    """What is wrong with the configuration, with file and line if the file itself fails."""
    path = next((word[9:] for word in words if word.startswith("--config=")), "").partition(":")[0]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if path and Path(frame.filename).absolute() == Path(path).absolute()
    ]
    if lines:
        return f"{path}, line {lines[-1]}: {type(error).__name__}: {error}"
    if isinstance(error, AttributeError) and "get_config" in str(error):
        return f"{path} has no get_config(): define it, as {CONFIGS / 'sd14.py'} does"
    if isinstance(error, KeyError):  # whose own text is quoted
        return f"--config has no field {error.args[0]}"
    return str(error) or type(error).__name__


def _run(stray: Sequence[str], job: Callable[[ConfigDict, Path], Sequence[Any]]) -> int:
    try:
        if stray:
            raise ValueError(f"unexpected {' '.join(stray)}: did you mean --{stray[0]}?")
        named = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        if _DISTRIBUTED.value:
            hosts.join(*named, timeout=_INITIALIZATION_TIMEOUT.value)
        elif any(value is not None for value in named):
            raise ValueError("--coordinator, --num_processes and --process_id need --distributed")
        workdir = Path(str(_WORKDIR.value))
        with hosts.together(), preemption.listening(), compilation.kept_compilations():
            hosts.require_shared(workdir)
            with hosts.only_run(workdir):
                failed = job(_CONFIG.value, workdir)
    except (Preempted, hosts.Lost) as stop:
        print(f"stopped   {stop}: rerun the same command to resume", file=sys.stderr, flush=True)
        return PREEMPTED if isinstance(stop, Preempted) else hosts.LOST
    except KeyboardInterrupt:
        return interrupted()
    except (ValueError, OSError) as error:
        return fail(error)
    except Exception:
        return crashed()
    return SOME_FAILED if failed else OK
