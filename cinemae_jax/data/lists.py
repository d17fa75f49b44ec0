"""Reads CSV and Parquet lists: labelled images, and images to leave out (quarantine).

Errors name file, row and column.  Rows count as in a spreadsheet: the header of a CSV file is row
1; the first row of a Parquet file is row 1.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cinemae_jax.data import kinds, records
from cinemae_jax.data.layouts import DEFAULT_SPLIT, SPLIT_FOLDERS
from cinemae_jax.data.records import AI, HELD_OUT, NATURE, CatalogError, Group

LABELS = {"0": NATURE, "nature": NATURE, "real": NATURE, "1": AI, "ai": AI, "fake": AI}
SUFFIXES = (".csv", ".parquet")
# Words of the column ``split``: as folders, and images that validate and calibrate.
SPLITS = SPLIT_FOLDERS | {HELD_OUT: HELD_OUT}
CHECKED = 100  # paths of a list whose existence is checked

_UNTIDY = r"(^|/)\.{0,2}(/|$)"  # absolute paths, and empty, '.' or '..' parts


def read_list(file: Path) -> tuple[pa.Table, dict[Group, str]]:
    """Reads a list of labelled images.

    Args:
      file: with columns ``path`` (relative to the list's folder, or absolute) and ``label`` (0,
        nature or real; 1, ai or fake).  Optional columns: ``generator`` (default: the file name
        without suffix) and ``split`` (train; held_out, which validates and calibrates;
        val; test, which counts as val; default: val).
        Other columns are ignored.

    Returns:
      (table of ``records.SCHEMA``, sorted by path; a description of the source of each generator,
      split and label).  Paths inside the list's folder become relative to it, without ``./`` and
      the like.

    Raises:
      CatalogError: if a column is missing, a value is unknown, a path occurs twice or no image
        exists.
    """
    table = _read(file, ("path", "label"), ("generator", "split"))
    if not len(table):
        raise CatalogError(f"{file} lists no images")
    paths = _tidy(table["path"], file)
    _refuse(file, "path", paths, pc.equal(paths, ""), "is empty")
    _refuse_duplicates(file, paths)
    labels = _translate(file, table, "label", LABELS).astype(np.int8)
    notes = []
    if "generator" in table.column_names:
        generators = table["generator"].combine_chunks()
        _refuse(file, "generator", generators, pc.equal(generators, ""), "is empty")
    else:
        generators = records.repeated(file.stem, len(paths))
        notes.append("no generator column: name of the list")
    if "split" in table.column_names:
        splits = pa.array(_translate(file, table, "split", SPLITS))
    else:
        splits = records.repeated(DEFAULT_SPLIT, len(paths))
        notes.append(f"no split column: {DEFAULT_SPLIT}")
    ids = records.example_ids(paths.to_pylist())
    built = records.build(paths, labels, generators, splits, ids)
    built = built.take(pc.sort_indices(built["path"])).combine_chunks()
    _require_some(file, built["path"])
    return built, _sources(file, table["label"], labels, built, notes)


def read_quarantine(file: str | os.PathLike[str]) -> list[str]:
    """Reads the paths to leave out, as ``cinemae doctor`` writes them.

    Args:
      file: CSV with columns ``path`` (relative to the data root, with '/') and ``reason``.

    Raises:
      CatalogError: if the file is not such a list.
    """
    table = _read(Path(file), ("path", "reason"), ())
    paths = table["path"].combine_chunks()
    _refuse(Path(file), "path", paths, pc.equal(paths, ""), "is empty")
    return paths.to_pylist()


def _sources(
    file: Path, words: pa.ChunkedArray, labels: np.ndarray, built: pa.Table, notes: Sequence[str]
) -> dict[Group, str]:
    """The words of the list that stand for each class."""
    meant = {
        label: sorted(pc.unique(words.filter(pa.array(labels == label))).to_pylist())
        for label in (NATURE, AI)
    }
    return {
        group: "; ".join([f"{file.name}, label {' or '.join(meant[group[2]])}", *notes])
        for group in records.count_groups(built)
    }


def _read(file: Path, required: Sequence[str], optional: Sequence[str]) -> pa.Table:
    """The given columns, as strings without nulls."""
    columns = (*required, *optional)
    try:
        table = _read_any(file)
        names = [name for name in columns if name in table.column_names]
        twice = [name for name in names if table.column_names.count(name) > 1]
        if not twice:
            chosen = {n: pc.fill_null(table[n].cast(pa.string()), "") for n in names}
    except (pa.ArrowException, OSError) as error:  # Arrow's errors name the broken row
        with contextlib.suppress(OSError), open(file, "rb") as start:
            if failed := kinds.failed_download(start.read(kinds.LOOKED_AT)):
                raise CatalogError(f"{file} cannot be read as a list: {failed}") from error
        raise CatalogError(f"{file} cannot be read as a list: {error}") from error
    missing = [name for name in required if name not in names]
    for fault, which in (("no column", missing), ("more than one column", twice)):
        if which:
            raise CatalogError(
                f"{file} has {fault} {', '.join(which)} (its columns: "
                f"{', '.join(table.column_names)}): {' and '.join(required)} are required"
                + f", {' and '.join(optional)} are optional"
                * bool(optional)
            )
    return pa.table(chosen)


def _read_any(file: Path) -> pa.Table:
    if file.suffix.lower() == ".parquet":
        return pq.read_table(file)
    read = pyarrow.csv.ReadOptions(use_threads=False)  # with threads, errors name no row
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with pyarrow.csv.open_csv(file, read_options=read, parse_options=parse) as reader:
        strings = {name: pa.string() for name in reader.schema.names}
    convert = pyarrow.csv.ConvertOptions(column_types=strings, strings_can_be_null=False)
    return pyarrow.csv.read_csv(file, read, parse, convert)


def _tidy(paths: pa.ChunkedArray, file: Path) -> pa.Array:
    """Makes paths inside the list's folder relative to it."""
    paths = paths.combine_chunks()
    folder = os.path.abspath(file.parent)  # noqa: PTH100
    odd = pc.match_substring_regex(paths, _UNTIDY)

    def tidy(path: str) -> str:
        if not path:
            return path
        whole = os.path.normpath(os.path.join(folder, path))  # noqa: PTH118
        inside = whole.startswith(folder.rstrip("/") + "/")
        return whole[len(folder.rstrip("/")) + 1 :] if inside else os.path.normpath(path)

    mended = pa.array([tidy(p) for p in paths.filter(odd).to_pylist()], pa.string())
    return pc.replace_with_mask(paths, odd, mended)


def _translate(file: Path, table: pa.Table, column: str, known: dict) -> np.ndarray:
    """Maps the words of a column to their meanings."""
    words = table[column].combine_chunks()
    codes = pc.index_in(words, value_set=pa.array(list(known)))
    _refuse(file, column, words, codes.is_null(), f"is not one of {', '.join(known)}")
    return np.array(list(known.values()))[codes.to_numpy()]


def _refuse_duplicates(file: Path, paths: pa.Array) -> None:
    codes = paths.dictionary_encode().indices.to_numpy()  # in order of first appearance
    again = np.zeros(len(codes), bool)
    again[1:] = codes[1:] <= np.maximum.accumulate(codes)[:-1]
    if again.any():
        first = int(np.argmax(codes == codes[np.argmax(again)]))
        _refuse(file, "path", paths, pa.array(again), f"repeats row {_row(file, first)}")


def _refuse(file: Path, column: str, values: pa.Array, bad: pa.Array, fault: str) -> None:
    """Raises CatalogError for the first bad value, if any."""
    rows = np.flatnonzero(bad.to_numpy(zero_copy_only=False))
    if len(rows):
        value = values[int(rows[0])].as_py()
        raise CatalogError(
            f"{file}, row {_row(file, int(rows[0]))}, column {column}: {value!r} {fault}"
            + f" ({len(rows):,} such rows)" * (len(rows) > 1)
        )


def _row(file: Path, index: int) -> int:
    return index + (1 if file.suffix.lower() == ".parquet" else 2)


def _require_some(file: Path, paths: pa.ChunkedArray) -> None:
    """Refuses a list if none of its images is found: it probably lies in the wrong folder."""
    checked = [paths[int(i)].as_py() for i in np.linspace(0, len(paths) - 1, CHECKED)]
    if not any(os.path.exists(os.path.join(file.parent, path)) for path in checked):  # noqa: PTH110, PTH118
        raise CatalogError(
            f"{file}: images not found, for example {file.parent / checked[0]}: paths must be "
            "absolute, or relative to the folder of the list"
        )
