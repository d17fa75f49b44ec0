"""Images that could not be read: collected, counted, named; they never end a run."""

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch

CLASS_NAMES = ("nature", "ai")


@dataclasses.dataclass(frozen=True)
class BadImage:
    """One image that could not be read."""

    path: str  # relative to the data root
    label: str  # nature or ai
    generator: str
    split: str
    error: str


class BadImages:
    """Collects the bad images of a catalog from its batches, each once however often it is met."""

    def __init__(self, images: Catalog) -> None:
        self._images = images
        self._errors: dict[int, str] = {}

    def note(self, batch: Batch) -> None:
        """Remembers the batch's examples that have an error."""
        for row, error in zip(batch["row"], batch["error"], strict=True):
            if error:
                self._errors[int(row)] = str(error)

    @property
    def listed(self) -> list[BadImage]:
        """Sorted as in the catalog."""
        rows = self._images.table.take(pa.array(sorted(self._errors), pa.int64())).to_pylist()
        return [
            BadImage(row["path"], CLASS_NAMES[row["label"]], row["generator"], row["split"], error)
            for row, (_, error) in zip(rows, sorted(self._errors.items()), strict=True)
        ]


def count_by_class(bad: Sequence[BadImage]) -> dict[str, int]:
    """Number of bad images of each class."""
    counts = collections.Counter(image.label for image in bad)
    return {name: counts[name] for name in CLASS_NAMES}


def write_bad_images(path: Path, bad: Sequence[BadImage]) -> list[BadImage]:
    """Writes the list as CSV, or removes an old one where there is nothing to list."""
    unique = sorted(set(bad), key=lambda image: image.path)
    if not unique:
        path.unlink(missing_ok=True)
        return []
    pyarrow.csv.write_csv(pa.Table.from_pylist([dataclasses.asdict(b) for b in unique]), path)
    return unique
