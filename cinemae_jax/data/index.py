"""The listing of a data set, kept from one run to the next in the user's cache folder.

A warm start looks at the time stamps of the folders and lists none of them.  The file lies in
``$XDG_CACHE_HOME/cinemae_jax/index``, or below ``~/.cache``; never inside the data set.  The
listings that were used last are kept.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cinemae_jax.data import walk
from cinemae_jax.data.decode import EXTENSIONS
from cinemae_jax.data.walk import Listing
from cinemae_jax.runtime import files

# Of the file's format, and of what counts as an image.
VERSION = [1, sorted(EXTENSIONS)]

TICK_NS = 100_000_000
# Longest step of a file system's clock; coarse where its stamps are whole seconds.
COARSE_TICK_NS = 2_500_000_000

# Files that the cache holds: those that were used last.
KEPT = 64

_FACTS = b"cinemae_jax"
_LOG = logging.getLogger(__name__)


def listing(root: Path, *, cache: bool = True) -> Listing:
    """Every image below ``root``, from the cache if no folder has changed since.

    A change is seen by the modification and status times of folders: images that come, go or are
    renamed.  Contents of files do not matter here.

    Args:
      root: folder.
      cache: False lists anew, and neither reads nor writes a cache file.

    Raises:
      CatalogError: if a folder cannot be read.
    """
    file = cache_file(root) if cache else None
    if file is None:
        return walk.walk(root)
    known = _read(file, root)
    if known is not None:
        return known
    start = time.time_ns()
    found = walk.walk(root)
    if _settled(found, start):
        _write(file, root, found)
    return found


def cache_file(root: Path) -> Path | None:
    """Where the listing of a folder is kept; None if that would be inside the folder itself."""
    if (base := files.cache_folder()) is None:
        return None
    real = os.path.realpath(root)
    folder = base / "index"
    if Path(os.path.realpath(folder)).is_relative_to(real):
        return None
    return folder / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.parquet"


def _settled(found: Listing, start: int) -> bool:
    """Whether any later change must show in a stamp: none is as new as the listing itself."""
    for times in found.stamps.values():
        for t in times or ():
            if t > start - (TICK_NS if t % 1_000_000_000 else COARSE_TICK_NS):
                return False
    return True


def _read(file: Path, root: Path) -> Listing | None:
    """A kept listing that still holds; a file that is damaged is as good as none."""
    if not file.is_file():
        return None
    try:
        table = pq.read_table(file, page_checksum_verification=True)
        facts = json.loads(table.schema.metadata[_FACTS])
        if facts["version"] != VERSION or facts["root"] != os.path.realpath(root):
            return None
        stamps = {path: tuple(s) if s else None for path, s in facts["stamps"].items()}
        images = table.replace_schema_metadata(None)
        if images.schema != walk.SCHEMA:
            return None
        found = Listing(images, facts["skipped"], stamps)
    except (pa.ArrowException, OSError, LookupError, TypeError, ValueError, AttributeError) as e:
        _LOG.warning("%s is damaged and will be made anew (%s)", file, e)
        return None
    fresh = all(walk.stamp(os.path.join(root, p)) == s for p, s in stamps.items())  # noqa: PTH118
    if not fresh:
        return None
    with contextlib.suppress(OSError):  # the cache may be another's
        os.utime(file)  # used last: _prune
    return found


def _write(file: Path, root: Path, found: Listing) -> None:
    """Keeps a listing; where that fails, the next start is slower and nothing else."""
    facts = {
        "version": VERSION,
        "root": os.path.realpath(root),
        "skipped": found.skipped,
        "stamps": found.stamps,
    }
    table = found.images.replace_schema_metadata({_FACTS: json.dumps(facts)})
    partial = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")  # ours alone
        os.close(handle)
        pq.write_table(
            table, partial, compression="zstd", use_dictionary=False, write_page_checksum=True
        )
        os.replace(partial, file)
        _prune(file.parent)
    except OSError as error:
        _LOG.warning("the listing of %s is not kept: %s", root, error)
        if partial:
            Path(partial).unlink(missing_ok=True)


def _prune(folder: Path) -> None:
    """Drops all but ``KEPT`` files, and so what killed processes have left too.

    Others may do so at the same time, or have a file open: it stays theirs.
    """
    with os.scandir(folder) as entries:
        ages = []
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                ages.append((entry.stat().st_mtime_ns, entry.path))
    for _, path in sorted(ages, reverse=True)[KEPT:]:
        Path(path).unlink(missing_ok=True)
