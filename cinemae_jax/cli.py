"""What the entry points share: flags, exit codes, progress, metrics.jsonl."""

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from cinemae_jax.checkpoint import CheckpointError
from cinemae_jax.data.bad import BadImage, count_by_class, write_bad_images

OK, SOME_FAILED, USAGE = 0, 1, 2
"""Exit codes: all done; some inputs failed, each named; usage or configuration."""

_CONFIG = config_flags.DEFINE_config_file("config", None, "Python file with get_config().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and reports.")


LISTED = 10
"""Bad images named on the terminal; the others are in bad_images.csv."""


def run_config(argv: list[str], job: Callable[[ConfigDict, Path], Sequence[Any]]) -> int:
    """Parses ``--config FILE --workdir DIR --config.a.b=v`` and runs a job.

    Errors that a user can mend end in one line on stderr and exit code 2.

    Args:
      argv: command line, program name first.
      job: returns the inputs that failed; any make the exit code 1.
    """
    try:
        flags.mark_flags_as_required(["config", "workdir"])
        flags.FLAGS(argv)
    except flags.Error as error:
        return fail(error)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:  # of the config
        return fail(error)
    try:
        failed = job(_CONFIG.value, Path(str(_WORKDIR.value)))
    except (ValueError, OSError) as error:
        return fail(error)
    return SOME_FAILED if failed else OK


def fail(error: Exception) -> int:
    """Says on one line of stderr what went wrong, and returns the exit code for it."""
    print("error:", *str(error).split(), file=sys.stderr)
    return USAGE


def say(text: str) -> None:
    """A line for the reader, from the first host only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def report_bad_images(workdir: Path, bad: Sequence[BadImage]) -> list[BadImage]:
    """Names the images that could not be read, in bad_images.csv and on the terminal."""
    path = workdir / "bad_images.csv"
    listed = write_bad_images(path, bad)
    for image in listed[:LISTED]:
        say(f"unread    {image.path}: {image.error}")
    if listed:
        counts = ", ".join(f"{n} {name}" for name, n in count_by_class(listed).items())
        say(f"unread    {len(listed)} images ({counts}), all listed in {path}")
    return listed


def progress(
    batches: Iterable[Any], start: int, total: int, what: str
) -> Iterator[tuple[int, Any]]:
    """(number of the step, batch) with a bar on a terminal and none in a pipe."""
    bar = tqdm(batches, desc=what, initial=start, total=total, unit="step", disable=None)
    return zip(itertools.count(start + 1), bar, strict=False)


def require_same(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuses to resume a run under another configuration.

    Raises:
      CheckpointError: naming the fields that differ.
    """
    now = json.loads(json.dumps(now))
    changed = [
        f"{name} was {saved.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if saved.get(name) != value
    ]
    if changed:
        raise CheckpointError(
            f"{folder} belongs to another run: {'; '.join(changed)}. "
            "Use another --workdir, or the old settings"
        )


class Metrics:
    """metrics.jsonl of a run: one JSON object a line, with its step."""

    def __init__(self, workdir: Path) -> None:
        self.path = workdir / "metrics.jsonl"
        workdir.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def rewind(self, step: int) -> None:
        """Drops what was written after ``step``: it will be computed again."""
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines()
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        os.replace(partial, self.path)

    def write(self, step: int, **values: float) -> None:
        if jax.process_index() == 0:
            with open(self.path, "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
