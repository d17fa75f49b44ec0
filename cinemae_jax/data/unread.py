"""Images that could not be read: named and counted in a file that outlives a killed run.

Every host of a run has a file of its own, until the first one takes them all over.
"""

import collections
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch
from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.runtime.files import replacing
from cinemae_jax.runtime.shard import Shard


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

    def __init__(self, path: Path, host: Shard | None = None) -> None:
        """
        Args:
          path: of the list; that of host h > 0 lies beside it, as bad_images.h.csv.
          host: which of several writes here; None if there is one.
        """
        self._path, self._host = path, host or Shard()
        self._found: dict[str, BadImage] = {}
        strings = pyarrow.csv.ConvertOptions(
            column_types={f.name: pa.string() for f in dataclasses.fields(BadImage)},
            strings_can_be_null=False,
        )
        for file in (path, *self._of_others()):
            if file.is_file():
                for row in pyarrow.csv.read_csv(file, convert_options=strings).to_pylist():
                    self._found[row["path"]] = BadImage(**row)

    def _of_others(self) -> list[Path]:
        """Files of the hosts after the first, of however many there were."""
        return sorted(self._path.parent.glob(f"{self._path.stem}.[0-9]*{self._path.suffix}"))

    def _own(self) -> Path:
        number = f".{self._host.index}" if self._host.index else ""
        return self._path.with_name(f"{self._path.stem}{number}{self._path.suffix}")

    def add(self, images: Iterable[BadImage]) -> None:
        """Takes over what other hosts have met."""
        self._found |= {image.path: image for image in images}
        self._write()

    def tidy(self) -> None:
        """Removes the files of other hosts; called on the first, which has taken them over."""
        for file in self._of_others():
            file.unlink(missing_ok=True)

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
        if self._host.count == 1:
            self.tidy()  # after an earlier run on more hosts

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
        own = self._own()
        if not self._found:
            own.unlink(missing_ok=True)
            return
        own.parent.mkdir(parents=True, exist_ok=True)
        rows = [dataclasses.asdict(image) for image in self.listed]
        with replacing(own) as partial:
            pyarrow.csv.write_csv(pa.Table.from_pylist(rows), partial)


def count_by_class(bad: Iterable[BadImage]) -> dict[str, int]:
    """Number of bad images of each class."""
    counts = collections.Counter(image.label for image in bad)
    return {name: counts[name] for name in CLASS_NAMES}
