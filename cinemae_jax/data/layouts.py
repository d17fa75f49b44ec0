"""Derives class, generator and split from folder names; refuses ambiguous layouts.

A class folder (``ai`` or ``nature``, ``1_fake`` or ``0_real``, …) holds the images.  A folder
``train``, ``val`` or ``test`` above it names the split; ``test`` counts as ``val``, and so does no
split folder at all.  The topmost other folder names the generator.  This covers GenImage's
``<generator>/<inner>/{train,val}/{ai,nature}`` and simpler layouts.
"""

import collections
import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cinemae_jax.data import records
from cinemae_jax.data.records import AI, NATURE, CatalogError, Group
from cinemae_jax.data.text import as_text, number
from cinemae_jax.data.walk import Listing

# Names of class folders, in any case; each set is used alone.
CONVENTIONS = (
    {"nature", "ai"},
    {"0_real", "1_fake"},
    {"real", "fake"},
    {"0", "1"},
    {"natural", "ai"},
)
CLASS_FOLDERS = {
    **dict.fromkeys(("nature", "0_real", "natural", "real", "0"), NATURE),
    **dict.fromkeys(("ai", "1_fake", "fake", "1"), AI),
}
# A path is read by the first row that names one of its folders: the others are then plain names.
PRECEDENCE = (("nature", "ai", "0_real", "1_fake"), ("natural", "real", "fake"), ("0", "1"))
SPLIT_FOLDERS = {"train": "train", "val": "val", "test": "val"}
DEFAULT_SPLIT = "val"

# A root that names two folders of any name.
PAIR = "nature=DIR,ai=DIR"

EXPECTED = (
    "expected <generator>/<inner>/{train,val}/{ai,nature}/ as in GenImage (generator, inner and "
    "split are optional), the same with 1_fake and 0_real, fake and real, ai and natural, or 1 and "
    "0, a CSV or Parquet list with columns path "
    f"and label, or two folders of any name as {PAIR}"
)
SHOWN = 3  # folders named in a message


@dataclasses.dataclass(frozen=True)
class Place:
    """What the folder of an image says about it.

    Attributes:
      label, generator, split: as in the catalog.
      class_folder: name of the folder that gives the label.
      split_folder: name of the folder that gives the split, or ''.
      pattern: the folder, with '*' for the parts that are not used.
    """

    label: int
    generator: str
    split: str
    class_folder: str
    split_folder: str
    pattern: str


def label(listing: Listing, root: Path) -> tuple[pa.Table, dict[Group, str]]:
    """Labels every image by its folder.

    Args:
      listing: of ``root``, not empty.
      root: its name is the generator if no folder below it names one.

    Returns:
      (table of ``records.SCHEMA``, the folder pattern of each generator, split and label).

    Raises:
      CatalogError: if an image is outside every class folder, or folders contradict each other;
        says what was found and what is expected.
    """
    owners, folders = listing.images["folder"].to_numpy(), listing.folders
    counts = np.bincount(owners, minlength=len(folders))
    used = np.flatnonzero(counts)
    held = {folders[i]: int(counts[i]) for i in used}
    _refuse_misplaced(listing, held, root)
    name = as_text(os.path.basename(os.path.abspath(root)))  # noqa: PTH100, PTH119
    places = [_place(folder, name) for folder in held]
    _refuse_contradictions(places, list(held.values()), root)
    row = np.zeros(len(folders), np.int32)  # folder to its index in places
    row[used] = np.arange(len(used))
    image = row[owners]
    table = records.build(
        listing.images["path"],
        np.array([p.label for p in places], np.int8)[image],
        _taken([p.generator for p in places], image),
        _taken([p.split for p in places], image),
        listing.images["example_id"],
    )
    return table, _patterns(zip(places, held.values(), strict=True))


def refuse_class_folders(paths: pa.ChunkedArray, folder: Path) -> None:
    """Raises CatalogError if a folder that is given as one class contains class folders."""
    names = "|".join(PRECEDENCE[0])
    below = pc.utf8_slice_codeunits(paths, len(str(folder)))
    inside = pc.match_substring_regex(below, f"/({names})/")
    if pc.any(inside).as_py():
        raise CatalogError(
            f"{folder} must hold one class but contains class folders, for example in "
            f"{paths.filter(inside)[0]}: name the folder of one class, or scan the whole data set"
        )


def splits(listing: Listing, folder: Path) -> pa.DictionaryArray:
    """The split of every image from the topmost folder; ``val`` if that names no split.

    Raises:
      CatalogError: if only some images are in split folders, or both ``val`` and ``test`` occur.
    """
    owners = listing.images["folder"].to_numpy()
    tops = [path.partition("/")[0] for path in listing.folders]
    used = {tops[i] if tops[i] in SPLIT_FOLDERS else "" for i in np.unique(owners)}
    if fault := _split_fault(used):
        raise CatalogError(f"{folder} {fault}: put all images into train and val, or none")
    return _taken([SPLIT_FOLDERS.get(top, DEFAULT_SPLIT) for top in tops], owners)


def _split_fault(used: Collection[str]) -> str:
    """Why these split folders cannot occur together, or ''; in ``used``, '' means no folder."""
    if {"val", "test"} <= set(used):
        return "has both val and test folders, and test counts as val"
    if "" in used and len(used) > 1:
        return f"has images inside and outside {' and '.join(sorted({*used} - {''}))}"
    return ""


def _taken(values: Sequence[str], rows: np.ndarray) -> pa.DictionaryArray:
    names, codes = np.unique(np.array(values, object), return_inverse=True)
    codes = codes.astype(np.int32)[rows]
    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(names, pa.string()))


def _refuse_misplaced(listing: Listing, held: Mapping[str, int], root: Path) -> None:
    """Raises CatalogError for folders that cannot be placed, each taken alone."""
    faults: dict[str, list[str]] = collections.defaultdict(list)
    for folder in held:
        faults[_fault(folder)].append(folder)
    faults.pop("", None)
    if faults:
        fault, where = next(iter(faults.items()))
        owners = listing.images["folder"].to_numpy()
        first = int(np.argmax(owners == listing.folders.index(where[0])))
        raise CatalogError(
            f"{sum(held[f] for f in where)} of {len(listing)} images under {root} are {fault}, "
            f"for example {listing.images['path'][first]}; "
            f"found: {_show({f: held[f] for f in where})}; {EXPECTED}"
        )


def _patterns(places: Iterable[tuple[Place, int]]) -> dict[Group, str]:
    found: dict[Group, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for place, count in places:
        found[place.generator, place.split, place.label][place.pattern] += count
    return {
        group: next(iter(by)) if len(by) == 1 else _show(by, limit=len(by))
        for group, by in found.items()
    }


def _fault(folder: str) -> str:
    """Why a folder cannot be placed; '' if it can."""
    parts = folder.split("/")
    classes = _class_folders(parts)
    splits = [i for i, part in enumerate(parts) if part in SPLIT_FOLDERS]
    if not classes:
        return f"outside the class folders ({', '.join(CLASS_FOLDERS)})"
    if len({name.lower() for name in classes}) > 1:
        return f"in two class folders at once ({' and '.join(sorted(set(classes)))})"
    if len(splits) > 1:
        return f"in two split folders at once ({' and '.join(parts[i] for i in splits)})"
    if splits and splits[0] > parts.index(classes[0]):
        return f"in a split folder ({parts[splits[0]]}) below the class folder instead of above it"
    return ""


def _class_folders(parts: Sequence[str]) -> list[str]:
    """The folders of a path that name a class."""
    exact = [part for part in parts if part in PRECEDENCE[0]]
    rows = ([part for part in parts if part.lower() in names] for names in PRECEDENCE)
    return exact or next(filter(None, rows), [])


def _place(folder: str, root_name: str) -> Place:
    parts = folder.split("/")
    at = parts.index(_class_folders(parts)[0])
    above = parts[:at]
    split = next((part for part in above if part in SPLIT_FOLDERS), "")
    others = [i for i, part in enumerate(above) if part not in SPLIT_FOLDERS]
    shown = ["*" if i in others[1:] else part for i, part in enumerate(parts[: at + 1])]
    notes = [] if others else ["generator: name of the root"]
    notes += [] if split else [f"no split folder: {_default_split(root_name)}"]
    return Place(
        label=CLASS_FOLDERS[parts[at].lower()],
        generator=parts[others[0]] if others else root_name,
        split=SPLIT_FOLDERS[split] if split else _default_split(root_name),
        class_folder=parts[at].lower(),
        split_folder=split,
        pattern="/".join(shown + ["**"] * (len(parts) > at + 1))
        + f" ({'; '.join(notes)})" * bool(notes),
    )


def _default_split(root_name: str) -> str:
    return SPLIT_FOLDERS.get(root_name, DEFAULT_SPLIT)


def _refuse_contradictions(places: Sequence[Place], counts: Sequence[int], root: Path) -> None:
    """Raises CatalogError for folders of one generator that are valid alone but not together."""
    by_generator: dict[str, dict[Place, int]] = collections.defaultdict(dict)
    for place, count in zip(places, counts, strict=True):
        met = by_generator[place.generator]
        met[place] = met.get(place, 0) + count
    for generator, met in by_generator.items():
        classes = {place.class_folder for place in met}
        fault = _split_fault({place.split_folder for place in met})
        if not any(classes <= names for names in CONVENTIONS):
            fault = f"mixes two conventions of class folders ({', '.join(sorted(classes))})"
        elif not fault:
            continue
        seen: collections.Counter[str] = collections.Counter()
        for place, count in met.items():
            seen[place.pattern] += count
        raise CatalogError(
            f"generator {generator} in {root} {fault}; found: {_show(seen, limit=9)}; {EXPECTED}"
        )


def _show(counts: Mapping[str, int], *, limit: int = SHOWN) -> str:
    """The folders with the most images."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{as_text(folder) or '.'} ({number(n, 'image')})" for folder, n in ranked[:limit]]
    return ", ".join(shown) + f" and {len(ranked) - limit} more" * (len(ranked) > limit)
