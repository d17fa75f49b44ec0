"""Reads the TFDS data sets that ``genimage`` builds, without TensorFlow.

In: a TFDS ``data_dir``.  Out: the same ``Catalog`` and ``Images`` as for the original folder.
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import Int32, Int64
from tensorflow_datasets.proto import tf_example_pb2

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Images
from cinemae_jax.data.records import AI, NATURE, SCHEMA, CatalogError, Group, add_counts

SPLITS = ("train", "val")
NAME, VERSION = "gen_image", "1.0.0"  # folder names of the TFDS data set
INDEX = "catalog.parquet"
INDEX_FACTS = b"cinemae_jax"  # metadata key of the root, the skipped files and the total size
RAW_BYTES = tfds.decode.DeserializeMethod.RAW_BYTES
FEATURES = "features.json"
# The feature classes that ``genimage`` uses, by the names that TFDS stores and would import.
FEATURE_CLASSES = tuple(
    f"{kind.__module__}.{kind.__name__}"
    for kind in (
        tfds.features.Image,
        tfds.features.ClassLabel,
        tfds.features.Text,
        tfds.features.Scalar,
    )
)
# All else that TFDS stores of them; other keys could hold a nested feature.
FEATURE_KEYS = {"pythonClassName", "description", "image", "classLabel", "text", "tensor"}

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Returns the bytes of a row's file; can be used from threads and pickled.

    Attributes:
      sources: TFDS data sources of undecoded records.
      source: index into ``sources`` of each row.
      position: index within that source.
      paths: expected path of each record.
    """

    sources: tuple[Any, ...]
    source: Int32[np.ndarray, " n"]
    position: Int64[np.ndarray, " n"]
    paths: pa.ChunkedArray

    def __call__(self, row: int) -> bytes:
        source, path = self.sources[self.source[row]], self.paths[row].as_py()
        try:
            record = source[int(self.position[row])]
        except RuntimeError as error:  # array_record raises it on damage and disk errors
            raise OSError(f"record cannot be read: {error}") from error
        feature = tf_example_pb2.Example.FromString(record).features.feature
        if feature["file_name"].bytes_list.value[:] != [path.encode()]:
            raise CatalogError(
                f"{path} is not where {INDEX} says in {source.dataset_info.data_dir}: the shards "
                "are damaged or from another build; delete that folder and rebuild it"
            )
        return feature["image"].bytes_list.value[0]


def open_tfds(
    data_dir: PathLike, *, generators: Sequence[str] | None = None, split: str | None = None
) -> tuple[Catalog, Images]:
    """Opens what ``genimage.build`` wrote: the catalog of the original folder, and its files.

    Args:
      data_dir: the folder that holds ``gen_image``.
      generators: None means all.
      split: None means both.

    Raises:
      CatalogError: if a generator or split is missing, not fully built, or not fully copied.
    """
    found = read_catalog(data_dir, generators).select(split=split)
    return found, from_catalog(found)


def from_catalog(images: Catalog) -> Images:
    """The files of all or part of a catalog of ``open_tfds``, as ``loader.from_catalog``.

    Raises:
      CatalogError: as for ``open_tfds``, or if an image is not in the built data set.
    """
    if re.match(r"(?!gs)\w+://", os.fspath(images.root)):
        raise CatalogError(f"array_record cannot read {images.root}: mount it, or copy it to disk")
    ids = images.table["example_id"].to_numpy()
    source, position = np.full(len(ids), -1, np.int32), np.zeros(len(ids), np.int64)
    sources: list[Any] = []
    order = np.argsort(ids)
    for folder in _find(images.root, images.generators).values():
        index = _read_index(folder, columns=["example_id", "split"])
        for split, data in open_sources(folder, index).items():
            there = index["example_id"].filter(pc.equal(index["split"], split)).to_numpy()
            row = order[np.searchsorted(ids, there, sorter=order).clip(max=len(ids) - 1)]
            is_wanted = ids[row] == there
            source[row[is_wanted]] = len(sources)
            position[row[is_wanted]] = np.flatnonzero(is_wanted)
            sources.append(data)
    if (source < 0).any():
        lost = images.table["path"][int(np.argmin(source))]
        raise CatalogError(f"{lost} is not in {images.root}: the catalog lists other images")
    read = Records(tuple(sources), source, position, images.table["path"])
    return Images(read, images.labels.astype(np.int32), ids)


def read_catalog(data_dir: PathLike, generators: Sequence[str] | None) -> Catalog:
    """The catalog of the given generators (None: all), read without opening any shard."""
    tables, left_out = [], {}
    sources: dict[Group, str] = {}
    for name, folder in _find(data_dir, generators).items():
        table = _read_index(folder)
        if (held := table["generator"].unique().to_pylist()) != [name]:
            raise CatalogError(f"{folder} holds the {INDEX} of {held}: rebuild {name}")
        facts = json.loads(table.schema.metadata[INDEX_FACTS])
        left_out[facts["root"]] = facts["skipped"]  # of the whole root, for all its generators
        sources |= {(name, s, label): str(folder) for s in SPLITS for label in (NATURE, AI)}
        tables.append(table.cast(SCHEMA).replace_schema_metadata(None))
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks().sort_by("path")
    if pc.count_distinct(table["example_id"]).as_py() < len(table):
        raise CatalogError(
            f"generators of {data_dir} share paths, because {sorted(left_out)} are different "
            "roots: open the generators of one root at a time"
        )
    root = epath.Path(data_dir) if "://" in os.fspath(data_dir) else Path(data_dir)
    return Catalog(cast(Path, root), table, add_counts(left_out.values()), sources)


def _find(data_dir: PathLike, generators: Sequence[str] | None) -> dict[str, epath.Path]:
    """Folders of the given generators, or of all."""
    base = epath.Path(data_dir) / NAME
    if not base.is_dir():
        raise CatalogError(
            f"{data_dir} has no folder {NAME}: name the --data-dir of "
            "`python -m cinemae_jax.data.genimage`"
        )
    names = sorted(path.name for path in base.iterdir() if not path.name.startswith("."))
    unknown = sorted(set(generators or ()) - set(names))
    if unknown or not names:
        raise CatalogError(
            f"generator {', '.join(unknown) or 'of any name'} is not built in {base}; "
            f"available: {', '.join(names) or 'none'}"
        )
    wanted = names if generators is None else generators
    folders = {name: base / name / VERSION for name in wanted}
    for name, folder in folders.items():
        if not (folder / INDEX).exists():
            raise CatalogError(
                f"{name} in {base} is unfinished or from another builder: {folder} has no "
                f"{INDEX}. Build it, remove it, or select the other generators"
            )
    return folders


def _read_index(folder: epath.Path, columns: list[str] | None = None) -> pa.Table:
    with (folder / INDEX).open("rb") as file:
        return pq.read_table(file, columns=columns)


def open_sources(folder: epath.Path, index: pa.Table) -> dict[str, Any]:
    """A TFDS data source of undecoded records per split.

    Raises:
      CatalogError: if the folder is not a TFDS data set, or a shard is missing or cut off.
    """
    _require_known_features(folder)
    try:
        builder = tfds.builder_from_directory(folder)
    except (OSError, ValueError, AssertionError) as error:
        raise CatalogError(f"{folder} is not a TFDS data set: {error}") from error
    sources = {}
    counts = {c["values"]: c["counts"] for c in index["split"].value_counts().to_pylist()}
    if counts != {split: info.num_examples for split, info in builder.info.splits.items()}:
        raise CatalogError(f"{folder}: {INDEX} and dataset_info.json are from different builds")
    for split, info in builder.info.splits.items():
        shards = [epath.Path(path) for path in info.filepaths]
        if outside := [path for path in shards if path.parent != folder]:
            raise CatalogError(f"{folder}: dataset_info.json names {outside[0]}, outside of it")
        missing = [path.name for path in shards if not path.exists()]
        if missing:
            raise CatalogError(f"{folder} lacks {len(missing)} shards, for example {missing[0]}")
        size = sum(path.stat().length for path in shards)
        if size != info.num_bytes:  # array_record silently reads a cut-off shard as empty
            raise CatalogError(
                f"{folder}: the shards of {split} have {size:,} bytes instead of "
                f"{info.num_bytes:,}: copy them again"
            )
        sources[split] = builder.as_data_source(split, deserialize_method=RAW_BYTES)
    return sources


def _require_known_features(folder: epath.Path) -> None:
    """TFDS imports the modules that features.json names: only those of the builder are accepted.

    Raises:
      CatalogError: if the file names another class, or has another structure.
    """
    path = folder / FEATURES
    try:
        features = json.loads(path.read_text())["featuresDict"]["features"].values()
        unknown = {feature["pythonClassName"] for feature in features} - set(FEATURE_CLASSES)
        keys = {key for feature in features for key in feature} - FEATURE_KEYS
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CatalogError(
            f"{path} is not that of a TFDS data set of `python -m cinemae_jax.data.genimage` "
            f"({type(error).__name__}: {error}): build it again"
        ) from error
    if unknown or keys:
        raise CatalogError(
            f"{path} names {', '.join(map(repr, sorted(unknown | keys)))}, which "
            "`python -m cinemae_jax.data.genimage` does not write: build it again from files that "
            "you trust"
        )
