"""The table behind a catalog: one row per image, with ids that do not depend on the machine."""

import collections
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt64

NATURE, AI = 0, 1
CLASS_NAMES = ("nature", "ai")
HELD_OUT = "held_out"  # split of a list: images that validate and calibrate, of any source

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # relative to the root, with '/'
        ("label", pa.int8()),  # 0 nature, 1 AI-generated
        ("generator", pa.dictionary(pa.int32(), pa.string())),
        ("split", pa.dictionary(pa.int32(), pa.string())),
        ("example_id", pa.uint64()),  # hash of the path
    ]
)

# Generator, split and label.
Group = tuple[str, str, int]


class CatalogError(ValueError):
    """A data set cannot be used as requested; the message says what was found."""


def example_id(path: str) -> int:
    """64-bit hash of a relative path: identifies an image in masks, banks and score files."""
    return int(example_ids([path])[0])


def example_ids(paths: Iterable[str]) -> UInt64[np.ndarray, " n"]:
    """``example_id`` of each path, at about half a microsecond per path."""
    digests = b"".join(
        [
            hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
            for path in paths
        ]
    )
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def build(path: Any, label: Any, generator: Any, split: Any, example_id: Any) -> pa.Table:
    """A table of ``SCHEMA`` with one chunk per column, from Arrow arrays or sequences."""
    columns = (path, label, generator, split, example_id)
    return pa.table(
        [_array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def repeated(value: str, count: int) -> pa.DictionaryArray:
    """A column with the same value in every row."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [value])


def count_groups(table: pa.Table) -> dict[Group, int]:
    """Number of images per generator, split and label."""
    groups = table.group_by(["generator", "split", "label"]).aggregate([([], "count_all")])
    return {(r["generator"], r["split"], r["label"]): r["count_all"] for r in groups.to_pylist()}


def add_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several counts by reason."""
    return dict(sum(map(collections.Counter, parts), collections.Counter()))


def _array(column: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array):
        column = pa.array(column, kind.value_type if pa.types.is_dictionary(kind) else kind)
    if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.cast(kind)
