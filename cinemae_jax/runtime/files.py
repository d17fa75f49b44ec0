"""Files that are there in full or not at all, and where what can be made again is kept."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CACHE = "cinemae_jax"  # folder in that of the user's caches


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, whose file takes the place of ``path`` when the block has ended well.

    Until then, and if the block fails, what was there stays.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def require_writable(path: Path | None) -> None:
    """Fails before hours of work, not after them; None is no file, and fine.

    Raises:
      ValueError: naming the path.
    """
    if path and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise ValueError(f"cannot write {path}: it needs a file name in a folder to write to")


def write_json(path: Path, report: Any) -> None:
    """Writes a report whole; its names of files may hold bytes that are no UTF-8."""
    with (
        replacing(path) as partial,
        open(partial, "w", encoding="utf-8", errors="surrogateescape") as file,
    ):
        json.dump(report, file, indent=1, allow_nan=False)


def cache_folder() -> Path | None:
    """Where this package may keep what can be made again; None for a user without a home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if Path(home).is_absolute():  # the standard says to ignore any other
        return Path(home) / CACHE
    try:
        return Path.home() / ".cache" / CACHE
    except RuntimeError:
        return None
