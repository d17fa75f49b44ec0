"""GenImage as a TFDS data set of original files, built and read without TensorFlow.

    python -m cinemae_jax.data.genimage --manual-dir /data/GenImage --data-dir /data/tfds

Comes in: a folder that ``catalog.scan`` understands.  Goes out: one TFDS config a generator, with
ArrayRecord shards in the order of the paths and an index beside them, from which ``open_tfds``
makes the catalog that a scan of the folder makes.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from cinemae_jax.data import catalog
from cinemae_jax.data.bad import CLASS_NAMES
from cinemae_jax.data.catalog import AI, NATURE, SCHEMA, Catalog, CatalogError
from cinemae_jax.data.decode import FORMATS
from cinemae_jax.data.loader import Images

OK, USAGE = 0, 2  # exit codes

# fmt: off
GENERATORS = (
    "Midjourney", "stable_diffusion_v_1_4", "stable_diffusion_v_1_5", "ADM", "glide", "wukong",
    "VQDM", "BigGAN",
)
# fmt: on
HOMEPAGE = "https://github.com/GenImage-Dataset/GenImage"
SHARD_BYTES = 1 << 30
"""Aimed at.  A reader keeps each shard that it met open: 600 files for all of GenImage, where
TFDS's own rule (up to 1,024 shards a split) passes the usual limit of 1,024 open files."""
SPLITS = ("train", "val")
INDEX = "catalog.parquet"
INDEX_FACTS = b"cinemae_jax"  # key of what a table cannot say
RAW_BYTES = tfds.decode.DeserializeMethod.RAW_BYTES

PathLike = str | os.PathLike[str]

if __name__ == "__main__":  # before the class: TFDS writes down which module a builder is from
    sys.exit(importlib.import_module("cinemae_jax.data.genimage").main())


class GenImage(tfds.core.ShardBasedBuilder):
    """Images of one generator and the photographs that go with them, as the files hold them.

    ``ShardBasedBuilder`` and not ``GeneratorBasedBuilder``: that one shuffles through temporary
    files above 1 GB a split, which needs TensorFlow.

    Args:
      data_dir: where TFDS data sets lie.
      config: one of ``GENERATORS``, or ``tfds.core.BuilderConfig(name=<generator>)``.
      version: as TFDS takes it.
      file_format: only ``array_record`` can be written and read without TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Original files, in the order of their paths."}  # noqa: RUF012
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in GENERATORS]  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir is GenImage, unpacked: <generator>/<inner>/{train,val}/{ai,nature}/<images>. "
        f"Get it from {HOMEPAGE}"
    )

    def __init__(
        self,
        *,
        data_dir: PathLike | None = None,
        config: Any = None,
        version: Any = None,
        file_format: Any = "array_record",
    ) -> None:
        super().__init__(data_dir=data_dir, config=config, version=version, file_format=file_format)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(doc="The file's bytes: read with SkipDecoding"),
            "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
            "generator": tfds.features.Text(),
            "file_name": tfds.features.Text(doc="Path below manual_dir, with '/'"),
            "width": tfds.features.Scalar(np.int32, doc="By the header; 0 if it is damaged"),
            "height": tfds.features.Scalar(np.int32, doc="By the header; 0 if it is damaged"),
            "format": tfds.features.Text(doc="By the content, as Pillow calls it; '' if damaged"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Photographs and generated images, file by file as published.",
            features=tfds.features.FeaturesDict(features),
            homepage=HOMEPAGE,
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[functools.partial[Iterator[tuple[int, dict[str, Any]]]]]]:
        root = Path(dl_manager.manual_dir)
        images = catalog.scan(root).select(generators=[self.builder_config.name])
        images = dataclasses.replace(images, table=images.table.sort_by("path"))
        _write_index(epath.Path(self.data_dir) / INDEX, images)
        bar = tqdm(total=len(images), desc=self.builder_config.name, unit="image", disable=None)
        return {
            split: [
                functools.partial(_examples, root, rows, bar)
                for rows in _shards(root, images.select(split=split).table)
            ]
            for split in sorted(images.table["split"].unique().to_pylist())
        }

    def _example_writer(self) -> ExampleWriter:
        return _ShardWriter(self.info.file_format)


class _ShardWriter(ExampleWriter):
    """Writes a shard on this machine, the same bytes every time, and copies it if need be."""

    def write(self, path: PathLike, examples: Iterable[tuple[Any, bytes]]) -> None:
        same = (  # TFDS leaves the features in an order that changes from process to process
            (key, tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True))
            for key, data in examples
        )
        try:
            if "://" not in os.fspath(path):
                super().write(path, same)
                return
            with tempfile.TemporaryDirectory() as folder:  # array_record writes no gs://
                super().write(epath.Path(folder) / "shard", same)
                (epath.Path(folder) / "shard").copy(path)
        except RuntimeError as error:  # array_record's word for a full disk
            raise OSError(f"shard cannot be written: {error}") from error


def _shards(root: Path, table: pa.Table) -> list[pa.Table]:
    sizes = [Path(root, name).stat().st_size for name in table["path"].to_pylist()]
    count = min(-(-sum(sizes) // SHARD_BYTES) or 1, len(sizes))
    ends = [len(sizes) * shard // count for shard in range(count + 1)]
    return [table.slice(a, b - a) for a, b in itertools.pairwise(ends)]


def _examples(root: Path, table: pa.Table, bar: tqdm) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, record in enumerate(table.to_pylist()):
        path = Path(root, record["path"])
        width, height, image_format = _header(path)
        yield (
            row,
            {
                "image": os.fspath(path),  # read when it is written: TFDS holds a shard's examples
                "label": int(record["label"]),
                "generator": record["generator"],
                "file_name": record["path"],
                "width": width,
                "height": height,
                "format": image_format,
            },
        )
        bar.update()
        if bar.n == bar.total:
            bar.close()


def _header(path: Path) -> tuple[int, int, str]:
    """(width, height, format) as the head of a file says; (0, 0, '') if it says nothing."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's on size and metadata: the decoder judges those
        try:
            with Image.open(file, formats=FORMATS) as image:
                return (*image.size, image.format or "")
        except Exception:  # Pillow's plugins raise almost anything on damaged heads
            return 0, 0, ""


def _write_index(path: epath.Path, images: Catalog) -> None:
    facts = json.dumps({"root": str(images.root.absolute()), "skipped": images.skipped})
    table = images.table.replace_schema_metadata({INDEX_FACTS: facts})
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd")


# --- reading ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """Row to the bytes of its file; for any number of threads, and for other processes.

    Attributes:
      sources: TFDS data sources of undecoded records.
      source: (N,) which of ``sources`` a row is in.
      position: (N,) where in that source.
      paths: (N,) what the record there must be.
    """

    sources: tuple[Any, ...]
    source: np.ndarray
    position: np.ndarray
    paths: pa.ChunkedArray

    def __call__(self, row: int) -> bytes:
        source, path = self.sources[self.source[row]], self.paths[row].as_py()
        try:
            record = source[int(self.position[row])]
        except RuntimeError as error:  # array_record's word for damage and for a failing disk
            raise OSError(f"record cannot be read: {error}") from error
        feature = tf_example_pb2.Example.FromString(record).features.feature
        if feature["file_name"].bytes_list.value[:] != [path.encode()]:
            raise CatalogError(
                f"{path} is not where {INDEX} says in {source.dataset_info.data_dir}: the shards "
                "are damaged, or of another build; delete that folder and build again"
            )
        return feature["image"].bytes_list.value[0]


def open_tfds(
    data_dir: PathLike, *, generators: Sequence[str] | None = None, split: str | None = None
) -> tuple[Catalog, Images]:
    """What ``build`` has written: the catalog that a scan of the folder gives, and the files.

    Args:
      data_dir: the folder that holds ``gen_image``.
      generators: None for all that are there.
      split: None for both.

    Raises:
      CatalogError: if something asked for is not there, unfinished, or not copied whole.
    """
    found = _catalog(data_dir, generators).select(split=split)
    return found, from_catalog(found)


def from_catalog(images: Catalog) -> Images:
    """The files of a catalog of ``open_tfds`` or of a part of one; twin of loader.from_catalog.

    Raises:
      CatalogError: as ``open_tfds``; or if the catalog is of something else.
    """
    if re.match(r"(?!gs)\w+://", os.fspath(images.root)):
        raise CatalogError(f"array_record reads no {images.root}: mount or copy it")
    ids = images.table["example_id"].to_numpy()
    source, position = np.full(len(ids), -1, np.int32), np.zeros(len(ids), np.int64)
    sources: list[Any] = []
    order = np.argsort(ids)
    for folder in _find(images.root, images.generators).values():
        index = _read_index(folder, columns=["example_id", "split"])
        for split, data in _sources(folder, index).items():
            there = index["example_id"].filter(pc.equal(index["split"], split)).to_numpy()
            row = order[np.searchsorted(ids, there, sorter=order).clip(max=len(ids) - 1)]
            is_wanted = ids[row] == there
            source[row[is_wanted]] = len(sources)
            position[row[is_wanted]] = np.flatnonzero(is_wanted)
            sources.append(data)
    if (source < 0).any():
        lost = images.table["path"][int(np.argmin(source))]
        raise CatalogError(f"{lost} is not in {images.root}: the catalog is of other images")
    read = Records(tuple(sources), source, position, images.table["path"])
    return Images(read, images.labels.astype(np.int32), ids)


def _catalog(data_dir: PathLike, generators: Sequence[str] | None) -> Catalog:
    tables, left_out = [], {}
    sources: dict[tuple[str, str, int], str] = {}
    for name, folder in _find(data_dir, generators).items():
        table = _read_index(folder)
        if (held := table["generator"].unique().to_pylist()) != [name]:
            raise CatalogError(f"{folder} holds the {INDEX} of {held}")
        facts = json.loads(table.schema.metadata[INDEX_FACTS])
        left_out[facts["root"]] = facts["skipped"]  # of a whole root: the same for its generators
        sources |= {(name, s, label): str(folder) for s in SPLITS for label in (NATURE, AI)}
        tables.append(table.cast(SCHEMA).replace_schema_metadata(None))
    table = pa.concat_tables(tables).unify_dictionaries().combine_chunks().sort_by("path")
    if pc.count_distinct(table["example_id"]).as_py() < len(table):
        raise CatalogError(
            f"generators of {data_dir} share paths: {sorted(left_out)} are different roots; "
            "open the generators of one at a time"
        )
    skipped: collections.Counter[str] = collections.Counter()
    for reasons in left_out.values():
        skipped.update(reasons)
    root = epath.Path(data_dir) if "://" in os.fspath(data_dir) else Path(data_dir)
    return Catalog(cast(Path, root), table, dict(skipped), sources)


def _find(data_dir: PathLike, generators: Sequence[str] | None) -> dict[str, epath.Path]:
    """Folders of the generators asked for, or of all."""
    base = epath.Path(data_dir) / GenImage.name
    if not base.is_dir():
        raise CatalogError(
            f"{data_dir} holds no folder {GenImage.name}: it is not a --data-dir that "
            "`python -m cinemae_jax.data.genimage` has built into"
        )
    names = sorted(path.name for path in base.iterdir() if not path.name.startswith("."))
    unknown = sorted(set(generators or ()) - set(names))
    if unknown or not names:
        raise CatalogError(
            f"generator {', '.join(unknown) or 'of any name'} is not built in {base}; "
            f"there are: {', '.join(names) or 'none'}"
        )
    wanted = names if generators is None else generators
    folders = {name: base / name / str(GenImage.VERSION) for name in wanted}
    for name, folder in folders.items():
        if not (folder / INDEX).exists():
            raise CatalogError(
                f"{name} in {base} is unfinished or not of this builder: {folder} holds no "
                f"{INDEX}. Build it, remove it, or name the other generators"
            )
    return folders


def _read_index(folder: epath.Path, columns: list[str] | None = None) -> pa.Table:
    with (folder / INDEX).open("rb") as file:
        return pq.read_table(file, columns=columns)


def _sources(folder: epath.Path, index: pa.Table) -> dict[str, Any]:
    """A TFDS data source of undecoded records for each split, all of whose shards are there."""
    try:
        builder = tfds.builder_from_directory(folder)
    except (OSError, ValueError, AssertionError) as error:
        raise CatalogError(f"{folder} is no TFDS data set: {error}") from error
    sources = {}
    counts = {c["values"]: c["counts"] for c in index["split"].value_counts().to_pylist()}
    if counts != {split: info.num_examples for split, info in builder.info.splits.items()}:
        raise CatalogError(f"{folder}: {INDEX} and dataset_info.json are of different builds")
    for split, info in builder.info.splits.items():
        shards = [epath.Path(path) for path in info.filepaths]
        missing = [path.name for path in shards if not path.exists()]
        if missing:
            raise CatalogError(f"{folder} lacks {len(missing)} shards, for example {missing[0]}")
        size = sum(path.stat().length for path in shards)
        if size != info.num_bytes:  # array_record reads a cut-off shard as empty, without a word
            raise CatalogError(
                f"{folder}: shards of {split} hold {size:,} bytes instead of {info.num_bytes:,}: "
                "they were not copied whole"
            )
        sources[split] = builder.as_data_source(split, deserialize_method=RAW_BYTES)
    return sources


# --- building -----------------------------------------------------------------------------------


def build(manual_dir: PathLike, data_dir: PathLike, generator: str) -> epath.Path:
    """Builds one generator, unless it is there already.

    Returns:
      The folder of its shards.

    Raises:
      CatalogError: if ``manual_dir`` does not hold the generator, or what is built is not of it.
      OSError: if a file cannot be read or written.
    """
    images = catalog.scan(manual_dir).select(generators=[generator])
    is_known = generator in GENERATORS
    config = generator if is_known else tfds.core.BuilderConfig(name=generator)
    builder = GenImage(data_dir=data_dir, config=config)
    options = tfds.download.DownloadConfig(manual_dir=os.fspath(manual_dir))
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(download_dir=unused, download_config=options)
    built = _catalog(data_dir, [generator])
    if built.fingerprint != images.fingerprint:
        raise CatalogError(
            f"{builder.data_dir} was built from other images ({built.describe()}) than "
            f"{manual_dir} holds now ({images.describe()}): delete it, or use another --data-dir"
        )
    _sources(builder.data_path, built.table)
    return builder.data_path


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: all is there; 2: the reason is on stderr."""
    parser = argparse.ArgumentParser(
        "python -m cinemae_jax.data.genimage", description="Builds GenImage as a TFDS data set."
    )
    parser.add_argument("--manual-dir", required=True, help="GenImage, unpacked")
    parser.add_argument("--data-dir", required=True, help="where TFDS data sets lie")
    parser.add_argument("--generator", action="extend", nargs="+", help="default: all found")
    args = parser.parse_args(argv)
    try:
        found = catalog.scan(args.manual_dir)
        images = found.select(generators=args.generator)
        for name in images.generators:
            folder = build(args.manual_dir, args.data_dir, name)
            print(f"{images.select(generators=[name]).describe()}: {folder}", flush=True)
    except (ValueError, OSError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return USAGE
    return OK
