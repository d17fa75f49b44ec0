"""Opens every file of a data set.

In: a folder.  Out: a table with the facts about each file (``facts``), from which ``diagnosis``
finds what is wrong with the set.
"""

import contextlib
import dataclasses
import os
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from cinemae_jax.data import catalog, records
from cinemae_jax.data.catalog import Catalog, CatalogError
from cinemae_jax.data.inspect.examiner import Examiner

CHUNK = 32  # files per task of a worker
UNLABELLED = "unlabelled"

# The fields of ``facts.Facts``, in their order.
FACTS_SCHEMA = pa.schema(
    [
        ("reason", pa.string()),
        ("error", pa.string()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.binary()),
        ("format", pa.string()),
        ("wrong_extension", pa.bool_()),
        ("mode", pa.string()),
        ("deep", pa.bool_()),
        ("alpha", pa.bool_()),
        ("animated", pa.bool_()),
        ("width", pa.int64()),  # a hostile header may claim 2³² - 1
        ("height", pa.int64()),
        ("quality", pa.int8()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Examination:
    """The facts about every file of a data set.

    Attributes:
      root: folder that the paths are relative to.
      files: one row per file: path, label (nature, ai, unlabelled), generator, split, and the
        columns of ``FACTS_SCHEMA``.
      left_out: number of entries that are not images by name, by reason.
      layout: why the files count as unlabelled; empty if they are labelled.
      seconds: time taken to read the files.
    """

    root: Path
    files: pa.Table
    left_out: dict[str, int]
    layout: str
    seconds: float

    @property
    def readable(self) -> pa.Table:
        return self.files.filter(pc.equal(self.files["reason"], ""))

    @property
    def unreadable(self) -> pa.Table:
        return self.files.filter(pc.not_equal(self.files["reason"], ""))


def examine(
    root: str | os.PathLike[str], *, workers: int | None = None, quarantine: str | None = None
) -> Examination:
    """Opens every image of a data set in child processes (``examiner``).

    Args:
      root: what ``catalog.scan`` accepts; the images of a folder in another layout are unlabelled.
      workers: number of processes; the default is one per core.
      quarantine: list of images to leave out.

    Raises:
      CatalogError: if no images are found.
      OSError: if a process cannot be started.
    """
    found, layout = _find(root)
    if quarantine:
        found = found.without_listed(quarantine)
    names = found.table["path"]
    labels = pc.if_else(pc.equal(found.table["label"], records.AI), "ai", "nature")
    about = {"path": names, "label": labels} | {
        name: pc.cast(found.table[name], pa.string()) for name in ("generator", "split")
    }
    if layout:
        nothing = {"label": UNLABELLED, "split": ""}
        about |= {name: pa.array([text] * len(names)) for name, text in nothing.items()}
    started = time.perf_counter()
    columns = _examine_all(found.root, names, workers or os.cpu_count() or 1)
    seconds = time.perf_counter() - started
    files = pa.table(about | {name: columns[name] for name in columns.column_names})
    return Examination(found.root, files, dict(found.skipped), layout, seconds)


def _find(root: str | os.PathLike[str]) -> tuple[Catalog, str]:
    """The images, and why they are unlabelled ('' if they are labelled)."""
    try:
        return catalog.scan(root), ""
    except CatalogError as error:
        if not Path(root).is_dir():
            raise
        try:
            found = catalog.photographs([root])
        except CatalogError:
            raise error from None
        top = Path(root).absolute()
        inside = [
            Path(path).relative_to(top).as_posix() for path in found.table["path"].to_pylist()
        ]
        at = found.table.column_names.index("path")
        table = found.table.set_column(at, "path", pa.array(inside))
        return dataclasses.replace(found, root=top, table=table), str(error)


def _examine_all(root: Path, names: pa.ChunkedArray, workers: int) -> pa.Table:
    idle: queue.SimpleQueue[Examiner] = queue.SimpleQueue()

    def work(start: int) -> pa.RecordBatch:
        examiner = idle.get()
        try:
            some = examiner.examine([root / name for name in names.slice(start, CHUNK).to_pylist()])
        finally:
            idle.put(examiner)
        return pa.RecordBatch.from_pylist([vars(one) for one in some], schema=FACTS_SCHEMA)

    def batches(pool: ThreadPoolExecutor) -> Iterator[pa.RecordBatch]:
        with tqdm(total=len(names), desc="examine", unit="file", disable=None) as bar:
            for batch in pool.map(work, range(0, len(names), CHUNK)):
                bar.update(len(batch))
                yield batch

    with contextlib.ExitStack() as examiners, ThreadPoolExecutor(workers) as pool:
        for _ in range(workers):
            idle.put(examiners.enter_context(Examiner()))
        return pa.Table.from_batches(batches(pool), schema=FACTS_SCHEMA)
