"""Builds GenImage as a TFDS data set of the original files, without TensorFlow.

    python -m cinemae_jax.data.genimage --manual-dir /data/GenImage --data-dir /data/tfds

In: a folder that ``catalog.scan`` understands.  Out: one TFDS config per generator, with
ArrayRecord shards in the order of the paths, and an index from which ``open_tfds`` restores the
catalog of the folder.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tensorflow_datasets.core.writer import ExampleWriter
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from cinemae_jax.data import catalog
from cinemae_jax.data.catalog import Catalog, CatalogError
from cinemae_jax.data.decode import FORMATS
from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.data.tfds_records import (
    INDEX,
    INDEX_FACTS,
    VERSION,
    PathLike,
    open_sources,
    read_catalog,
)
from cinemae_jax.runtime.console import OK, fail

_LOG = logging.getLogger(__name__)

# fmt: off
GENERATORS = (
    "Midjourney", "stable_diffusion_v_1_4", "stable_diffusion_v_1_5", "ADM", "glide", "wukong",
    "VQDM", "BigGAN",
)
# fmt: on
HOMEPAGE = "https://github.com/GenImage-Dataset/GenImage"
# Target size. A reader keeps every shard that it has used open: 600 files for all of GenImage.
# TFDS's own rule (up to 1,024 shards per split) would exceed the usual limit of 1,024 open files.
SHARD_BYTES = 1 << 30

if __name__ == "__main__":  # before the class: TFDS records the module that defines a builder
    sys.exit(importlib.import_module("cinemae_jax.data.genimage").main())


class GenImage(tfds.core.ShardBasedBuilder):
    """The original files of one generator and its photographs.

    A ``ShardBasedBuilder``, because ``GeneratorBasedBuilder`` needs TensorFlow to shuffle splits
    above 1 GB.

    Args:
      data_dir: folder of TFDS data sets.
      config: one of ``GENERATORS``, or ``tfds.core.BuilderConfig(name=<generator>)``.
      version: as in TFDS.
      file_format: only ``array_record`` works without TensorFlow.
    """

    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES = {str(VERSION): "Original files, in the order of their paths."}  # noqa: RUF012
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
    """Writes reproducible shards on this machine, and copies them to object stores."""

    def write(self, path: PathLike, examples: Iterable[tuple[Any, bytes]]) -> None:
        same = (  # TFDS orders the features differently in every process
            (key, tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True))
            for key, data in examples
        )
        try:
            if "://" not in os.fspath(path):
                super().write(path, same)
                return
            with tempfile.TemporaryDirectory() as folder:  # array_record cannot write gs://
                super().write(epath.Path(folder) / "shard", same)
                (epath.Path(folder) / "shard").copy(path)
        except RuntimeError as error:  # array_record raises it on a full disk
            raise OSError(f"shard cannot be written: {error}") from error


def _shards(root: Path, table: pa.Table) -> list[pa.Table]:
    sizes = _sizes(root, table)
    count = min(-(-sum(sizes) // SHARD_BYTES) or 1, len(sizes))
    ends = [len(sizes) * shard // count for shard in range(count + 1)]
    return [table.slice(a, b - a) for a, b in itertools.pairwise(ends)]


def _sizes(root: Path, table: pa.Table) -> list[int]:
    """Bytes of each file."""
    return [Path(root, name).stat().st_size for name in table["path"].to_pylist()]


def _examples(root: Path, table: pa.Table, bar: tqdm) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, record in enumerate(table.to_pylist()):
        path = Path(root, record["path"])
        width, height, image_format = _header(path)
        yield (
            row,
            {
                "image": os.fspath(path),  # TFDS holds a shard's examples, so it reads files late
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
    """(width, height, format) from the header of a file; (0, 0, '') if it is damaged."""
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the decoder checks size and metadata later
        try:
            with Image.open(file, formats=FORMATS) as image:
                return (*image.size, image.format or "")
        except Exception as error:  # Pillow can raise almost any type on damaged headers
            _LOG.warning("%s is kept although its header is damaged: %s", path, error)
            return 0, 0, ""


def _write_index(path: epath.Path, images: Catalog) -> None:
    facts = {
        "root": str(images.root.absolute()),
        "skipped": images.skipped,
        "num_bytes": sum(_sizes(images.root, images.table)),
    }
    table = images.table.replace_schema_metadata({INDEX_FACTS: json.dumps(facts)})
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd")


def build(manual_dir: PathLike, data_dir: PathLike, generator: str) -> epath.Path:
    """Builds one generator unless it is already built.

    Returns:
      The folder of its shards.

    Raises:
      CatalogError: if the generator is not in ``manual_dir``, or was built from other files.
      OSError: if a file cannot be read or written.
    """
    images = catalog.scan(manual_dir).select(generators=[generator])
    is_known = generator in GENERATORS
    config = generator if is_known else tfds.core.BuilderConfig(name=generator)
    builder = GenImage(data_dir=data_dir, config=config)
    options = tfds.download.DownloadConfig(manual_dir=os.fspath(manual_dir))
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(sys.stderr):
        builder.download_and_prepare(download_dir=unused, download_config=options)
    built = read_catalog(data_dir, [generator])
    if built.fingerprint != images.fingerprint:
        raise CatalogError(
            f"{builder.data_dir} was built from other images ({built.describe()}) than those now "
            f"in {manual_dir} ({images.describe()}): delete it, or use another --data-dir"
        )
    with (builder.data_path / INDEX).open("rb") as file:
        before = json.loads(pq.read_schema(file).metadata[INDEX_FACTS])["num_bytes"]
    if before != (now := sum(_sizes(images.root, images.table))):
        raise CatalogError(
            f"{builder.data_dir} was built from files of {before:,} bytes, but those now in "
            f"{manual_dir} have {now:,} bytes: delete it, or use another --data-dir"
        )
    open_sources(builder.data_path, built.table)
    return builder.data_path


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit code 0 if all is built, 2 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        "python -m cinemae_jax.data.genimage", description="Builds GenImage as a TFDS data set."
    )
    parser.add_argument("--manual-dir", required=True, help="GenImage, unpacked")
    parser.add_argument("--data-dir", required=True, help="folder of TFDS data sets")
    parser.add_argument("--generator", action="extend", nargs="+", help="default: all")
    args = parser.parse_args(argv)
    try:
        found = catalog.scan(args.manual_dir)
        images = found.select(generators=args.generator)
        for name in images.generators:
            folder = build(args.manual_dir, args.data_dir, name)
            print(f"{images.select(generators=[name]).describe()}: {folder}", flush=True)
    except (ValueError, OSError) as error:
        return fail(error)
    return OK
