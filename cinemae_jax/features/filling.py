"""Opens the feature sets of a run: online, or from banks whose missing parts it extracts."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.collection import Source, open_images
from cinemae_jax.data.decode import DecodeError
from cinemae_jax.data.loader import Images
from cinemae_jax.data.transforms import Transform
from cinemae_jax.data.unread import BadImages
from cinemae_jax.features import bank, extraction, sources
from cinemae_jax.features.bank import Part, Recipe
from cinemae_jax.features.extraction import Extractor, Featured
from cinemae_jax.features.run import Run
from cinemae_jax.features.sources import BankedSet, OnlineSet, Sets
from cinemae_jax.features.splits import Data
from cinemae_jax.model.cinemae import BEFORE_THE_HEAD, Backbone
from cinemae_jax.runtime import collectives, hosts, preemption, progress
from cinemae_jax.runtime.devices import merge
from cinemae_jax.settings import DataSettings, FeatureSettings, Settings

BANK = "bank"
COMPARED = 100  # image files whose size is checked when a bank is opened


@dataclasses.dataclass(frozen=True)
class Bank:
    """A bank of some images on disk.

    Attributes:
      images: in the order of the rows.
      transform: that makes their pixels.
      num_calls: applications of it per image; a grid of crops counts as one.
      recipe: of the features.
      parts: files.
      batch_size: images at a time through the backbone, over all devices of all hosts.
    """

    images: Catalog
    transform: Transform
    num_calls: int
    recipe: Recipe
    parts: Sequence[Part]
    batch_size: int

    def missing(self) -> list[Part]:
        """Parts that are still to be extracted; ``bank.missing`` has the errors."""
        return bank.missing(self.parts, self.recipe, self.images)

    def made_of(self) -> dict[str, Any]:
        """Everything its bytes depend on, ready for JSON."""
        return {"recipe": dataclasses.asdict(self.recipe), "images": self.images.fingerprint}


def bank_folder(features: FeatureSettings, workdir: Path) -> Path:
    """Where the bank of a run lies."""
    return Path(features.bank) if features.bank else workdir / BANK


def banks(config: Settings, data: Data, backbone: Backbone, workdir: Path) -> dict[str, Bank]:
    """The banks of a run, by the names of the parts of its data."""
    folder = bank_folder(config.features, workdir)
    size = backbone.config.image_size
    scored = config.data.eval_transform(size)
    learned = config.data.train_transform(size)

    def one(name: str, images: Catalog, transform: Transform, num_calls: int) -> Bank:
        recipe = Recipe(
            backbone_sha256=backbone.sha256,
            transform=repr(transform),
            detector={field: getattr(config.detector, field) for field in BEFORE_THE_HEAD},
            seed=config.features.seed,
            num_runs=config.features.num_runs,
            num_views=num_calls * math.prod(transform.shape[:-3]),
        )
        parts = bank.plan(folder / name, len(images), config.features.shard_images)
        return Bank(images, transform, num_calls, recipe, parts, config.features.batch_size)

    return {
        "train": one("train", data.train, learned, config.features.num_views),
        "validation": one("validation", data.validation, scored, 1),
        "test": one("test", data.test, scored, 1),
    }


def open_sets(config: Settings, data: Data, backbone: Backbone, run: Run) -> Sets:
    """The images of a run with their features; extracts the missing parts of its bank.

    Args:
      config: of the run.
      data: its images.
      backbone: frozen.
      run: its bank lies in the run's folder unless the config names another one.

    Raises:
      bank.BankError: if there is a bank that cannot be used.
    """
    masks = config.masks
    if config.features.source == "online":
        extractor = Extractor(config.detector, masks, backbone, run.replicas)
        size, views = config.eval.batch_size, config.features.num_views
        parts = (getattr(data, field.name) for field in dataclasses.fields(data))
        return Sets(*(OnlineSet(part, extractor, config.data, size, views) for part in parts))
    made = banks(config, data, backbone, run.workdir)
    local = Extractor(config.detector, masks, backbone, run.replicas.local)
    fill(made, config.data, local, run)
    columns = sources.needed_columns(config.detector)

    def banked(one: Bank) -> BankedSet:
        stored = bank.read(
            one.parts,
            one.images,
            columns,
            num_views=one.recipe.num_views,
            num_runs=one.recipe.num_runs,
            memory=config.features.memory * 1e9,
        )
        return BankedSet(
            one.images,
            stored,
            config.detector,
            masks,
            backbone.config,
            run.replicas,
            batch_size=config.eval.batch_size,
            num_views=config.features.num_views,
        )

    return Sets(**{name: banked(one) for name, one in made.items()})


# --- extraction ---------------------------------------------------------------------------------


def fill(made: Mapping[str, Bank], data: DataSettings, extractor: Extractor, run: Run) -> None:
    """Extracts the missing parts of banks; writes each part when it is complete.

    Args:
      made: banks by name.
      data: how images are read.
      extractor: on this host's devices alone (``Replicas.local``).
      run: of all hosts.

    Every host extracts its own parts on its own devices.  Hosts wait for each other after each
    part, so a request to stop reaches all of them between two parts.

    Raises:
      bank.BankError: if there is a bank that cannot be used.
      OSError: if a part cannot be written, or does not show up on all hosts.
      Preempted: when the run was told to stop; finished parts are kept.
    """
    _look_again(made, data.source, run)
    found = {name: {part.index for part in one.missing()} for name, one in made.items()}
    lacking = collectives.exchange({name: sorted(parts) for name, parts in found.items()})[0]
    todo = [(name, made[name].parts[i]) for name, parts in lacking.items() for i in parts]
    if not todo:
        return
    host = run.replicas.host
    mine = todo[host.index :: host.count]
    total = sum(len(part.rows) * made[name].num_calls for name, part in mine)
    with progress.bar("extract", total, "view") as update:
        for turn in range(math.ceil(len(todo) / host.count)):
            preemption.check()
            for name, part in mine[turn : turn + 1]:
                one = made[name]
                online = OnlineSet(one.images, extractor, data, one.batch_size // host.count)
                extract_part(part, one, online, run.unread, update)
            collectives.barrier(f"part {turn} of every host")
    if unseen := hosts.unseen([part.path for _, part in todo]):
        raise FileNotFoundError(
            f"{unseen[0]} and {len(unseen) - 1} more parts are missing after they were written: "
            "rerun the same command; on several hosts put the bank on a file system that all share"
        )
    size = sum(bank.num_bytes(one.parts) for one in made.values())
    images = sum(len(one.images) for one in made.values())
    folder = todo[0][1].path.parent.parent
    progress.say(f"bank      {folder}: {images} images, {size / 1e6:,.1f} MB")


def _look_again(made: Mapping[str, Bank], source: Source, run: Run) -> None:
    """Compares the existing parts with the image files, on the first host for all of them.

    Raises:
      bank.BankError: on every host, if a bank cannot be used.
    """
    refused, dropped = "", {}
    if run.replicas.host.index == 0:
        try:
            for name, one in made.items():
                one.missing()  # refuses other settings before anything is dropped
                dropped[name] = _drop_outdated(one, open_images(one.images, source=source))
        except bank.BankError as error:
            refused = str(error)
    refused, dropped = collectives.exchange([refused, dropped])[0]
    if refused:
        raise bank.BankError(refused)
    for name, numbers in dropped.items():
        images = made[name].images
        for rows in (made[name].parts[number].rows for number in numbers):
            table = images.table.slice(rows.start, len(rows))
            run.unread.forget(dataclasses.replace(images, table=table))


def _drop_outdated(one: Bank, files: Images) -> list[int]:
    """Drops the parts with an unread image that can be read now; returns their numbers.

    ``COMPARED`` of the read images, evenly spread, must have their old size.  This finds a data set
    that changed as a whole, not a single changed file.

    Raises:
      bank.BankError: if a file has another size now.
    """
    dropped: list[int] = []
    read: list[tuple[int, int]] = []
    for part in one.parts:
        if not part.path.exists():
            continue
        errors, sizes = bank.files(part)
        rows = list(zip(part.rows, errors, sizes, strict=True))
        if any(error and _is_readable(files, row, one.transform) for row, error, _ in rows):
            part.path.unlink()
            dropped.append(part.index)
            progress.say(f"bank      {part.path.name} again: its unread images can be read now")
            continue
        read += [(row, size) for row, error, size in rows if not error]
    for i in np.linspace(0, len(read) - 1, min(COMPARED, len(read))).astype(int):
        row, before = read[i]
        try:
            now = len(files.read(row))
        except (DecodeError, OSError):  # gone: its features stay valid
            continue
        if now != before:
            path = Path(one.images.root, one.images.table["path"][row].as_py())
            raise bank.BankError(
                f"{path} had {before:,} bytes when the bank {one.parts[0].path.parent} was built "
                f"and has {now:,} now: the images have changed; {bank.WAY_OUT}"
            )
    return dropped


def _is_readable(files: Images, row: int, transform: Transform) -> bool:
    try:
        transform(files.read(row), np.random.default_rng(0))
    except (DecodeError, OSError):
        return False
    return True


def extract_part(
    part: Part, one: Bank, images: OnlineSet, unread: BadImages, update: Callable[[int], object]
) -> None:
    """Extracts and writes one part on the devices of this host."""
    batches = images.storing(one.transform, one.num_calls, part.rows)
    facts, features = _collect(batches, one, part, unread, update)
    bank.write(part, one.recipe, one.images, facts, features)


def _collect(
    batches: Iterable[Featured],
    one: Bank,
    part: Part,
    bad: BadImages,
    update: Callable[[int], object],
) -> tuple[dict[str, list[Any]], dict[str, np.ndarray]]:
    """File facts and features of the rows of a part."""
    facts: dict[str, list[Any]] = {name: [] for name, _ in (*bank.FILE_FACTS, ("error", None))}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in one.recipe.columns}
    for batch, features in extraction.ahead(batches):
        bad.note(one.images, batch)
        for name, values in facts.items():
            values.extend(batch[name].tolist())
        merged = merge(features)
        for name, values in columns.items():
            values.append(getattr(merged.terms if name in bank.TERMS else merged, name))
        update(int((batch["row"] >= 0).sum()))
    rows = len(part.rows)
    views = rows * one.recipe.num_views
    return (
        {name: values[:: one.num_calls][:rows] for name, values in facts.items()},  # views share it
        {name: np.concatenate(v)[:views].reshape(rows, -1) for name, v in columns.items()},
    )
