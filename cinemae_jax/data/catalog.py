"""Data sets to one table of records, without opening a single image.

A data set is a folder in one of the layouts of ``layouts``, a CSV or Parquet list, a folder for
each class, or folders of photographs.  ``Catalog.explain`` says what was taken for what.
"""

import collections
import dataclasses
import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cinemae_jax.data import index, layouts, lists, records
from cinemae_jax.data.layouts import EXPECTED, PAIR, Group
from cinemae_jax.data.lists import read_quarantine
from cinemae_jax.data.records import AI, CLASS_NAMES, NATURE, CatalogError

QUARANTINED = "quarantined"

_PAIR = re.compile("(?:nature|ai|generator)=")
_COMMA = re.compile(f",(?={_PAIR.pattern})")

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Images of a data set and their labels.

    Attributes:
      root: folder that the paths are relative to.
      table: one row an image, of ``SCHEMA``; ``scan`` sorts it by path.
      skipped: number of files left out, by reason.
      sources: what the images of a generator, split and label were known by.
    """

    root: Path
    table: pa.Table
    skipped: dict[str, int]
    sources: Mapping[Group, str] = dataclasses.field(default_factory=dict)

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
        ids, labels = (self.table[name].cast(pa.string()) for name in ("example_id", "label"))
        digest = hashlib.sha256()
        for chunk in pc.binary_join_element_wise(ids, labels, ",").chunks:
            digest.update("".join(f"{row};" for row in chunk.to_pylist()).encode())
        return digest.hexdigest()

    def require_both_classes(self, what: str) -> None:
        """Raises CatalogError unless both labels occur."""
        counts = [int((self.labels == label).sum()) for label in (NATURE, AI)]
        if 0 in counts:
            raise CatalogError(
                f"{what} in {self.root} holds {counts[NATURE]} nature and {counts[AI]} ai images: "
                "both classes are needed"
            )

    def without(self, paths: Iterable[str]) -> "Catalog":
        """All but some images, counted in ``skipped`` as quarantined.

        Args:
          paths: as in the table; those that it does not hold are ignored.
        """
        listed = pc.is_in(self.table["path"], value_set=pa.array(list(paths), pa.string()))
        kept = self.table.filter(pc.invert(listed))
        skipped = collections.Counter(self.skipped)
        skipped.update({QUARANTINED: len(self.table) - len(kept)})
        return dataclasses.replace(self, table=kept, skipped=dict(+skipped))

    def without_listed(self, file: str | os.PathLike[str]) -> "Catalog":
        """All but the images of a quarantine list (``read_quarantine``).

        Listed images that are not there, for example since they were deleted, are warned of.

        Raises:
          CatalogError: if the file is no such list, or names images of which none is there.
        """
        paths = read_quarantine(file)
        table = self.table["path"]
        there = table.filter(pc.is_in(table, value_set=pa.array(paths, pa.string())))
        lost = sorted(set(paths) - set(there.to_pylist()))
        if lost and len(lost) == len(set(paths)):
            raise CatalogError(
                f"{file} lists {len(lost)} images to leave out, and none is in {self.root}, for "
                f"example {lost[0]}: its paths must be relative to that root; if all of them have "
                "been deleted, name no list"
            )
        if lost:
            _LOG.warning(
                "%d of %d images of %s are not in %s, for example %s",
                *(len(lost), len(set(paths)), file, self.root, lost[0]),
            )
        return self.without(paths)

    def describe(self) -> str:
        """One phrase a generator and split: what is there."""
        counts = self._counts()
        places = sorted({key[:2] for key in counts})
        return "; ".join(
            f"{g}/{s} {counts.get((g, s, NATURE), 0)} nature + {counts.get((g, s, AI), 0)} ai"
            for g, s in places
        )

    def explain(self) -> str:
        """One line a generator, split and class: how many images, and how they were known."""
        return "\n".join(
            f"{g}/{s} {CLASS_NAMES[label]}: {count} images from "
            + self.sources.get((g, s, label), "an unnamed source")
            for (g, s, label), count in sorted(self._counts().items())
        )

    def _counts(self) -> dict[Group, int]:
        groups = self.table.group_by(["generator", "split", "label"]).aggregate([([], "count_all")])
        return {
            (r["generator"], r["split"], r["label"]): r["count_all"] for r in groups.to_pylist()
        }


def scan(root: str | os.PathLike[str], *, cache: bool = True) -> Catalog:
    """Reads a labelled data set: a folder, or a list of images.

    Args:
      root: folder in a known layout (``layouts``), a .csv or .parquet list (``lists``), or two
        folders of any name: ``nature=DIR,ai=DIR`` (``class_folders``), to which ``,generator=NAME``
        may be added.
      cache: keep the listing of a folder, and use one whose folders have not changed (``index``).

    Raises:
      CatalogError: if the root is missing, holds no images, or is not laid out in a known way.
    """
    if _PAIR.match(os.fspath(root)) and not os.path.exists(root):  # noqa: PTH110
        return class_folders(**_pair(os.fspath(root)), cache=cache)
    root = Path(root)
    if root.suffix.lower() in lists.SUFFIXES and root.is_file():
        table, sources = lists.read_list(root)
        return Catalog(root.parent, table, {}, sources)
    if not root.is_dir():
        raise CatalogError(
            f"data root {root} is not a folder, nor a list ({' or '.join(lists.SUFFIXES)}), nor "
            f"two folders as {PAIR}"
        )
    listing = index.listing(root, cache=cache)
    if not len(listing):
        raise CatalogError(
            f"no images under {root} (files left out: {listing.skipped or 'none'}); {EXPECTED}"
        )
    table, sources = layouts.label(listing, root)
    return Catalog(root, table, listing.skipped, sources)


def _pair(root: str) -> dict[str, str]:
    """Arguments of ``class_folders``; names of folders may hold commas."""
    named = [field.split("=", 1) for field in _COMMA.split(root)]
    fields = {name: value for name, value in named if value}
    if not {"nature", "ai"} <= fields.keys() or len(fields) < len(named):
        raise CatalogError(f"data root {root}: name one folder a class, as in {PAIR}")
    return fields


def class_folders(
    *,
    nature: str | os.PathLike[str],
    ai: str | os.PathLike[str],
    generator: str = "",
    cache: bool = True,
) -> Catalog:
    """Two folders of any name, each with the images of one class, at any depth.

    Folders ``train``, ``val`` or ``test`` directly in them name the split; without such, all
    images are ``val``.  Paths are whole ones.  The example id is that of
    ``nature/<path in the folder>`` or ``ai/<path in the folder>``, the same wherever the folders
    lie.

    Args:
      nature, ai: folders.
      generator: name of what made the images; '' takes the name of the ``ai`` folder.
      cache: as in ``scan``.

    Raises:
      CatalogError: if a folder is missing, holds no images or class folders, lies in the other, or
        has images inside and outside of split folders.
    """
    folders = [Path(os.path.abspath(folder)) for folder in (nature, ai)]  # noqa: PTH100
    _refuse_nested(folders, "give one folder a class")
    generator = generator or records.printable(folders[AI].name)
    parts = [
        _one_class(folder, label, generator, "", name=CLASS_NAMES[label], cache=cache)
        for label, folder in enumerate(folders)
    ]
    for folder, part in zip(folders, parts, strict=True):
        layouts.refuse_class_folders(part.table["path"], folder)
    return _joined(parts)


def _refuse_nested(folders: Sequence[Path], way_out: str) -> None:
    """Raises CatalogError if an image would be in two of the folders."""
    real = [Path(os.path.realpath(folder)) for folder in folders]
    for i, j in itertools.permutations(range(len(folders)), 2):
        if real[i].is_relative_to(real[j]):
            raise CatalogError(f"{folders[i]} and {folders[j]} lie in each other: {way_out}")


def photographs(roots: Sequence[str | os.PathLike[str]], *, cache: bool = True) -> Catalog:
    """All images below some folders as photographs to pre-train on: nature, split train.

    Paths are whole ones; the generator column names the folder.

    Raises:
      CatalogError: if no folder is named, or one is missing, holds no images, or lies in another.
    """
    if not roots:
        raise CatalogError("no folder of photographs is named")
    _refuse_nested([Path(root) for root in roots], "name the outer one alone")
    return _joined(
        [
            _one_class(root, NATURE, root.name, "train", name=root.name, cache=cache)
            for root in (Path(r).absolute() for r in roots)
        ]
    )


def _one_class(
    folder: Path, label: int, generator: str, split: str, *, name: str, cache: bool
) -> Catalog:
    """All images below a folder; ids are those of their paths in a folder called ``name``.

    Args:
      split: '' for what the folders say.
    """
    if not folder.is_dir():
        raise CatalogError(f"{folder} is not a folder")
    if records.printable(str(folder)) != str(folder):
        raise CatalogError(f"{records.printable(str(folder))} has a name that is not UTF-8")
    listing = index.listing(folder, cache=cache)
    count, paths = len(listing), listing.images["path"]
    if not count:
        raise CatalogError(f"no images under {folder}")
    splits = records.repeated(split, count) if split else layouts.splits(listing, folder)
    table = records.build(
        pc.binary_join_element_wise(str(folder).rstrip("/"), paths, "/"),
        np.full(count, label, np.int8),
        records.repeated(generator, count),
        splits,
        records.example_ids(f"{name}/{path}" for path in paths.to_pylist()),
    )
    sources = {(generator, s, label): f"{folder}/**" for s in splits.dictionary.to_pylist()}
    return Catalog(Path("/"), table, listing.skipped, sources)


def _joined(parts: Sequence[Catalog]) -> Catalog:
    table = pa.concat_tables([part.table for part in parts]).combine_chunks()
    skipped: collections.Counter[str] = collections.Counter()
    sources: dict[Group, str] = {}
    for part in parts:
        skipped.update(part.skipped)
        for group, source in part.sources.items():
            sources[group] = f"{sources[group]} and {source}" if group in sources else source
    return Catalog(parts[0].root, table, dict(skipped), sources)
