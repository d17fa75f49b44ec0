"""The feature bank on disk: Parquet files with one row per image.

A file (a part) holds a fixed range of the images and appears when it is complete.  Its metadata
hold the recipe of its features; parts of different recipes are never read together.  Any Parquet
reader opens a bank.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cinemae_jax import __version__
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.records import SCHEMA
from cinemae_jax.model.config import LATER, as_before
from cinemae_jax.runtime.files import replacing

FORMAT = "cinemae-bank-2"
METADATA = b"cinemae"
WAY_OUT = "set config.features.bank to another folder, or delete this one to extract it again"
# Columns of the LCAS terms, by their names in ``lcas.Terms``.
TERMS = (
    "deviation",
    "reconstruction_deviation",
    "mismatch",
    "patch_variance",
    "context_variance",
    "bands",
)
# Column of patch ids, for masks that do not follow from keys.
IDS = "masked"
FILE_FACTS = (
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("format", pa.string()),
    ("num_bytes", pa.int64()),
)


class BankError(ValueError):
    """A bank that is damaged, incomplete, or built with different settings."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that the features of an image depend on.

    Attributes:
      backbone_sha256: of the backbone's file.
      transform: the preprocessing, with all its numbers.
      detector: the choices of ``DetectorConfig`` that come before the head.
      seed: of masks and augmentation.
      num_runs: R.
      num_views: V, augmented views or crops.
    """

    backbone_sha256: str
    transform: str
    detector: Mapping[str, Any]
    seed: int
    num_runs: int
    num_views: int

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the feature columns; without runs there are no terms."""
        terms = TERMS if self.detector.get("anomaly") == "bands" else TERMS[:-1]
        ids = (IDS,) * (self.detector.get("masking") == "stratified")
        by_run = (*terms, *ids) if self.num_runs else ()
        return ("f_global", "uniform_share", *by_run, "frequency")

    @property
    def choices(self) -> dict[str, Any]:
        """All fields, without those of the detector that came later and change nothing."""
        return dataclasses.asdict(self) | {"detector": as_before(self.detector)}


@dataclasses.dataclass(frozen=True)
class EncoderRecipe:
    """All that the features of a global encoder depend on; they lie in files of their own.

    Attributes:
      encoder_sha256: of the encoder's file.
      transform: the preprocessing, with all its numbers.
      dtype: of the encoder's products.
      seed: of augmentation.
      num_views: squares of an image that the encoder gets.
    """

    encoder_sha256: str
    transform: str
    dtype: str
    seed: int
    num_views: int

    @property
    def columns(self) -> tuple[str, ...]:
        """Name of the feature column, by encoder."""
        return (f"f_global_{self.encoder_sha256[:12]}",)

    @property
    def choices(self) -> dict[str, Any]:
        """All fields."""
        return dataclasses.asdict(self)


AnyRecipe = Recipe | EncoderRecipe


def require_made_by(recipe: AnyRecipe, made: Mapping[str, Any], where: Path) -> None:
    """Raises BankError, naming the differences, unless ``where`` was built by this recipe."""
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
    if isinstance(recipe, Recipe):
        later = {name: value for name, value in LATER.items() if name in recipe.detector}
        made = {**made, "detector": later | dict(made["detector"])}
    changed = [
        f"{name} was {made.get(name)!r}, is {value!r}"
        for name, value in wanted.items()
        if made.get(name) != value
    ]
    if changed:
        raise BankError(
            f"{where} was built with different settings: {'; '.join(changed)}; {WAY_OUT}"
        )


@dataclasses.dataclass(frozen=True)
class Part:
    """One file of a bank.

    Attributes:
      path: of the file, which may not exist yet.
      rows: of the catalog that it holds.
      index, count: which of how many parts it is.
    """

    path: Path
    rows: range
    index: int
    count: int


def plan(folder: Path, num_images: int, shard_images: int) -> list[Part]:
    """The parts of a bank."""
    starts = range(0, num_images, shard_images)
    return [
        Part(
            folder / f"part-{i:05d}-of-{len(starts):05d}.parquet",
            range(start, min(start + shard_images, num_images)),
            i,
            len(starts),
        )
        for i, start in enumerate(starts)
    ]


# --- writing ------------------------------------------------------------------------------------


def write(
    part: Part,
    recipe: AnyRecipe,
    images: Catalog,
    facts: Mapping[str, Sequence[Any]],
    features: Mapping[str, np.ndarray],
) -> None:
    """Writes one part: complete under its name, or not at all.

    Args:
      part: of ``plan``.
      recipe: that the features were made by.
      images: the catalog that ``part.rows`` counts.
      facts: ``FILE_FACTS`` and ``error`` of each row; ``error`` is empty for an image with
        features.
      features: by ``recipe.columns``, float32 (ids: ``id_type``), one row per image; views, runs
        and patches are flattened in this order.

    Raises:
      OSError: if it cannot be written, for example on a full disk; what was there stays.
    """
    unread = np.array([bool(error) for error in facts["error"]])
    table = images.table.slice(part.rows.start, len(part.rows)).combine_chunks()
    for name, kind in FILE_FACTS:
        table = table.append_column(name, pa.array(facts[name], kind, mask=unread))
    errors = pa.array(facts["error"], pa.string(), mask=~unread)
    table = table.append_column("error", errors)
    for name in recipe.columns:
        table = table.append_column(name, _lists(features[name], unread))
    described = {
        "format": FORMAT,
        "version": __version__,
        "recipe": dataclasses.asdict(recipe),
        "images": images.fingerprint,
        "part": part.index,
        "parts": part.count,
    }
    table = table.replace_schema_metadata({METADATA: json.dumps(described, sort_keys=True)})
    part.path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(part.path) as partial, open(partial, "wb") as file:
            pq.write_table(
                table,
                file,
                compression="none",  # features do not compress
                use_dictionary=[name for name, _ in FILE_FACTS] + SCHEMA.names,
                write_page_checksum=True,
            )
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}; finished parts of the bank are kept", str(part.path)
        ) from error
    _sync_folder(part.path.parent)


def id_type(num_patches: int) -> type[np.unsignedinteger]:
    """Type of stored patch ids: one byte each up to 256 patches, else two."""
    return np.uint8 if num_patches <= 256 else np.uint16


def _lists(values: np.ndarray, unread: np.ndarray) -> pa.Array:
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat.reshape(-1)), flat.shape[1], mask=pa.array(unread)
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- reading ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stored:
    """Features of some images, in the order of their catalog; N rows, V views, R runs.

    Attributes:
      columns: by name, float32: f_global (N, V, D), uniform_share (N, V), frequency (N, V, Q), a
        term (N, V, R, M) or (N, V, R, C); uint8 or uint16: masked (N, V, R, M); only those that
        were asked for.
      errors: (N,) str, why an image has no features; empty if it has.
    """

    columns: Mapping[str, np.ndarray]
    errors: np.ndarray

    @property
    def num_views(self) -> int:
        """V."""
        return int(self.columns["uniform_share"].shape[1])

    def with_global(self, encoded: "Stored") -> "Stored":
        """The same with the f_global of an encoder, and the errors of both."""
        (f_global,) = encoded.columns.values()
        errors = np.where(self.errors == "", encoded.errors, self.errors)
        return Stored({**self.columns, "f_global": f_global}, errors)

    def with_shuffled_terms(self, seed: int) -> "Stored":
        """The same, every image with the LCAS terms of a random readable one; for a control."""
        readable = np.flatnonzero(self.errors == "")
        donors = np.arange(len(self.errors))
        donors[readable] = np.random.default_rng(seed).permutation(readable)
        shuffled = {
            name: values[donors] if name in TERMS else values
            for name, values in self.columns.items()
        }
        return Stored(shuffled, self.errors)


def described(path: Path) -> dict[str, Any]:
    """The metadata of a part.

    Raises:
      BankError: if the file is damaged, or not a part of a bank.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise BankError(_damaged(path, error)) from error
    if METADATA not in metadata:
        raise BankError(f"{path} is a Parquet file, but not part of a bank: use another folder")
    found: dict[str, Any] = json.loads(metadata[METADATA])
    if found.get("format") != FORMAT:
        raise BankError(
            f"{path} has format {found.get('format')!r}, expected {FORMAT!r}: {WAY_OUT}"
        )
    return found


def missing(parts: Sequence[Part], recipe: AnyRecipe, images: Catalog) -> list[Part]:
    """The parts that are still to be written.

    Raises:
      BankError: if one that is there is damaged, or of another recipe or other images, or if the
        folder holds other parts.
    """
    folder = parts[0].path.parent
    strangers = {path.name for path in folder.glob("*.parquet")} - {p.path.name for p in parts}
    there = [part for part in parts if part.path.exists()]
    if strangers:
        raise BankError(
            f"{folder} holds unexpected files for {len(images)} images in {len(parts)} parts "
            f"({', '.join(sorted(strangers)[:3])}): the data set or config.features.shard_images "
            f"has changed; {WAY_OUT}"
        )
    fingerprint = images.fingerprint if there else ""
    for part in there:
        found = described(part.path)
        require_made_by(recipe, found["recipe"], part.path)
        if found["images"] != fingerprint:
            raise BankError(
                f"{part.path} was built from other images than these {len(images)}: {WAY_OUT}"
            )
    return [part for part in parts if not part.path.exists()]


def files(part: Part) -> tuple[list[str], list[int]]:
    """The error of each image of a part ('' for none), and its size in bytes (0 if unread).

    Raises:
      BankError: if the part is damaged, or lacks a column.
    """
    table = _read_part(part, ["error", "num_bytes"])
    return (
        [error or "" for error in table["error"].to_pylist()],
        [size or 0 for size in table["num_bytes"].to_pylist()],
    )


def read(
    parts: Sequence[Part],
    images: Catalog,
    columns: Sequence[str],
    *,
    num_views: int,
    num_runs: int,
    memory: float,
) -> Stored:
    """Reads some columns of a whole bank.

    Args:
      parts: all of them, as ``missing`` has checked them.
      images: the catalog that it was made of.
      columns: some of ``Recipe.columns``.
      num_views, num_runs: V and R of the recipe.
      memory: bytes; larger columns are held in a scratch file beside the parts, which disappears
        with the process.

    Raises:
      BankError: if a part is damaged, or lacks a column.
    """
    arrays: dict[str, np.ndarray] = {}
    scratch: Path | None = None
    errors = np.full(len(images), "", object)
    for part in parts:
        table = _read_part(part, ["example_id", "error", *columns])
        ids = images.table["example_id"].slice(part.rows.start, len(part.rows))
        if table["example_id"].to_pylist() != ids.to_pylist():
            raise BankError(f"{part.path} holds other images than its part should: delete it")
        here = slice(part.rows.start, part.rows.stop)
        errors[here] = [error or "" for error in table["error"].to_pylist()]
        unread = errors[here] != ""
        if not arrays and table.nbytes / len(table) * len(images) > memory:
            scratch = part.path.parent
        for name in columns:
            lists = table[name].combine_chunks()
            values = lists.values.to_numpy(zero_copy_only=False)
            by_run = name in (*TERMS, IDS)
            shape = (len(table), num_views, num_runs) if by_run else (len(table), num_views)
            values = values.reshape(shape if name == "uniform_share" else (*shape, -1))
            if unread.any():  # zeros, so that what they are masked by stays finite
                values = np.where(unread.reshape(-1, *[1] * (values.ndim - 1)), 0, values)
            if name not in arrays:
                arrays[name] = _empty((len(images), *values.shape[1:]), values.dtype, scratch)
            arrays[name][here] = values
    return Stored(arrays, errors.astype(str))


def _read_part(part: Part, columns: list[str]) -> pa.Table:
    try:
        with pq.ParquetFile(part.path, page_checksum_verification=True) as file:
            lacking = sorted(set(columns) - set(file.schema_arrow.names))
            if lacking:
                raise BankError(
                    f"{part.path} lacks the columns {', '.join(lacking)}: delete it to extract it "
                    "again"
                )
            return file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise BankError(_damaged(part.path, error)) from error


def _empty(shape: tuple[int, ...], kind: np.dtype, scratch: Path | None) -> np.ndarray:
    if scratch is None:
        return np.empty(shape, kind)
    with tempfile.TemporaryFile(dir=scratch) as file:
        return np.memmap(file, kind, "w+", shape=shape)


def num_bytes(parts: Sequence[Part]) -> int:
    """Size on disk."""
    return sum(part.path.stat().st_size for part in parts)


def _damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return (
        f"{path} is damaged or not a Parquet file ({reason}): delete it and rerun; only its "
        "images will be extracted again"
    )
