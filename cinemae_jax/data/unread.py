"""Records unread images in a CSV file, which survives a killed run.

Each host writes its own file until the first host merges them.
"""

import collections
import dataclasses
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch
from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.runtime.files import replacing
from cinemae_jax.runtime.shard import WHOLE, Shard


@dataclasses.dataclass(frozen=True)
class BadImage:
    """An unread image."""

    path: str
    label: str  # nature or ai
    generator: str
    split: str
    error: str


class BadImages:
    """The list of unread images, bad_images.csv: one row per image, written immediately.

    A resumed run continues the list that it finds.
    """

    def __init__(self, path: Path, host: Shard = WHOLE) -> None:
        """
        Args:
          path: of the list; host h > 0 writes next to it, to bad_images.h.csv.
          host: the host that writes.
        """
        self._path, self._host = path, host
        self._found: dict[str, BadImage] = {}
        strings = pyarrow.csv.ConvertOptions(
            column_types={f.name: pa.string() for f in dataclasses.fields(BadImage)},
            strings_can_be_null=False,
        )
        for file in (path, *self._of_others()):
            if file.is_file():
                try:
                    rows = pyarrow.csv.read_csv(file, convert_options=strings).to_pylist()
                    self._found |= {row["path"]: BadImage(**row) for row in rows}
                except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
                    reason = " ".join(str(error).split())
                    print(  # its images are noted again when they are read again
                        f"caution   {file} is damaged and starts again ({reason})",
                        file=sys.stderr,
                        flush=True,
                    )

    def _of_others(self) -> list[Path]:
        """Files of all hosts but the first, for any number of hosts."""
        return sorted(self._path.parent.glob(f"{self._path.stem}.[0-9]*{self._path.suffix}"))

    def _own(self) -> Path:
        number = f".{self._host.index}" if self._host.index else ""
        return self._path.with_name(f"{self._path.stem}{number}{self._path.suffix}")

    def add(self, images: Iterable[BadImage]) -> None:
        """Adds unread images, for example those of other hosts."""
        self._found |= {image.path: image for image in images}
        self._write()

    def tidy(self) -> None:
        """Deletes the files of other hosts, on the first host once it has merged them."""
        for file in self._of_others():
            file.unlink(missing_ok=True)

    def note(self, images: Catalog, batch: Batch) -> None:
        """Adds the examples of a batch of ``images`` that have an error."""
        unread = [
            _unread(images, int(row), str(error))
            for row, error in zip(batch["row"], batch["error"], strict=True)
            if error
        ]
        if any(image.path not in self._found for image in unread):
            self.add(unread)

    def forget(self, images: Catalog | None = None) -> None:
        """Drops some images, or all, before they are read again."""
        if images is None:
            self._found = {}
        else:
            for image in self.of(images):
                del self._found[image.path]
        self._write()
        if self._host.count == 1:
            self.tidy()  # an earlier run may have used more hosts

    def of(self, images: Catalog) -> list[BadImage]:
        """The unread ones among some images, sorted by path."""
        if not self._found:
            return []
        paths = {_path(images, path) for path in images.table["path"].to_pylist()}
        return [image for image in self.listed if image.path in paths]

    @property
    def listed(self) -> list[BadImage]:
        """All unread images, sorted by path."""
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


def _path(images: Catalog, relative: str) -> str:
    return os.path.join(images.root, relative)  # noqa: PTH118  faster than a Path


def _unread(images: Catalog, row: int, error: str) -> BadImage:
    (facts,) = images.table.slice(row, 1).to_pylist()
    label = CLASS_NAMES[facts["label"]]
    path = _path(images, facts["path"])
    return BadImage(path, label, facts["generator"], facts["split"], error)


def count_by_class(bad: Iterable[BadImage]) -> dict[str, int]:
    """Number of unread images per class."""
    counts = collections.Counter(image.label for image in bad)
    return {name: counts[name] for name in CLASS_NAMES}
