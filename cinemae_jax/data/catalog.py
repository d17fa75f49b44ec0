"""Labelled image folders to one table of records, without opening a single image.

A class folder (``ai`` or ``nature``, ``1_fake`` or ``0_real``) holds the images; a folder
``train``, ``val`` or ``test`` somewhere above it names the split (``test`` counts as ``val``, as
does the lack of one), the topmost other folder the generator.  That covers GenImage's
``<generator>/<inner>/{train,val}/{ai,nature}`` and the plainer layouts.
"""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cinemae_jax.data.decode import EXTENSIONS

NATURE, AI = 0, 1
CLASS_FOLDERS = {"nature": NATURE, "0_real": NATURE, "ai": AI, "1_fake": AI}
SPLIT_FOLDERS = {"train": "train", "val": "val", "test": "val"}

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # relative to the root, with '/'
        ("label", pa.int8()),  # 0 nature, 1 AI-generated
        ("generator", pa.dictionary(pa.int32(), pa.string())),
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("example_id", pa.uint64()),  # hash of the path: the same on every machine
    ]
)


class CatalogError(ValueError):
    """A data set that cannot be used as asked; the message says what was found."""


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Images of a data set and their labels.

    Attributes:
      root: folder that the paths are relative to.
      table: one row an image, of ``SCHEMA``, sorted by path.
      skipped: number of files left out, by reason.
    """

    root: Path
    table: pa.Table
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def generators(self) -> list[str]:
        """Names of the generators, sorted."""
        return sorted(pc.unique(self.table["generator"]).to_pylist())

    @property
    def labels(self) -> np.ndarray:
        """(N,) int8."""
        return self.table["label"].to_numpy()

    def select(
        self, *, generators: Sequence[str] | None = None, split: str | None = None
    ) -> "Catalog":
        """The rows of some generators and one split.

        Raises:
          CatalogError: if a generator is not there, or nothing is left; lists what exists.
        """
        table = self.table
        if generators is not None:
            unknown = sorted(set(generators) - set(self.generators))
            if unknown:
                raise CatalogError(
                    f"generator {', '.join(unknown)} not found in {self.root}; "
                    f"there are: {', '.join(self.generators)}"
                )
            table = table.filter(pc.is_in(table["generator"], pa.array(list(generators))))
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
        if not len(table):
            raise CatalogError(
                f"no images in {self.root} with generator in {list(generators or self.generators)} "
                f"and split {split!r}; there are: {self.describe()}"
            )
        return dataclasses.replace(self, table=table)

    def hold_out(self, fraction: float) -> tuple["Catalog", "Catalog"]:
        """Splits off about ``fraction`` of each class, by the order of the example ids.

        The same images are held out on every machine, whatever the order of the table.

        Returns:
          (rest, held out).
        """
        ids, labels = self.table["example_id"].to_numpy(), self.labels
        held = np.zeros(len(ids), bool)
        for label in (NATURE, AI):
            rows = np.flatnonzero(labels == label)
            held[rows[np.argsort(ids[rows])][: round(fraction * len(rows))]] = True
        return (
            dataclasses.replace(self, table=self.table.filter(pa.array(~held))),
            dataclasses.replace(self, table=self.table.filter(pa.array(held))),
        )

    @property
    def fingerprint(self) -> str:
        """sha256 of the paths and labels: equal for the same images under another root."""
        digest = hashlib.sha256()
        for row in zip(self.table["example_id"].to_pylist(), self.labels.tolist(), strict=True):
            digest.update(b"%d,%d;" % row)
        return digest.hexdigest()

    def require_both_classes(self, what: str) -> None:
        """Raises CatalogError unless both labels occur."""
        counts = [int((self.labels == label).sum()) for label in (NATURE, AI)]
        if 0 in counts:
            raise CatalogError(
                f"{what} in {self.root} holds {counts[NATURE]} nature and {counts[AI]} ai images: "
                "both classes are needed"
            )

    def describe(self) -> str:
        """One phrase a generator and split: what is there."""
        groups = self.table.group_by(["generator", "split", "label"]).aggregate([([], "count_all")])
        counts = {
            (r["generator"], r["split"], r["label"]): r["count_all"] for r in groups.to_pylist()
        }
        places = sorted({key[:2] for key in counts})
        return "; ".join(
            f"{g}/{s} {counts.get((g, s, NATURE), 0)} nature + {counts.get((g, s, AI), 0)} ai"
            for g, s in places
        )


def scan(root: str | os.PathLike[str]) -> Catalog:
    """Reads the folder structure of a labelled data set.

    Raises:
      CatalogError: if the root is missing, holds no images, or is not laid out in a known way.
    """
    root = Path(root)
    if not root.is_dir():
        raise CatalogError(f"data root {root} is not a folder")
    skipped: collections.Counter[str] = collections.Counter()
    rows, unplaced = [], []
    for path in sorted(_image_files(root, skipped)):
        placed = _place(PurePosixPath(path), root.absolute().name)
        if placed is None:
            unplaced.append(path)
        else:
            rows.append((path, *placed, example_id(path)))
    if unplaced:
        raise CatalogError(
            f"{len(unplaced)} of {len(unplaced) + len(rows)} images under {root} are in no class "
            f"folder ({', '.join(CLASS_FOLDERS)}), for example {unplaced[0]}: expected "
            "<generator>/<inner>/{train,val}/{ai,nature}/"
        )
    if not rows:
        raise CatalogError(f"no images under {root} (files left out: {dict(skipped) or 'none'})")
    return Catalog(root, _table(rows), dict(skipped))


def photographs(roots: Sequence[str | os.PathLike[str]]) -> Catalog:
    """All images below some folders as photographs to pre-train on: nature, split train.

    Paths are whole ones; the generator column names the folder.

    Raises:
      CatalogError: if no folder is named, or one is missing or holds no images.
    """
    if not roots:
        raise CatalogError("no folder of photographs is named")
    skipped: collections.Counter[str] = collections.Counter()
    rows = []
    for root in (Path(r).absolute() for r in roots):
        if not root.is_dir():
            raise CatalogError(f"photo folder {root} is not a folder")
        files = sorted(_image_files(root, skipped))
        if not files:
            raise CatalogError(f"no images under {root}")
        rows += [
            (str(root / path), NATURE, root.name, "train", example_id(f"{root.name}/{path}"))
            for path in files
        ]
    return Catalog(Path("/"), _table(rows), dict(skipped))


def _table(rows: Sequence[tuple[str, int, str, str, int]]) -> pa.Table:
    columns = zip(*rows, strict=True)
    arrays = [
        pa.array(column, type=pa.string()).dictionary_encode()
        if pa.types.is_dictionary(field.type)
        else pa.array(column, type=field.type)
        for column, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.table(arrays, schema=SCHEMA)


def example_id(path: str) -> int:
    """64-bit hash of a relative path: what names an image in masks, banks and score files."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _image_files(root: Path, skipped: collections.Counter[str]) -> Iterator[str]:
    """Relative paths of image files, '/' between parts; what is no image is counted."""
    pending = [(os.fspath(root), "")]
    while pending:
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    skipped["hidden file or folder"] += 1
                elif entry.is_dir(follow_symlinks=True):
                    pending.append((entry.path, f"{prefix}{entry.name}/"))
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:  # noqa: PTH122
                    yield prefix + entry.name
                else:
                    skipped[f"extension {Path(entry.name).suffix or 'none'}"] += 1


def _place(path: PurePosixPath, root_name: str) -> tuple[int, str, str] | None:
    """(label, generator, split) of an image by the folders that it lies in."""
    folders = list(path.parts[:-1])
    while folders and folders[-1] not in CLASS_FOLDERS:
        folders.pop()
    if not folders:
        return None
    label = CLASS_FOLDERS[folders.pop()]
    splits = [SPLIT_FOLDERS[name] for name in folders if name in SPLIT_FOLDERS]
    others = [name for name in folders if name not in SPLIT_FOLDERS]
    return label, others[0] if others else root_name, splits[-1] if splits else "val"
