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
from cinemae_jax.data.decode import DecodeError, Transform

Batch = dict[str, np.ndarray]
"""Leading axis B (of this host), in every entry:

image (B, S, S, 3) uint8; label int32; example_id uint32 (the low half of the catalog's, for keys);
epoch int32; row int64 (of the catalog, -1 for padding); valid bool; error str.
"""

MAX_ERROR = 200  # characters kept of a reason


@dataclasses.dataclass(frozen=True)
class Host:
    """Which slice of every global batch is read here."""

    index: int = 0
    count: int = 1


@dataclasses.dataclass(frozen=True)
class Images:
    """Random access to the undecoded images of a data set.

    Attributes:
      read: row to the bytes of its file; raises OSError if there are none.
      labels: (N,) int32.
      example_ids: (N,) uint64.
    """

    read: Callable[[int], bytes]
    labels: np.ndarray
    example_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row}


def from_catalog(catalog: Catalog) -> Images:
    """The files of a catalog."""
    names = catalog.table["path"]

    def read(row: int) -> bytes:
        return Path(catalog.root, names[row].as_py()).read_bytes()

    ids = catalog.table["example_id"].to_numpy()
    return Images(read, catalog.labels.astype(np.int32), ids)


def train_batches(
    images: Images,
    transform: Transform,
    *,
    size: int,
    batch_size: int,
    epochs: int,
    seed: int,
    start_step: int = 0,
    host: Host = Host(),
    num_threads: int = 4,
) -> Iterator[Batch]:
    """Shuffled batches over all epochs, from ``start_step`` on.

    Epochs follow each other without a gap, so that no image is ever dropped; only the last
    incomplete batch of the whole run is.  The length is ``num_steps``.

    Args:
      images: what to read.
      transform: decodes; its random generator is seeded by (seed, epoch, example id).
      size: side of the decoded images, pixels.
      batch_size: global, over all hosts.
      epochs: passes over the images.
      seed: of order and augmentation.
      start_step: number of steps already taken; the stream is a function of it alone.
      host: which part of each batch to read.
      num_threads: decoding threads.
    """
    _check_divides(batch_size, host)
    stream = grain.MapDataset.source(images).seed(seed).shuffle().repeat(epochs)
    length = len(images)

    def at_epoch(position: int, record: dict[str, Any]) -> dict[str, Any]:
        return record | {"epoch": position // length}

    stream = stream.map_with_index(at_epoch)[host.index :: host.count]
    stream = stream.map(_reader(images, transform, size, seed))
    stream = stream.batch(batch_size // host.count, drop_remainder=True)
    return _iterate(stream[start_step : num_steps(length, epochs, batch_size)], num_threads)


def num_steps(num_images: int, epochs: int, batch_size: int) -> int:
    """Optimiser steps of a run.

    Raises:
      ValueError: if there is not one full batch.
    """
    steps = num_images * epochs // batch_size
    if steps == 0:
        raise ValueError(
            f"batch_size {batch_size} is above {num_images} images x {epochs} epochs: no step "
            "would be taken"
        )
    return steps


def eval_batches(
    images: Images,
    transform: Transform,
    *,
    size: int,
    batch_size: int,
    seed: int = 0,
    host: Host = Host(),
    num_threads: int = 4,
) -> Iterator[Batch]:
    """All images once, in order; the last batch is padded with examples that are not valid."""
    _check_divides(batch_size, host)
    padded = -(-len(images) // batch_size) * batch_size
    rows = grain.MapDataset.range(padded)[host.index :: host.count]
    stream = rows.map(lambda row: {"row": row if row < len(images) else -1, "epoch": 0})
    stream = stream.map(_reader(images, transform, size, seed))
    return _iterate(stream.batch(batch_size // host.count), num_threads)


def _iterate(stream: Any, num_threads: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(stream.to_iter_dataset(options))


def _check_divides(batch_size: int, host: Host) -> None:
    if batch_size % host.count:
        raise ValueError(f"batch_size {batch_size} is not divisible by {host.count} hosts")


def _reader(
    images: Images, transform: Transform, size: int, seed: int
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def read(record: dict[str, Any]) -> dict[str, Any]:
        row, epoch = record["row"], record["epoch"]
        pixels, error, label, example_id = np.zeros((size, size, 3), np.uint8), "", 0, 0
        if row >= 0:
            label, example_id = int(images.labels[row]), int(images.example_ids[row])
            try:
                data = images.read(row)
                pixels = transform(data, np.random.default_rng([seed, epoch, example_id]))
            except (DecodeError, OSError) as failure:
                error = str(failure)[:MAX_ERROR] or type(failure).__name__
        return {
            "image": pixels,
            "label": np.int32(label),
            "example_id": np.uint32(example_id & 0xFFFFFFFF),
            "epoch": np.int32(epoch),
            "row": np.int64(row),
            "valid": np.bool_(row >= 0 and not error),
            "error": np.str_(error),
        }

    return read
