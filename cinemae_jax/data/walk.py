"""Lists the image files below a folder by their names; follows symbolic links, but not loops.

Other entries are counted by reason.  An unreadable folder is an error: skipping it could lose half
a data set.
"""

import collections
import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cinemae_jax.data.decode import EXTENSIONS
from cinemae_jax.data.records import CatalogError, example_ids
from cinemae_jax.data.text import as_text

SCHEMA = pa.schema([("path", pa.string()), ("folder", pa.int32()), ("example_id", pa.uint64())])

# Paths by which one folder may be reached; links between k folders could make k! of them.
MAX_VISITS = 1000
# Number of different extensions that are counted separately.
MAX_REASONS = 20
BATCH = 65536  # paths held as Python strings at a time

# (mtime, ctime) of a folder in ns; None for a broken link.
Stamp = tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """Contents of a folder.

    Attributes:
      images: table of ``SCHEMA``, sorted by path; paths are relative, with '/'; ``folder`` is an
        index into ``folders``.
      skipped: number of entries left out, by reason.
      stamps: time stamps of everything that changes when an image is added or removed, by relative
        path ('' is the root).
    """

    images: pa.Table
    skipped: dict[str, int]
    stamps: dict[str, Stamp]

    @property
    def folders(self) -> list[str]:
        """Relative paths; '' is the root."""
        return [path for path, times in self.stamps.items() if times]

    def __len__(self) -> int:
        return len(self.images)


def walk(root: Path) -> Listing:
    """Lists a folder.

    Raises:
      CatalogError: if a folder cannot be read, or links make the tree endless.
    """
    state = _Walk(os.fspath(root))
    while state.pending:
        state.visit(*state.pending.pop())
    images = pa.concat_tables([*state.batches, state.batch()]).combine_chunks()
    images = images.take(pc.sort_indices(images["path"]))
    return Listing(images, _tally(state.skipped), state.stamps)


def stamp(path: str) -> Stamp:
    """Times of a folder, which change when an entry is added, removed or renamed."""
    try:
        return _times(os.stat(path))  # noqa: PTH116
    except OSError:
        return None


def _times(status: os.stat_result) -> tuple[int, int]:
    return status.st_mtime_ns, status.st_ctime_ns


class _Walk:
    def __init__(self, root: str) -> None:
        self.root = root
        self.pending: list[tuple[str, frozenset]] = [("", frozenset())]
        self.stamps: dict[str, Stamp] = {}
        self.skipped: collections.Counter[str] = collections.Counter()
        self.batches: list[pa.Table] = []
        self._paths: list[str] = []
        self._owners: list[int] = []
        self._num_folders = 0
        self._visits: collections.Counter[tuple[int, int]] = collections.Counter()

    def visit(self, folder: str, above: frozenset) -> None:
        """Lists one folder.

        Args:
          folder: relative path.
          above: (device, inode) of the folders that contain it.
        """
        try:
            self._visit(folder, above)
        except OSError as error:
            name = as_text(error.filename or os.path.join(self.root, folder))  # noqa: PTH118
            raise CatalogError(
                f"{name} cannot be read ({error.strerror}): make it readable, or move it out of "
                f"{as_text(self.root)}"
            ) from error

    def _visit(self, folder: str, above: frozenset) -> None:
        place = os.path.join(self.root, folder)  # noqa: PTH118
        status = os.stat(place)  # noqa: PTH116  before listing, so that later changes show
        identity = status.st_dev, status.st_ino
        if identity in above:
            self.skipped["symlink loop"] += 1
            return
        self._visits[identity] += 1
        if self._visits[identity] > MAX_VISITS:
            raise CatalogError(
                f"{as_text(place)} can be reached in more than {MAX_VISITS} ways through symbolic "
                f"links: remove some of the links below {as_text(self.root)}"
            )
        self.stamps[folder] = _times(status)
        self._num_folders += 1
        prefix, inside = f"{folder}/" if folder else "", above | {identity}
        with os.scandir(place) as entries:
            for entry in entries:
                self._meet(entry, prefix + entry.name, inside)

    def _meet(self, entry: os.DirEntry[str], path: str, inside: frozenset) -> None:
        name = entry.name
        if name.startswith(".") or name == "lost+found":
            self.skipped["hidden file or folder"] += 1
            return
        kind = _kind(entry)
        if kind == "folder":
            self.pending.append((path, inside))
        elif not path.isascii() and as_text(path) != path:
            self.skipped["name is not UTF-8"] += 1  # Arrow and JSON cannot hold it
        elif kind in ("file", "broken link") and _extension(name).lower() in EXTENSIONS:
            self._paths.append(path)
            self._owners.append(self._num_folders - 1)
            if len(self._paths) == BATCH:
                self.batches.append(self.batch())
        elif kind == "file":
            self.skipped[f"extension {_extension(name) or 'none'}"] += 1
        else:
            self.skipped[kind] += 1
            if kind == "broken link":  # its target may be a folder later
                self.stamps[path] = None

    def batch(self) -> pa.Table:
        """The paths found since the last call, with their ids."""
        ids = example_ids(self._paths)
        columns = (self._paths, np.array(self._owners, np.int32), ids)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
        self._paths, self._owners = [], []
        return pa.table(arrays, schema=SCHEMA)


def _kind(entry: os.DirEntry[str]) -> str:
    """'folder', 'file', or the reason why it is neither; follows links."""
    if entry.is_symlink():
        try:
            entry.stat()
        except (FileNotFoundError, NotADirectoryError):
            return "broken link"  # listed as an unreadable image if its name says so
        except OSError as error:
            if error.errno == errno.ELOOP:
                return "symlink loop"
            raise
    if entry.is_dir():
        return "folder"
    return "file" if entry.is_file() else "no regular file"


def _extension(name: str) -> str:
    return os.path.splitext(name)[1]  # noqa: PTH122  ten times faster than a Path


def _tally(skipped: collections.Counter[str]) -> dict[str, int]:
    """Counts by reason; rare extensions share one entry."""
    extensions = [reason for reason, _ in skipped.most_common() if reason.startswith("extension ")]
    rare = set(extensions[MAX_REASONS:])
    counts = {reason: n for reason, n in skipped.items() if reason not in rare}
    if rare:
        counts["extension of another kind"] = sum(skipped[reason] for reason in rare)
    return counts
