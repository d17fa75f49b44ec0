"""A set of images and where its features come from: the backbone, or a bank.

Two kinds of set with the same methods: ``OnlineSet`` runs the backbone on every batch,
``BankedSet`` reads stored features (``bank``).  Both yield batches and the same ``Features``.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cinemae_jax.data import loader
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch
from cinemae_jax.data.order import Order
from cinemae_jax.data.transforms import Transform
from cinemae_jax.features import extraction
from cinemae_jax.features.bank import Stored
from cinemae_jax.features.extraction import Extractor, Featured
from cinemae_jax.model import lcas, masking
from cinemae_jax.model.cinemae import Features
from cinemae_jax.model.config import DetectorConfig, MAEConfig
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings


class FeatureSet(Protocol):
    """Some images and where their features come from; n crops of an image make n rows."""

    @property
    def images(self) -> Catalog:
        """What ``row`` counts."""

    def training(self, order: Order, start_step: int) -> Iterable[Featured]:
        """Shuffled batches with the drawn runs of all seeds: terms are (B·n, S·K, M)."""

    def scoring(self) -> Iterable[Featured]:
        """All images once, in order, runs 0 … K-1."""


@dataclasses.dataclass(frozen=True)
class Sets:
    """The images of a run: learned from, validated on, tested on."""

    train: FeatureSet
    validation: FeatureSet
    test: FeatureSet


@dataclasses.dataclass(frozen=True)
class OnlineSet:
    """Some images, decoded and sent through the backbone whenever they are asked for."""

    images: Catalog
    extractor: Extractor

    def training(self, order: Order, start_step: int) -> Iterator[Featured]:
        config = self.extractor.config
        batches = loader.train_batches(
            config.data.images(self.images),
            config.data.train_transform(self.extractor.model.image_size),
            order,
            seed=config.features.seed,
            start_step=start_step,
            host=self.extractor.replicas.host,
            num_threads=config.data.num_threads,
            num_views=config.features.num_views,
        )
        return self.extractor(self.extractor.training, batches)

    @property
    def scored(self) -> Transform:
        """What scored images go through."""
        return self.extractor.config.data.eval_transform(self.extractor.model.image_size)

    def scoring(self) -> Iterator[Featured]:
        config = self.extractor.config
        batches = self.views(self.scored, 1, range(len(self.images)), config.eval.batch_size)
        return self.extractor(self.extractor.scoring, batches)

    def storing(self, transform: Transform, num_views: int, rows: range) -> Iterator[Featured]:
        """All views of some rows, with the R runs that a bank holds."""
        batch_size = self.extractor.config.features.batch_size
        batches = self.views(transform, num_views, rows, batch_size)
        return self.extractor(self.extractor.storing, batches)

    def views(
        self, transform: Transform, num_views: int, rows: range, batch_size: int
    ) -> Iterator[Batch]:
        """The views of some rows one after the other (``loader.eval_batches``)."""
        config = self.extractor.config
        return loader.eval_batches(
            config.data.images(self.images),
            transform,
            batch_size=batch_size,
            seed=config.features.seed,
            host=self.extractor.replicas.host,
            num_threads=config.data.num_threads,
            num_views=num_views,
            rows=rows,
        )


# --- from a bank --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class BankedSet:
    """Some images whose features were stored.

    Attributes:
      images: in the order of ``stored``.
      stored: their features.
      config: of the run.
      model: architecture of the backbone.
      replicas: devices that share every batch.
    """

    images: Catalog
    stored: Stored
    config: Settings
    model: MAEConfig
    replicas: Replicas

    def training(self, order: Order, start_step: int) -> Iterator[Featured]:
        host = self.replicas.host
        for step in range(start_step, order.num_steps):
            rows, epochs = (part[host.index :: host.count] for part in order.batch(step))
            runs = np.empty((len(rows), self.config.num_seeds * self.config.detector.num_runs), int)
            for epoch in np.unique(epochs):
                here = epochs == epoch
                runs[here] = self._drawn(int(epoch))[rows[here]]
            crops = self.config.data.num_crops
            first = (epochs % self.config.features.num_views)[:, None] * crops
            views = first + np.arange(crops)[None]
            yield self._batch(rows), self._features(rows[:, None], views, runs[:, None])

    def scoring(self) -> Iterator[Featured]:
        size, host = self.config.eval.batch_size, self.replicas.host
        views = np.arange(self.stored.num_views)
        runs = np.arange(self.config.detector.num_runs)
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
        if self.config.detector.sensitivity == "patch":
            at, _, run = np.broadcast_arrays(*by_run)
            masked = _rows_first(self._masked(at, run))
        uniform_share = _rows_first(_taken(columns["uniform_share"], by_view))
        if self.config.detector.reads_global:
            f_global = _rows_first(_taken(columns["f_global"], by_view))
        else:
            f_global = np.zeros((len(uniform_share), self.model.width), np.float32)
        features = Features(f_global, lcas.Terms(**terms), masked, uniform_share)
        return self.replicas.split(features)

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
        return masking.example_keys(extraction.mask_key(self.config), jnp.asarray(ids))

    @functools.cached_property
    def _draw(self) -> Any:
        num_runs, stored = self.config.detector.num_runs, self.config.features.num_runs
        return jax.jit(extraction.drawn_runs(num_runs, stored, self.config.num_seeds))

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a batch may straddle two epochs
    def _drawn(self, epoch: int) -> np.ndarray:
        """(N, S·K): the runs of every image in an epoch."""
        return np.asarray(self._draw(self._keys, jnp.full(len(self.images), epoch)))

    def _masked(self, rows: np.ndarray, runs: np.ndarray) -> np.ndarray:
        """Ids of the masked patches, (..., M), which a bank does not hold: they follow by key."""
        length = self.model.num_patches
        visible = self.model.num_visible(self.config.detector.mask_ratio)
        keys = self._keys[rows.reshape(-1)]
        masked = _masked_ids(keys, jnp.asarray(runs.reshape(-1)), length, visible)
        return np.asarray(masked).reshape(*rows.shape, -1)


def _taken(column: np.ndarray, index: tuple[np.ndarray, ...]) -> np.ndarray:
    """``column[index]``; NumPy is several times faster with one index than with several."""
    depth = len(index)
    at = np.ravel_multi_index(np.broadcast_arrays(*index), column.shape[:depth], mode="wrap")
    return column.reshape(-1, *column.shape[depth:]).take(at, axis=0)


def _rows_first(values: np.ndarray) -> np.ndarray:
    """(B, V, ...) to (B·V, ...)."""
    return values.reshape(-1, *values.shape[2:])


@functools.partial(jax.jit, static_argnums=(2, 3))
def _masked_ids(keys: jax.Array, runs: jax.Array, length: int, num_visible: int) -> jax.Array:
    visible = jax.vmap(lambda key, run: masking.run_ids(key, run[None], length, num_visible)[0])
    return masking.masked_ids(visible(keys, runs), length)


def needed_columns(config: DetectorConfig) -> tuple[str, ...]:
    """Names of the columns of a bank that a detector's head reads."""
    return (*("f_global",) * config.reads_global, "uniform_share", *needed_terms(config))


def needed_terms(config: DetectorConfig) -> tuple[str, ...]:
    """Names of the LCAS terms that a head's score is made of."""
    if not config.num_runs:
        return ()
    return ("bands",) if config.anomaly == "bands" else lcas.TERMS_OF[config.score]
