"""Images that could not be read: named and counted in a file that outlives a killed run."""

import collections
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch

CLASS_NAMES = ("nature", "ai")


@dataclasses.dataclass(frozen=True)
class BadImage:
    """One image that could not be read."""

    path: str
    label: str  # nature or ai
    generator: str
    split: str
    error: str


class BadImages:
    """bad_images.csv: one line an image, written as soon as the image is met.

    A resumed run goes on with the list that it finds, so nothing is forgotten in between.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, BadImage] = {}
        if path.is_file():
            strings = pyarrow.csv.ConvertOptions(
                column_types={f.name: pa.string() for f in dataclasses.fields(BadImage)},
                strings_can_be_null=False,
            )
            for row in pyarrow.csv.read_csv(path, convert_options=strings).to_pylist():
                self._found[row["path"]] = BadImage(**row)

    def note(self, images: Catalog, batch: Batch) -> None:
        """Remembers the examples of a batch of ``images`` that have an error."""
        new = {
            os.path.join(images.root, row["path"]): (row, error)  # noqa: PTH118
            for row, error in self._rows_with_error(images, batch)
        }
        if new.keys() <= self._found.keys():
            return
        for path, (row, error) in new.items():
            label = CLASS_NAMES[row["label"]]
            self._found[path] = BadImage(path, label, row["generator"], row["split"], error)
        self._write()

    @staticmethod
    def _rows_with_error(images: Catalog, batch: Batch) -> Iterable[tuple[dict, str]]:
        for row, error in zip(batch["row"], batch["error"], strict=True):
            if error:
                yield images.table.slice(int(row), 1).to_pylist()[0], str(error)

    def forget(self, images: Catalog | None = None) -> None:
        """Drops what is known of some images, or of all: they will be met again."""
        if images is None:
            self._found = {}
        else:
            for image in self.of(images):
                del self._found[image.path]
        self._write()

    def of(self, images: Catalog) -> list[BadImage]:
        """The bad ones among some images, sorted by path."""
        if not self._found:
            return []
        paths = {os.path.join(images.root, p) for p in images.table["path"].to_pylist()}  # noqa: PTH118
        return [image for image in self.listed if image.path in paths]

    @property
    def listed(self) -> list[BadImage]:
        """All of them, sorted by path."""
        return [self._found[path] for path in sorted(self._found)]

    def _write(self) -> None:
        if not self._found:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(self._path.name + ".partial")
        rows = [dataclasses.asdict(image) for image in self.listed]
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), partial)
        os.replace(partial, self._path)


def count_by_class(bad: Iterable[BadImage]) -> dict[str, int]:
    """Number of bad images of each class."""
    counts = collections.Counter(image.label for image in bad)
    return {name: counts[name] for name in CLASS_NAMES}
