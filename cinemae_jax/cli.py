"""What the entry points share: flags, hosts, exit codes, progress, metrics.jsonl."""

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from cinemae_jax import console, distributed, hosts, preemption
from cinemae_jax.checkpoint import CheckpointError
from cinemae_jax.console import OK, SOME_FAILED, fail
from cinemae_jax.data.bad import BadImage, BadImages, count_by_class
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.preemption import Preempted

PREEMPTED = 75
"""Exit code: told to stop, its state saved, so that the same command goes on (EX_TEMPFAIL of
sysexits.h)."""

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

BAD_IMAGES = "bad_images.csv"
CACHE_FOLDER = "jax_compilation_cache_dir"  # JAX's name of the setting
LISTED = 10
"""Bad images named on the terminal; the others are in bad_images.csv."""


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
    try:
        flags.mark_flags_as_required(["config", "workdir"])
        stray = flags.FLAGS(argv)[1:]
    except flags.Error as error:
        return fail(error)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:  # of the config
        return fail(error)
    code = _run(stray, job)
    return hosts.leave(code) if _DISTRIBUTED.value else code


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
        with hosts.together(), preemption.listening(), kept_compilations():
            hosts.require_shared(workdir)
            failed = job(_CONFIG.value, workdir)
    except Preempted as stop:
        print(f"stopped   {stop}: the same command goes on there", file=sys.stderr, flush=True)
        return PREEMPTED
    except hosts.Lost as lost:
        print(f"stopped   {lost}: the same command goes on", file=sys.stderr, flush=True)
        return hosts.LOST
    except (ValueError, OSError) as error:
        return fail(error)
    return SOME_FAILED if failed else OK


def say(text: str) -> None:
    """A line for the reader, from the first host only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def share_bad_images(bad: BadImages) -> None:
    """Merges the lists of all hosts, for all of them and into one file."""
    if jax.process_count() == 1:
        return
    for listed in distributed.exchange([dataclasses.asdict(image) for image in bad.listed]):
        bad.add(BadImage(**image) for image in listed)
    distributed.barrier("lists of bad images are merged")
    if jax.process_index() == 0:
        bad.tidy()


def report_bad_images(workdir: Path, bad: Sequence[BadImage]) -> None:
    """Names on the terminal the images that could not be read, the first few of them."""
    for image in bad[:LISTED]:
        say(f"unread    {image.path}: {image.error}")
    if bad:
        counts = ", ".join(f"{n} {name}" for name, n in count_by_class(bad).items())
        say(f"unread    {len(bad)} images ({counts}), listed in {workdir / BAD_IMAGES}")


def report_skipped(images: Catalog) -> None:
    """Says which files of a data set were left out, by reason."""
    if images.skipped:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(images.skipped.items()))
        say(f"left out  {sum(images.skipped.values())} entries of {images.root}: {reasons}")


def progress(
    batches: Iterable[Any], start: int, total: int, what: str
) -> Iterator[tuple[int, Any]]:
    """(number of the step, batch) with a bar on a terminal and none in a pipe.

    Raises:
      Preempted: between two steps, once the run was told to stop; all hosts must iterate alike.
    """
    silent = None if jax.process_index() == 0 else True
    with tqdm(desc=what, initial=start, total=total, unit="step", disable=silent) as bar:
        for step, batch in enumerate(preemption.checked(batches), start + 1):
            yield step, batch
            bar.update()


@contextlib.contextmanager
def kept_compilations() -> Iterator[None]:
    """Programs are compiled once a machine, unless JAX was told of a cache of its own."""
    folder = console.cache_folder()
    if getattr(jax.config, CACHE_FOLDER) or folder is None:
        yield
        return
    jax.config.update(CACHE_FOLDER, str(folder / "xla"))
    try:
        yield
    finally:
        jax.config.update(CACHE_FOLDER, None)
        compilation_cache.reset_cache()


def require_same(
    saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path, *, may_differ: Sequence[str]
) -> None:
    """Refuses to resume a run under settings that would change its result.

    Args:
      saved, now: metadata of the checkpoint and of this run, nested.
      folder: of the checkpoint, for the message.
      may_differ: dotted names, or beginnings of them, that do not matter.

    Raises:
      CheckpointError: naming the fields that differ.
    """
    before, after = _dotted(saved), _dotted(json.loads(json.dumps(now)))
    changed = [
        f"{name} was {before.get(name)!r}, is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.startswith(tuple(may_differ))
    ]
    if changed:
        raise CheckpointError(
            f"{folder} belongs to another run: {'; '.join(changed)}. "
            "Use another --workdir, or the old settings"
        )


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_section = isinstance(value, Mapping)
        flat |= _dotted(value, f"{prefix}{name}.") if is_section else {prefix + name: value}
    return flat


class Metrics:
    """metrics.jsonl of a run: one JSON object a line, with its step."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "metrics.jsonl"
        workdir.mkdir(parents=True, exist_ok=True)

    def rewind(self, step: int) -> None:
        """Drops what was written after ``step``: it will be computed again."""
        if jax.process_index() or not self.path.exists():
            return
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in self._up_to(step)))
        os.replace(partial, self.path)

    def _up_to(self, step: int) -> Iterator[str]:
        for line in self.path.read_text().splitlines():
            try:
                written = json.loads(line)["step"]
            except (ValueError, KeyError):  # the line that a kill tore
                continue
            if written <= step:
                yield line

    def write(self, step: int, **values: float) -> None:
        """Adds a line; what is not finite becomes null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        if jax.process_index() == 0:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
