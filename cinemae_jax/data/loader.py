"""Decodes images into batches with Grain: deterministic, split over hosts, resumable at any step.

Position p of the global stream belongs to host p mod H, so the global batch of a step holds the
same images for any number of hosts.  A file that cannot be decoded becomes an example that is not
``valid`` and carries the reason; nothing is dropped.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Int32, UInt64

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.decode import MAX_ERROR, open_header, read_file
from cinemae_jax.data.order import Order
from cinemae_jax.data.refusal import DecodeError
from cinemae_jax.data.transforms import Transform, Views, blank
from cinemae_jax.runtime.shard import WHOLE, Shard

# Every entry has the leading axis B, the part of the batch on this host:
#
# image (B, *transform.shape) uint8; with views for a global encoder, global_image (B,
# *transform.global_shape) uint8; label int32; example_id uint32 (low half of the catalog's, for
# keys); epoch int32; row int64 (of the catalog, -1 for padding); valid bool; error str; and about
# the file: num_bytes int64, and from its header format str, width and height int32 in pixels; 0 or
# '' if unknown.
Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Images:
    """Random access to the undecoded images of a data set.

    Attributes:
      read: returns the bytes of a row's file; raises OSError if it cannot be read, DecodeError if
        it is too large.
      labels: 0 nature, 1 AI-generated.
      example_ids: as in the catalog.
    """

    read: Callable[[int], bytes]
    labels: Int32[np.ndarray, " n"]
    example_ids: UInt64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)


def from_catalog(catalog: Catalog) -> Images:
    """The files of a catalog."""
    names = catalog.table["path"]

    def read(row: int) -> bytes:
        return read_file(Path(catalog.root, names[row].as_py()))

    ids = catalog.table["example_id"].to_numpy()
    return Images(read, catalog.labels.astype(np.int32), ids)


class Position(NamedTuple):
    """What one position of the stream shows; row -1 is padding."""

    row: int
    epoch: int
    view: int


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """Reads images in batches; each host reads its part of every batch.

    Attributes:
      images: what to read.
      transform: file bytes to pixels; its generator is seeded with (seed, view, example id).
      seed: of augmentation.
      host: the part of every batch to read.
      num_threads: decoding threads.
    """

    images: Images
    transform: Transform
    seed: int = 0
    host: Shard = WHOLE
    num_threads: int = 4

    def train_batches(
        self, order: Order, *, start_step: int = 0, num_views: int = 0
    ) -> Iterator[Batch]:
        """The shuffled batches of all epochs of a run.

        Args:
          order: which image comes when, and the batch size.
          start_step: number of steps already taken; the stream continues after them.
          num_views: V, augmented views per image; epoch e shows view e mod V.  0 means a new view
            in every epoch.

        Raises:
          ValueError: if the batch size is not divisible by the number of hosts.
        """

        def at(index: int) -> Position:
            row, epoch = order[index]
            return Position(row, epoch, epoch % num_views if num_views else epoch)

        num_examples = order.num_steps * order.batch_size
        return self._batches(at, num_examples, order.batch_size, start_step)

    def eval_batches(
        self, *, batch_size: int, num_views: int = 1, rows: range | None = None
    ) -> Iterator[Batch]:
        """Every view of every image once, in order; padding of the last batch is not ``valid``.

        Args:
          batch_size: over all hosts.
          num_views: V; the views of an image follow each other.
          rows: of the images to read; None means all.

        Raises:
          ValueError: if the batch size is not divisible by the number of hosts.
        """
        rows = range(len(self.images)) if rows is None else rows
        wanted = len(rows) * num_views

        def at(index: int) -> Position:
            row = rows[index // num_views] if index < wanted else -1
            return Position(row, 0, index % num_views)

        padded = -(-wanted // batch_size) * batch_size
        return self._batches(at, padded, batch_size)

    def _batches(
        self, at: Callable[[int], Position], count: int, batch_size: int, start_step: int = 0
    ) -> Iterator[Batch]:
        """Batches of the first ``count`` positions of the stream."""
        host = self.host
        if batch_size % host.count:
            raise ValueError(f"batch_size {batch_size} is not divisible by {host.count} hosts")
        stream = grain.MapDataset.range(count)[host.index :: host.count].map(at)
        batches = stream.map(self._example).batch(batch_size // host.count)[start_step:]
        threads = self.num_threads
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        return iter(batches.to_iter_dataset(options))

    def _example(self, position: Position) -> dict[str, np.ndarray | np.generic]:
        """One row of a ``Batch``."""
        row = position.row
        pixels, error, label, example_id = blank(self.transform), "", 0, 0
        kind, width, height, num_bytes = "", 0, 0, 0
        if row >= 0:
            label, example_id = int(self.images.labels[row]), int(self.images.example_ids[row])
            rng = np.random.default_rng([self.seed, position.view, example_id])
            try:
                data = self.images.read(row)
                num_bytes = len(data)
                header = open_header(data)
                kind, (width, height) = header.image.format or "", header.image.size
                pixels = self.transform(data, rng)
            except (DecodeError, OSError) as failure:
                error = str(failure)[:MAX_ERROR] or type(failure).__name__
        views = pixels._asdict() if isinstance(pixels, Views) else {"image": pixels}
        return views | {
            "label": np.int32(label),
            "example_id": np.uint32(example_id & 0xFFFFFFFF),
            "epoch": np.int32(position.epoch),
            "row": np.int64(row),
            "num_bytes": np.int64(num_bytes),
            "format": np.str_(kind),
            "width": np.int32(width),
            "height": np.int32(height),
            "valid": np.bool_(row >= 0 and not error),
            "error": np.str_(error),
        }
