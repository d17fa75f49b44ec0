"""A set of images and where its features come from: the backbone, or a bank.

Two kinds of set with the same methods: ``OnlineSet`` runs the backbone on every batch,
``BankedSet`` reads stored features (``bank``).  Both yield batches and the same ``Features``.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cinemae_jax.data import collection
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch, Loader
from cinemae_jax.data.order import Order
from cinemae_jax.data.transforms import Transform
from cinemae_jax.features import bank
from cinemae_jax.features.bank import Stored
from cinemae_jax.features.extraction import Extractor, Featured, drawn_runs
from cinemae_jax.model import lcas, masking
from cinemae_jax.model.cinemae import Features, masks_by_key
from cinemae_jax.model.config import DetectorConfig, MAEConfig
from cinemae_jax.model.masking import Masks
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import DataSettings


class FeatureSet(Protocol):
    """Images and where their features come from; n crops of an image make n rows."""

    @property
    def images(self) -> Catalog:
        """What ``row`` counts."""

    @property
    def num_patches(self) -> int:
        """L of the backbone."""

    def training(self, order: Order, start_step: int) -> Iterable[Featured]:
        """Shuffled batches with the drawn runs of all seeds: terms are (B·n, S·K, M)."""

    def scoring(self) -> Iterable[Featured]:
        """All images once, in order, runs 0 … K-1."""


@dataclasses.dataclass(frozen=True)
class Sets:
    """The feature sets of a run."""

    train: FeatureSet
    validation: FeatureSet
    test: FeatureSet


@dataclasses.dataclass(frozen=True)
class OnlineSet:
    """Some images, decoded and sent through the backbone every time they are needed.

    Attributes:
      images: what ``row`` counts.
      extractor: the frozen backbone.
      data: how images are read.
      batch_size: images at a time, over all devices, in ``scoring`` and ``storing``.
      num_views: V, augmented views of each training image; 0 makes a new one every epoch.
      change: of the transform that scored images go through; None for no change.
      edit: of decoded batches before they are scored, for example an attack; None for none.
    """

    images: Catalog
    extractor: Extractor
    data: DataSettings
    batch_size: int
    num_views: int = 0
    change: Callable[[Transform], Transform] | None = None
    edit: Callable[[Batch], Batch] | None = None

    @property
    def num_patches(self) -> int:
        return self.extractor.model.num_patches

    def training(self, order: Order, start_step: int) -> Iterator[Featured]:
        model, encoder = self.extractor.model, self.extractor.preprocessing
        shown = self._loader(self.data.train_transform(model.image_size, encoder))
        batches = shown.train_batches(order, start_step=start_step, num_views=self.num_views)
        return self.extractor(self.extractor.training, batches)

    def scoring(self) -> Iterator[Featured]:
        model, encoder = self.extractor.model, self.extractor.preprocessing
        transform: Transform = self.data.eval_transform(model.image_size, encoder)
        if self.change:
            transform = self.change(transform)
        batches = self.views(transform, 1, range(len(self.images)))
        if self.edit:
            batches = map(self.edit, batches)
        return self.extractor(self.extractor.scoring, batches)

    def views(self, transform: Transform, num_views: int, rows: range) -> Iterator[Batch]:
        """The views of some rows, one after the other (``Loader.eval_batches``)."""
        shown = self._loader(transform)
        return shown.eval_batches(batch_size=self.batch_size, num_views=num_views, rows=rows)

    def _loader(self, transform: Transform) -> Loader:
        return Loader(
            collection.open_images(self.images, source=self.data.source),
            transform,
            seed=self.extractor.masks.seed,
            host=self.extractor.replicas.host,
            num_threads=self.data.num_threads,
        )


# --- from a bank --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class BankedSet:
    """Images whose features come from a bank.

    Attributes:
      images: in the order of ``stored``.
      stored: their features.
      detector: what its head reads.
      masks: which of the stored runs it gets.
      model: architecture of the backbone.
      global_width: D, of its f_global.
      replicas: devices that share every batch.
      batch_size: images at a time, over all devices, in ``scoring``.
      num_views: V, augmented views that epochs of training show in turn.
    """

    images: Catalog
    stored: Stored
    detector: DetectorConfig
    masks: Masks
    model: MAEConfig
    global_width: int
    replicas: Replicas
    batch_size: int
    num_views: int = 1

    @property
    def num_patches(self) -> int:
        return self.model.num_patches

    def training(self, order: Order, start_step: int) -> Iterator[Featured]:
        host = self.replicas.host
        for step in range(start_step, order.num_steps):
            rows, epochs = (part[host.index :: host.count] for part in order.batch(step))
            runs = np.empty((len(rows), self.masks.num_seeds * self.masks.num_runs), int)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                runs[here] = self._drawn(int(epoch))[rows[here]]
            crops = self.stored.num_views // self.num_views
            first = (epochs % self.num_views)[:, None] * crops
            views = first + np.arange(crops)[None]
            yield self._batch(rows), self._features(rows[:, None], views, runs[:, None])

    def scoring(self) -> Iterator[Featured]:
        size, host = self.batch_size, self.replicas.host
        views = np.arange(self.stored.num_views)
        runs = np.arange(self.masks.num_runs)
        for start in range(0, len(self.images), size):
            rows = np.arange(start, start + size)[host.index :: host.count]
            rows = np.where(rows < len(self.images), rows, -1)
            taken = self._features(rows[:, None], views[None], runs[None, None])
            yield self._batch(rows), taken

    def _features(self, rows: np.ndarray, views: np.ndarray, runs: np.ndarray) -> Features:
        """Of rows (B, 1), views (B or 1, V) and runs (B or 1, V or 1, r): B·V rows of features."""
        columns = self.stored.columns
        by_view, by_run = (rows, views), (rows[..., None], views[..., None], runs)
        terms = {
            n: _rows_first(_taken(columns[n], by_run)) if n in columns else None
            for n in (field.name for field in dataclasses.fields(lcas.Terms))
        }
        masked = None
        if bank.IDS in columns:
            masked = _rows_first(_taken(columns[bank.IDS], by_run)).astype(np.int32)
        elif self.detector.sensitivity == "patch":
            at, _, run = np.broadcast_arrays(*by_run)
            masked = _rows_first(self._masked(at, run))
        uniform_share = _rows_first(_taken(columns["uniform_share"], by_view))
        if self.detector.reads_global:
            crops = self.stored.num_views // columns["f_global"].shape[1]  # share a global view
            f_global = _rows_first(_taken(columns["f_global"], (rows, views // crops)))
        else:
            f_global = np.zeros((len(uniform_share), self.global_width), np.float32)
        spectra = None
        if self.detector.reads_frequency:
            spectra = _rows_first(_taken(columns["frequency"], by_view))
        features = Features(f_global, lcas.Terms(**terms), masked, uniform_share, spectra)
        placed: Features = self.replicas.split(features)
        return placed

    def _batch(self, rows: np.ndarray) -> Batch:
        errors = np.where(rows < 0, "", self.stored.errors[rows])
        return {
            "row": rows,
            "label": np.where(rows < 0, 0, self.images.labels[rows]).astype(np.int32),
            "valid": (rows >= 0) & (errors == ""),
            "error": errors,
        }

    @functools.cached_property
    def _keys(self) -> jax.Array:
        ids = self.images.table["example_id"].to_numpy().astype(np.uint32)  # the low half
        return masking.example_keys(self.masks.key, jnp.asarray(ids))

    @functools.cached_property
    def _draw(self) -> Any:
        return jax.jit(drawn_runs(self.masks))

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a batch may straddle two epochs
    def _drawn(self, epoch: int) -> np.ndarray:
        """(N, S·K): the runs of every image in an epoch."""
        return np.asarray(self._draw(self._keys, jnp.full(len(self.images), epoch)))

    def _masked(self, rows: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """Ids of the masked patches, (..., M): by key, where a bank does not hold them."""
        keys = self._keys[rows.reshape(-1)]
        numbers = jnp.asarray(runs.reshape(-1, 1))
        masked = _masked_ids(keys, numbers, self.model, self.detector)
        return np.asarray(masked).reshape(*rows.shape, -1)


def _taken(column: np.ndarray, index: tuple[np.ndarray, ...]) -> np.ndarray:
    """``column[index]``, several times faster: NumPy is quicker with one flat index."""
    depth = len(index)
    at = np.ravel_multi_index(np.broadcast_arrays(*index), column.shape[:depth], mode="wrap")
    return column.reshape(-1, *column.shape[depth:]).take(at, axis=0)


def _rows_first(values: np.ndarray) -> np.ndarray:
    """(B, V, ...) to (B·V, ...)."""
    return values.reshape(-1, *values.shape[2:])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _masked_ids(
    keys: jax.Array, runs: jax.Array, model: MAEConfig, detector: DetectorConfig
) -> jax.Array:
    visible = masks_by_key(keys, runs, model, detector)[:, 0]
    return masking.masked_ids(visible, model.num_patches)


def needed_columns(config: DetectorConfig) -> tuple[str, ...]:
    """Names of the bank columns that a detector's head reads."""
    ids = config.sensitivity == "patch" and config.masking == "stratified" and needed_terms(config)
    return (
        *("f_global",) * config.reads_global,
        "uniform_share",
        *("frequency",) * config.reads_frequency,
        *needed_terms(config),
        *(bank.IDS,) * bool(ids),
    )


def needed_terms(config: DetectorConfig) -> tuple[str, ...]:
    """Names of the LCAS terms that a head's score is made of."""
    if not config.scores_patches:
        return ()
    if config.anomaly == "bands":
        return ("bands",)
    texture = ("patch_variance",) * config.reads_texture
    return tuple(dict.fromkeys((*lcas.TERMS_OF[config.score], *texture)))
