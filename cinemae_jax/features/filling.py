"""Opens the feature sets of a run: online, or from banks whose missing parts it extracts."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.collection import Source, open_images
from cinemae_jax.data.loader import Batch, Images
from cinemae_jax.data.refusal import DecodeError
from cinemae_jax.data.transforms import MultiCrop, Transform
from cinemae_jax.data.unread import BadImages
from cinemae_jax.features import bank, extraction, sources
from cinemae_jax.features.bank import AnyRecipe, EncoderRecipe, Part, Recipe, Stored
from cinemae_jax.features.extraction import Encoding, Extractor
from cinemae_jax.features.run import Run
from cinemae_jax.features.sources import BankedSet, OnlineSet, Sets
from cinemae_jax.features.splits import Data
from cinemae_jax.model.cinemae import Backbone, before_the_head
from cinemae_jax.runtime import collectives, hosts, preemption, progress
from cinemae_jax.runtime.devices import Replicas, merge
from cinemae_jax.settings import DataSettings, FeatureSettings, Settings

BANK = "bank"
# Programs that fill a bank: the backbone, the global encoder.
MAE, ENCODER = "backbone", "encoder"
COMPARED = 100  # image files whose size is checked when a bank is opened


@dataclasses.dataclass(frozen=True)
class Store:
    """Files of one kind of features: those of the backbone, or those of a global encoder.

    Attributes:
      recipe: of the features.
      parts: files.
    """

    recipe: AnyRecipe
    parts: Sequence[Part]


@dataclasses.dataclass(frozen=True)
class Bank:
    """A bank of some images on disk.

    Attributes:
      images: in the order of the rows.
      transform: that makes their pixels.
      num_calls: applications of it per image; a grid of crops counts as one.
      recipe: of the backbone's features.
      parts: files of the backbone's features.
      batch_size: images at a time through the backbone, over all devices of all hosts.
      encoded: of the global encoder, with as many parts; None if there is no encoder.
    """

    images: Catalog
    transform: Transform
    num_calls: int
    recipe: Recipe
    parts: Sequence[Part]
    batch_size: int
    encoded: Store | None = None

    @property
    def stores(self) -> dict[str, Store]:
        """Its files by the program that makes their features."""
        encoded = {ENCODER: self.encoded} if self.encoded else {}
        return {MAE: Store(self.recipe, self.parts)} | encoded

    def missing(self) -> dict[str, list[int]]:
        """Numbers of the parts to be extracted, by program; ``bank.missing`` has the errors."""
        return {
            name: [part.index for part in bank.missing(store.parts, store.recipe, self.images)]
            for name, store in self.stores.items()
        }

    def made_of(self) -> dict[str, Any]:
        """Everything its bytes depend on, ready for JSON."""
        recipes = {name: one.recipe.choices for name, one in self.stores.items()}
        return {"recipes": recipes, "images": self.images.fingerprint}


def bank_folder(features: FeatureSettings, workdir: Path) -> Path:
    """Where the bank of a run lies."""
    return Path(features.bank) if features.bank else workdir / BANK


def banks(config: Settings, data: Data, backbone: Backbone, workdir: Path) -> dict[str, Bank]:
    """The banks of a run, by the names of the parts of its data."""
    folder = bank_folder(config.features, workdir)
    size, preprocessing = backbone.config.image_size, backbone.preprocessing
    scored = config.data.eval_transform(size, preprocessing)
    learned = config.data.train_transform(size, preprocessing)

    def encoded(name: str, count: int, transform: MultiCrop, num_calls: int) -> Store | None:
        if not backbone.encoder or not transform.view:
            return None
        recipe = EncoderRecipe(
            encoder_sha256=backbone.encoder.sha256,
            transform=f"{transform!r}, {transform.view!r}",
            dtype=config.detector.dtype,
            seed=config.features.seed,
            num_views=num_calls * transform.global_shape[0],
        )
        own = folder / f"encoder_{recipe.encoder_sha256[:12]}_{transform.view.of}" / name
        return Store(recipe, bank.plan(own, count, config.features.shard_images))

    def one(name: str, images: Catalog, transform: MultiCrop, num_calls: int) -> Bank:
        recipe = Recipe(
            backbone_sha256=backbone.sha256,
            transform=repr(transform),
            detector=before_the_head(config.detector),
            seed=config.features.seed,
            num_runs=config.features.num_runs,
            num_views=num_calls * math.prod(transform.shape[:-3]),
        )
        parts = bank.plan(folder / name, len(images), config.features.shard_images)
        by_encoder = encoded(name, len(images), transform, num_calls)
        size = config.features.batch_size
        return Bank(images, transform, num_calls, recipe, parts, size, by_encoder)

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
    fill(made, config.data, Programs.of(config, backbone, run.replicas.local), run)
    columns = sources.needed_columns(config.detector)

    def banked(one: Bank) -> BankedSet:
        own = [name for name in columns if not (one.encoded and name == "f_global")]
        stored = _read(one, Store(one.recipe, one.parts), own, config.features)
        if one.encoded and "f_global" in columns:
            by_encoder = _read(one, one.encoded, one.encoded.recipe.columns, config.features)
            stored = stored.with_global(by_encoder)
        return BankedSet(
            one.images,
            stored,
            config.detector,
            masks,
            backbone.config,
            backbone.global_width,
            run.replicas,
            batch_size=config.eval.batch_size,
            num_views=config.features.num_views,
        )

    return Sets(**{name: banked(one) for name, one in made.items()})


def _read(one: Bank, store: Store, columns: Sequence[str], features: FeatureSettings) -> Stored:
    return bank.read(
        store.parts,
        one.images,
        columns,
        num_views=store.recipe.num_views,
        num_runs=one.recipe.num_runs,
        memory=features.memory * 1e9,
    )


# --- extraction ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The frozen programs that fill a bank, on this host's devices alone.

    Attributes:
      backbone: makes all features but an encoder's.
      encoder: None if there is no global encoder.
    """

    backbone: Extractor
    encoder: Encoding | None

    @classmethod
    def of(cls, config: Settings, backbone: Backbone, local: Replicas) -> "Programs":
        """The programs of a run; ``local`` are the devices of this host (``Replicas.local``)."""
        own = dataclasses.replace(backbone, encoder=None)
        encoder = backbone.encoder
        return cls(
            Extractor(config.detector, config.masks, own, local),
            Encoding(config.detector, encoder, local) if encoder else None,
        )

    def columns(self, wanted: Mapping[str, AnyRecipe], batch: Batch) -> dict[str, Any]:
        """The columns of the wanted recipes, by name, still on the devices."""
        found: dict[str, Any] = {}
        if MAE in wanted:
            features = self.backbone.of(self.backbone.storing, batch)
            for name in wanted[MAE].columns:
                found[name] = getattr(features.terms if name in bank.TERMS else features, name)
        if ENCODER in wanted and self.encoder:
            (name,) = wanted[ENCODER].columns
            found[name] = self.encoder.of(batch)
        return found


def fill(made: Mapping[str, Bank], data: DataSettings, programs: Programs, run: Run) -> None:
    """Extracts the missing parts of banks; writes each part when it is complete.

    Args:
      made: banks by name.
      data: how images are read.
      programs: that make the features; a decoded image goes through all that it still needs.
      run: of all hosts.

    Every host extracts its own parts on its own devices.  Hosts wait for each other after each
    part, so a request to stop reaches all of them between two parts.

    Raises:
      bank.BankError: if there is a bank that cannot be used.
      OSError: if a part cannot be written, or does not show up on all hosts.
      Preempted: when the run was told to stop; finished parts are kept.
    """
    _look_again(made, data.source, run)
    found = {name: one.missing() for name, one in made.items()}
    lacking = collectives.exchange(found)[0]
    todo = [
        (name, i, [store for store, parts in by_store.items() if i in parts])
        for name, by_store in lacking.items()
        for i in sorted({i for parts in by_store.values() for i in parts})
    ]
    if not todo:
        return
    host = run.replicas.host
    mine = todo[host.index :: host.count]
    total = sum(len(made[name].parts[i].rows) * made[name].num_calls for name, i, _ in mine)
    with progress.bar("extract", total, "view") as update:
        for turn in range(math.ceil(len(todo) / host.count)):
            preemption.check()
            for name, i, stores in mine[turn : turn + 1]:
                one = made[name]
                batch_size = one.batch_size // host.count
                online = OnlineSet(one.images, programs.backbone, data, batch_size)
                batches = online.views(one.transform, one.num_calls, one.parts[i].rows)
                extract_part(one, i, stores, programs, batches, run.unread, update)
            collectives.barrier(f"part {turn} of every host")
    written = [made[name].stores[store].parts[i].path for name, i, by in todo for store in by]
    if unseen := hosts.unseen(written):
        raise FileNotFoundError(
            f"{unseen[0]} and {len(unseen) - 1} more parts are missing after they were written: "
            "rerun the same command; on several hosts put the bank on a file system that all share"
        )
    size = sum(bank.num_bytes(s.parts) for one in made.values() for s in one.stores.values())
    images = sum(len(one.images) for one in made.values())
    folder = made[todo[0][0]].parts[0].path.parent.parent
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
    for part in (part for store in one.stores.values() for part in store.parts):
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
    one: Bank,
    index: int,
    stores: Sequence[str],
    programs: Programs,
    batches: Iterable[Batch],
    unread: BadImages,
    update: Callable[[int], object],
) -> None:
    """Extracts a part on the devices of this host and writes it to the given stores.

    Args:
      one: the bank.
      index: of the part.
      stores: names of ``Bank.stores``; all are filled in one pass over the decoded images.
      programs: that make the features.
      batches: all views of the part's images.
      unread: records images that cannot be read.
      update: is told the number of views done.
    """
    recipes = {name: one.stores[name].recipe for name in stores}
    names = [name for recipe in recipes.values() for name in recipe.columns]
    facts: dict[str, list[Any]] = {name: [] for name, _ in (*bank.FILE_FACTS, ("error", None))}
    columns: dict[str, list[np.ndarray]] = {name: [] for name in names}
    dispatched = ((batch, programs.columns(recipes, batch)) for batch in batches)
    for batch, found in extraction.ahead(dispatched):
        unread.note(one.images, batch)
        for name, values in facts.items():
            values.extend(batch[name].tolist())
        for name, of_batch in merge(found).items():
            columns[name].append(of_batch)
        update(int((batch["row"] >= 0).sum()))
    rows = len(one.parts[index].rows)
    facts = {name: values[:: one.num_calls][:rows] for name, values in facts.items()}
    for name, recipe in recipes.items():
        views = rows * recipe.num_views
        taken = {c: np.concatenate(columns[c])[:views].reshape(rows, -1) for c in recipe.columns}
        if bank.IDS in taken:
            ids = bank.id_type(programs.backbone.model.num_patches)
            taken[bank.IDS] = taken[bank.IDS].astype(ids)
        bank.write(one.stores[name].parts[index], recipe, one.images, facts, taken)
