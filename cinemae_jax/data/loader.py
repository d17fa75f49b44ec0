"""Records to batches with Grain: deterministic, per host, resumable at any step.

Position p of the global stream belongs to host p mod H, so that the global batch of a step holds
the same images for any number of hosts.  A file that cannot be decoded becomes an example that is
not ``valid`` and says why; nothing is dropped.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.decode import DecodeError, open_header, read_file
from cinemae_jax.data.order import Order
from cinemae_jax.data.transforms import Transform
from cinemae_jax.runtime.shard import WHOLE, Shard

# Leading axis B (of this host), in every entry:
#
# image (B, *transform.shape) uint8; label int32; example_id uint32 (the low half of the
# catalog's, for keys); epoch int32; row int64 (of the catalog, -1 for padding); valid bool; error
# str; and of the file: num_bytes int64, and as its head has them: format str, width and height
# int32, pixels; 0 if unknown.
Batch = dict[str, np.ndarray]

MAX_ERROR = 200  # characters kept of a reason


@dataclasses.dataclass(frozen=True)
class Images:
    """Random access to the undecoded images of a data set.

    Attributes:
      read: row to the bytes of its file; raises OSError if there are none, and DecodeError if
        they are too many.
      labels: (N,) int32.
      example_ids: (N,) uint64.
    """

    read: Callable[[int], bytes]
    labels: np.ndarray
    example_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def from_catalog(catalog: Catalog) -> Images:
    """The files of a catalog."""
    names = catalog.table["path"]

    def read(row: int) -> bytes:
        return read_file(Path(catalog.root, names[row].as_py()))

    ids = catalog.table["example_id"].to_numpy()
    return Images(read, catalog.labels.astype(np.int32), ids)


def train_batches(
    images: Images,
    transform: Transform,
    order: Order,
    *,
    seed: int,
    start_step: int = 0,
    host: Shard = WHOLE,
    num_threads: int = 4,
    num_views: int = 0,
) -> Iterator[Batch]:
    """The shuffled batches of all epochs of a run, from ``start_step`` on.

    Args:
      images: what to read.
      transform: decodes; its random generator is seeded by (seed, view, example id).
      order: which image comes when, and how many a batch has.
      seed: of augmentation.
      start_step: number of steps already taken; the stream is a function of it alone.
      host: which part of each batch to read.
      num_threads: decoding threads.
      num_views: V, augmented views an image; epoch e shows view e mod V.  0: every epoch another.

    Raises:
      ValueError: if the hosts cannot share a batch.
    """
    _check_divides(order.batch_size, host)

    def record(position: int) -> dict[str, int]:
        row, epoch = order[position]
        return {"row": row, "epoch": epoch, "view": epoch % num_views if num_views else epoch}

    examples = order.num_steps * order.batch_size
    stream = grain.MapDataset.range(examples)[host.index :: host.count]
    stream = stream.map(record).map(_reader(images, transform, seed))
    return _iterate(stream.batch(order.batch_size // host.count)[start_step:], num_threads)


def eval_batches(
    images: Images,
    transform: Transform,
    *,
    batch_size: int,
    seed: int = 0,
    host: Shard = WHOLE,
    num_threads: int = 4,
    num_views: int = 1,
    rows: range | None = None,
) -> Iterator[Batch]:
    """Every view of every image once, in order; examples that pad the last batch are not valid.

    Args:
      images, transform, batch_size, host, num_threads: as in ``train_batches``.
      seed: of augmentation, if the transform has any.
      num_views: V; the views of an image follow each other.
      rows: of the images to read; None means all.
    """
    _check_divides(batch_size, host)
    rows = range(len(images)) if rows is None else rows
    wanted = len(rows) * num_views

    def record(position: int) -> dict[str, int]:
        row = rows[position // num_views] if position < wanted else -1
        return {"row": row, "epoch": 0, "view": position % num_views}

    padded = -(-wanted // batch_size) * batch_size
    stream = grain.MapDataset.range(padded)[host.index :: host.count]
    stream = stream.map(record).map(_reader(images, transform, seed))
    return _iterate(stream.batch(batch_size // host.count), num_threads)


def _iterate(stream: Any, num_threads: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(stream.to_iter_dataset(options))


def _check_divides(batch_size: int, host: Shard) -> None:
    if batch_size % host.count:
        raise ValueError(f"batch_size {batch_size} is not divisible by {host.count} hosts")


def _reader(
    images: Images, transform: Transform, seed: int
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def read(record: dict[str, Any]) -> dict[str, Any]:
        row, view = record["row"], record["view"]
        pixels, error, label, example_id = np.zeros(transform.shape, np.uint8), "", 0, 0
        kind, width, height, num_bytes = "", 0, 0, 0
        if row >= 0:
            label, example_id = int(images.labels[row]), int(images.example_ids[row])
            try:
                data = images.read(row)
                num_bytes = len(data)
                header = open_header(data)
                kind, (width, height) = header.format or "", header.size
                pixels = transform(data, np.random.default_rng([seed, view, example_id]))
            except (DecodeError, OSError) as failure:
                error = str(failure)[:MAX_ERROR] or type(failure).__name__
        return {
            "image": pixels,
            "label": np.int32(label),
            "example_id": np.uint32(example_id & 0xFFFFFFFF),
            "epoch": np.int32(record["epoch"]),
            "row": np.int64(row),
            "num_bytes": np.int64(num_bytes),
            "format": np.str_(kind),
            "width": np.int32(width),
            "height": np.int32(height),
            "valid": np.bool_(row >= 0 and not error),
            "error": np.str_(error),
        }

    return read
