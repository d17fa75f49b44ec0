"""What jobs and commands tell: lines, progress, unread images, metrics.jsonl; kept compilations."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from tqdm import tqdm

from cinemae_jax import distributed, files, preemption
from cinemae_jax.checkpoint import CheckpointError
from cinemae_jax.data.bad import BadImage, BadImages, count_by_class
from cinemae_jax.data.catalog import Catalog

BAD_IMAGES = "bad_images.csv"
CACHE_FOLDER = "jax_compilation_cache_dir"  # JAX's name of the setting
LISTED = 10
"""Bad images named on the terminal; the others are in bad_images.csv."""


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
        where = "" if images.root == Path("/") else f" of {images.root}"  # of several folders
        say(f"left out  {sum(images.skipped.values())} entries{where}: {reasons}")


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
    folder = files.cache_folder()
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
        with files.replacing(self.path) as partial:
            partial.write_text("".join(f"{line}\n" for line in self._up_to(step)))

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
