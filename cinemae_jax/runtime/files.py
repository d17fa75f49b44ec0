"""Files that are written whole or not at all, and the folder of caches."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CACHE = "cinemae_jax"  # folder inside the user's cache folder

LOCK = ".lock"  # file in a folder that a run works in


class LockedError(OSError):
    """Another process holds a lock; the message says which."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which the system releases when the process ends, however it does.

    File systems and systems without such locks (Windows) are used without one.

    Raises:
      LockedError: if another process holds it.
    """
    if fcntl is None:
        yield
        return
    existed = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise LockedError(file.read(200).strip() or "unknown process") from error
            except OSError:  # this file system has no locks
                path.unlink(missing_ok=True)
                yield
                return
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                continue  # its last holder has just removed it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                if not existed:  # a run that never began leaves nothing
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            return


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to; its file replaces ``path`` at the end of the block.

    Until then, and if the block raises, the old file stays.
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
    """Raises ValueError, naming the path, if it cannot be written; None always passes.

    Call it before the work, so that a wrong path costs nothing.
    """
    if path and (path.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
        raise ValueError(f"cannot write {path}: give a file name in an existing, writable folder")


def write_json(path: Path, report: Any) -> None:
    """Writes a report whole; file names in it may hold bytes that are not UTF-8."""
    with (
        replacing(path) as partial,
        open(partial, "w", encoding="utf-8", errors="surrogateescape") as file,
    ):
        json.dump(report, file, indent=1, allow_nan=False)


def cache_folder() -> Path | None:
    """Folder for what can be computed again; None for a user without a home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if Path(home).is_absolute():  # the XDG standard says to ignore relative paths
        return Path(home) / CACHE
    try:
        return Path.home() / ".cache" / CACHE
    except RuntimeError:
        return None
