"""Lists the images of a data set in one table, without opening any of them.

A data set is a folder in a known layout (``layouts``), a CSV or Parquet list, one folder per class,
or folders of photographs.  ``Catalog.explain`` says how each image got its class.
"""

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
from jaxtyping import Int8

from cinemae_jax.data import index, layouts, lists, records
from cinemae_jax.data.layouts import EXPECTED, PAIR
from cinemae_jax.data.lists import read_quarantine
from cinemae_jax.data.records import AI, CLASS_NAMES, NATURE, CatalogError, Group
from cinemae_jax.data.text import as_text, number, tally

QUARANTINED = "quarantined"

_PAIR = re.compile("(?:nature|ai|generator)=")
_COMMA = re.compile(f",(?={_PAIR.pattern})")

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Images of a data set and their labels.

    Attributes:
      root: folder that the paths are relative to.
      table: one row per image, of ``records.SCHEMA``; ``scan`` sorts it by path.
      skipped: number of files left out, by reason.
      sources: where the label comes from, by generator, split and label.
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
    def labels(self) -> Int8[np.ndarray, " n"]:
        """0 nature, 1 AI-generated, in the order of the table."""
        return self.table["label"].to_numpy()

    def select(
        self, *, generators: Sequence[str] | None = None, split: str | None = None
    ) -> "Catalog":
        """The images of some generators and one split; None means all.

        Raises:
          CatalogError: if a generator is unknown or nothing is left; lists what exists.
        """
        table = self.table
        if generators is not None:
            unknown = sorted(set(generators) - set(self.generators))
            if unknown:
                raise CatalogError(
                    f"generator {', '.join(unknown)} not found in {self.root}; "
                    f"available: {', '.join(self.generators)}"
                )
            table = table.filter(pc.is_in(table["generator"], pa.array(list(generators))))
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
        if not len(table):
            raise CatalogError(
                f"no images in {self.root} for generators {list(generators or self.generators)} "
                f"and split {split!r}; available: {self.describe()}"
            )
        return dataclasses.replace(self, table=table)

    @property
    def splits(self) -> set[str]:
        """Names of the splits that have images."""
        return {split for _, split, _ in records.count_groups(self.table)}

    def hold_out(self, fraction: float) -> tuple["Catalog", "Catalog"]:
        """Splits off ``fraction`` of each class (rounded), in the order of the example ids.

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
        """sha256 of paths and labels; it does not depend on the root."""
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
        """Leaves out some images and counts them in ``skipped`` as quarantined.

        Args:
          paths: as in the table; unknown ones are ignored.
        """
        listed = pc.is_in(self.table["path"], value_set=pa.array(list(paths), pa.string()))
        kept = self.table.filter(pc.invert(listed))
        gone = {QUARANTINED: len(self.table) - len(kept)}
        return dataclasses.replace(
            self, table=kept, skipped=records.add_counts([self.skipped, gone])
        )

    def without_listed(self, file: str | os.PathLike[str]) -> "Catalog":
        """Leaves out the images of a quarantine list (``lists.read_quarantine``).

        Warns about listed images that are not in the catalog; they may have been deleted.

        Raises:
          CatalogError: if the file is not a quarantine list, or none of its images is in the
            catalog.
        """
        paths = read_quarantine(file)
        table = self.table["path"]
        there = table.filter(pc.is_in(table, value_set=pa.array(paths, pa.string())))
        lost = sorted(set(paths) - set(there.to_pylist()))
        if lost and len(lost) == len(set(paths)):
            raise CatalogError(
                f"none of the {len(lost):,} images in {file} is in {self.root}, for example "
                f"{lost[0]}: make the paths relative to that root; if all images were deleted, "
                "drop the list"
            )
        if lost:
            _LOG.warning(
                "%d of %d images in %s are not in %s, for example %s",
                *(len(lost), len(set(paths)), file, self.root, lost[0]),
            )
        return self.without(paths)

    def describe(self) -> str:
        """Number of images per generator, split and class, in one line."""
        counts = records.count_groups(self.table)
        places = sorted({key[:2] for key in counts})
        return "; ".join(
            f"{g}/{s} {counts.get((g, s, NATURE), 0)} nature + {counts.get((g, s, AI), 0)} ai"
            for g, s in places
        )

    def explain(self) -> str:
        """One line per generator, split and class: the number of images and their source."""
        return "\n".join(
            f"{g}/{s} {CLASS_NAMES[label]}: {number(count, 'image')} from "
            + self.sources.get((g, s, label), "an unnamed source")
            for (g, s, label), count in sorted(records.count_groups(self.table).items())
        )


def scan(root: str | os.PathLike[str], *, cache: bool = True) -> Catalog:
    """Lists a labelled data set: a folder or a list of images.

    Args:
      root: folder in a known layout (``layouts``), .csv or .parquet list (``lists``), or two
        folders of any name as ``nature=DIR,ai=DIR`` (``class_folders``), optionally with
        ``,generator=NAME``.
      cache: reuse the cached listing of an unchanged folder (``index``).

    Raises:
      CatalogError: if the root is missing, holds no images, or has an unknown layout.
    """
    if _PAIR.match(os.fspath(root)) and not os.path.exists(root):  # noqa: PTH110
        return class_folders(**_pair(os.fspath(root)), cache=cache)
    root = Path(root)
    if root.suffix.lower() in lists.SUFFIXES and root.is_file():
        table, sources = lists.read_list(root)
        return Catalog(root.parent, table, {}, sources)
    if not root.is_dir():
        raise CatalogError(
            f"data root {root} is not a folder: name a folder, a list "
            f"({' or '.join(lists.SUFFIXES)}), or two folders as {PAIR}"
        )
    listing = index.listing(root, cache=cache)
    if not len(listing):
        if any(reason.startswith("extension .array_record") for reason in listing.skipped):
            raise CatalogError(
                f"{root} holds ArrayRecord shards of a TFDS data set: set config.data.source=tfds"
            )
        raise CatalogError(
            f"no images under {root} (left out: {tally(listing.skipped) or 'nothing'}); {EXPECTED}"
        )
    table, sources = layouts.label(listing, root)
    return Catalog(root, table, listing.skipped, sources)


def _pair(root: str) -> dict[str, str]:
    """Arguments of ``class_folders``; folder names may contain commas."""
    named = [field.split("=", 1) for field in _COMMA.split(root)]
    fields = {name: value for name, value in named if value}
    if not {"nature", "ai"} <= fields.keys() or len(fields) < len(named):
        raise CatalogError(f"data root {root}: name one folder per class, as in {PAIR}")
    return fields


def class_folders(
    *,
    nature: str | os.PathLike[str],
    ai: str | os.PathLike[str],
    generator: str = "",
    cache: bool = True,
) -> Catalog:
    """Lists two folders of any name, each with the images of one class at any depth.

    Folders ``train``, ``val`` or ``test`` directly inside them name the split; without any, all
    images are ``val``.  Paths are absolute.  The example id is that of
    ``nature/<path in the folder>`` or ``ai/<path in the folder>``, wherever the folders lie.

    Args:
      nature, ai: folders.
      generator: of the AI images; '' takes the name of the ``ai`` folder.
      cache: as in ``scan``.

    Raises:
      CatalogError: if a folder is missing, has no images, contains class folders, lies in the
        other one, or has images inside and outside split folders.
    """
    folders = [Path(os.path.abspath(folder)) for folder in (nature, ai)]  # noqa: PTH100
    _refuse_nested(folders, "name one folder per class")
    generator = generator or as_text(folders[AI].name)
    parts = [
        _one_class(folder, label, generator, "", name=CLASS_NAMES[label], cache=cache)
        for label, folder in enumerate(folders)
    ]
    for folder, part in zip(folders, parts, strict=True):
        layouts.refuse_class_folders(part.table["path"], folder)
    return _joined(parts)


def _refuse_nested(folders: Sequence[Path], way_out: str) -> None:
    """Raises CatalogError if an image lies in two of the folders."""
    real = [Path(os.path.realpath(folder)) for folder in folders]
    for i, j in itertools.permutations(range(len(folders)), 2):
        if real[i].is_relative_to(real[j]):
            raise CatalogError(f"{folders[i]} and {folders[j]} overlap: {way_out}")


def photographs(roots: Sequence[str | os.PathLike[str]], *, cache: bool = True) -> Catalog:
    """Lists all images below some folders as photographs: class nature, split train.

    Paths are absolute; the generator column holds the name of the folder.

    Raises:
      CatalogError: if no folder is given, or one is missing, has no images, or lies in another.
    """
    if not roots:
        raise CatalogError("no folder of photographs is named")
    _refuse_nested([Path(root) for root in roots], "name only the outer folder")
    return _joined(
        [
            _one_class(root, NATURE, root.name, "train", name=root.name, cache=cache)
            for root in (Path(r).absolute() for r in roots)
        ]
    )


def _one_class(
    folder: Path, label: int, generator: str, split: str, *, name: str, cache: bool
) -> Catalog:
    """Lists all images below a folder, with the ids of ``<name>/<path in the folder>``.

    Args:
      split: of all images; '' derives it from the folders.
    """
    if not folder.is_dir():
        raise CatalogError(f"{folder} is not a folder")
    if as_text(str(folder)) != str(folder):
        raise CatalogError(f"the name of {as_text(str(folder))} is not UTF-8: rename the folder")
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
    skipped = records.add_counts(part.skipped for part in parts)
    sources: dict[Group, str] = {}
    for part in parts:
        for group, source in part.sources.items():
            sources[group] = f"{sources[group]} and {source}" if group in sources else source
    return Catalog(parts[0].root, table, skipped, sources)
