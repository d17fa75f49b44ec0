"""The table that a catalog holds: one row an image, with ids that are the same on every machine."""

import hashlib
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

NATURE, AI = 0, 1
CLASS_NAMES = ("nature", "ai")

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


def example_id(path: str) -> int:
    """64-bit hash of a relative path: what names an image in masks, banks and score files."""
    return int(example_ids([path])[0])


def example_ids(paths: Iterable[str]) -> np.ndarray:
    """(N,) uint64, ``example_id`` of each path; about half a microsecond each."""
    digests = b"".join(
        [
            hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
            for path in paths
        ]
    )
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def build(path: Any, label: Any, generator: Any, split: Any, example_id: Any) -> pa.Table:
    """Columns (Arrow arrays, or what makes some) to a table of ``SCHEMA``, one chunk a column."""
    columns = (path, label, generator, split, example_id)
    return pa.table(
        [_array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA
    )


def repeated(value: str, count: int) -> pa.DictionaryArray:
    """A column that says the same in every row."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), [value])


def printable(name: str) -> str:
    """A file name as text that any terminal, file and table takes; undecodable bytes are '�'."""
    return os.fsencode(name).decode("utf-8", "replace")


def _array(column: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array):
        column = pa.array(column, kind.value_type if pa.types.is_dictionary(kind) else kind)
    if pa.types.is_dictionary(kind) and not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    return column.cast(kind)
