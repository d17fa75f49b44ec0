"""Caches the listing of a data set between runs.

With a valid cache file, only the time stamps of the folders are read.  Cache files lie in
``$XDG_CACHE_HOME/cinemae_jax/index`` (default ``~/.cache``), never inside the data set; the most
recently used ones are kept.
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

# Version of the file format, and the extensions that count as images.
VERSION = [1, sorted(EXTENSIONS)]

# Longest step of a file system's clock; the coarse one where time stamps are whole seconds.
TICK_NS = 100_000_000
COARSE_TICK_NS = 2_500_000_000

# Number of cache files that are kept.
KEPT = 64

_FACTS = b"cinemae_jax"
_LOG = logging.getLogger(__name__)


def listing(root: Path, *, cache: bool = True) -> Listing:
    """All images below ``root``, from the cache if no folder has changed.

    Changes show in the modification and status times of folders: images added, removed or renamed.
    The contents of files do not matter here.

    Args:
      root: folder.
      cache: False lists the folder, and neither reads nor writes a cache file.

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
    """Cache file for a folder; None if it would lie inside that folder."""
    if (base := files.cache_folder()) is None:
        return None
    real = os.path.realpath(root)
    folder = base / "index"
    if Path(os.path.realpath(folder)).is_relative_to(real):
        return None
    return folder / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.parquet"


def _settled(found: Listing, start: int) -> bool:
    """Whether every later change must alter a time stamp: all are older than the listing."""
    for times in found.stamps.values():
        for t in times or ():
            if t > start - (TICK_NS if t % 1_000_000_000 else COARSE_TICK_NS):
                return False
    return True


def _read(file: Path, root: Path) -> Listing | None:
    """The cached listing, or None if it is missing, damaged or out of date."""
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
        _LOG.warning("%s is damaged and will be rebuilt (%s)", file, e)
        return None
    fresh = all(walk.stamp(os.path.join(root, p)) == s for p, s in stamps.items())  # noqa: PTH118
    if not fresh:
        return None
    with contextlib.suppress(OSError):  # the cache may belong to another user
        os.utime(file)  # marks it as recently used, for _prune
    return found


def _write(file: Path, root: Path, found: Listing) -> None:
    """Writes a listing; if that fails, only the next start is slower."""
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
        handle, partial = tempfile.mkstemp(dir=file.parent, suffix=".partial")
        os.close(handle)
        pq.write_table(
            table, partial, compression="zstd", use_dictionary=False, write_page_checksum=True
        )
        os.replace(partial, file)
        _prune(file.parent)
    except OSError as error:
        _LOG.warning("the listing of %s cannot be cached: %s", root, error)
        if partial:
            Path(partial).unlink(missing_ok=True)


def _prune(folder: Path) -> None:
    """Deletes all but the ``KEPT`` newest files, including partial files of killed processes.

    Safe while other processes prune too or have a file open.
    """
    with os.scandir(folder) as entries:
        ages = []
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                ages.append((entry.stat().st_mtime_ns, entry.path))
    for _, path in sorted(ages, reverse=True)[KEPT:]:
        Path(path).unlink(missing_ok=True)
