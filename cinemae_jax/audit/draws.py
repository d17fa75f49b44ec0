"""Statistics of images under two draws of masks, from the MAE and from its controls.

In: a detector and images.  Out: every statistic of every score under both draws, and the NLL
against the number of masked patches.  One backbone pass per source of features and condition.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cinemae_jax.audit import retraining
from cinemae_jax.audit.conditions import Change, unchanged
from cinemae_jax.audit.controls import Source
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import signal
from cinemae_jax.evaluation.signal import NLL, Curve, Drawn
from cinemae_jax.features.extraction import Extractor
from cinemae_jax.features.sources import OnlineSet
from cinemae_jax.model import cinemae, lcas
from cinemae_jax.model.cinemae import Features
from cinemae_jax.model.config import LEAST_RATIO, SCORES, STATISTICS, DetectorConfig, Masking, Score
from cinemae_jax.model.head import learned_weight
from cinemae_jax.runtime import progress
from cinemae_jax.runtime.devices import Replicas, merge

SOURCES: tuple[Source, ...] = ("MAE", "random weights", "Gaussian in-painting")
NAMES = tuple((score, statistic) for score in SCORES for statistic in STATISTICS)
DRAWS = 2  # the first is runs 0 … K-1, on which every score rests


@dataclasses.dataclass(frozen=True)
class Found:
    """What the draws say of the images in one condition."""

    drawn: Drawn
    curves: list[Curve]


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """Of N images, means over the crops of an image; NaN where unread.

    Attributes:
      statistics: (N, DRAWS, len(NAMES)), as a head reads them.
      nll: mean NLL of the first masked patches of the first draw (``patch_counts``).
    """

    statistics: Float[np.ndarray, "n 2 s"]
    nll: Float[np.ndarray, "n p"]


class Draws:
    """Measures images with a detector's backbone, crops, K and λ; compiled once per source."""

    def __init__(self, detector: TrainedDetector, replicas: Replicas, bad: BadImages) -> None:
        """
        Args:
          detector: with masked runs.
          replicas: devices that share every batch.
          bad: records images that cannot be read.
        """
        config = detector.settings.detector
        learned = learned_weight(detector.first_head.params)
        self.mismatch_weight = config.mismatch_weight if learned is None else float(learned)
        self._config = dataclasses.replace(
            config,
            anomaly="statistics",
            statistics=DetectorConfig.statistics,  # all three
            fusion="lcas",  # reads no f_global: XLA drops the unmasked pass
            frequency="none",
            mismatch_weight=self.mismatch_weight,
            learn_mismatch_weight=False,
        )
        self._detector, self._replicas, self._bad = detector, replicas, bad

    def by_masking(self, images: Catalog, own: Drawn) -> Drawn:
        """The MAE's statistics of the images with every kind of masks, one source each.

        Args:
          images: as they are.
          own: their statistics with the detector's masks.
        """
        values = {}
        for masking in get_args(Masking):
            if masking == self._config.masking:
                values[masking] = own.values[SOURCES[0]]
            elif masking != "disjoint" or self._config.mask_ratio >= LEAST_RATIO:
                config = dataclasses.replace(self._config, masking=masking)
                progress.say(f"measuring {len(images)} images raw, {masking} masks")
                extractor = self._extractor(SOURCES[0], config)
                values[masking] = self._measure(images, extractor, unchanged).statistics
        return dataclasses.replace(own, values=values)

    def __call__(self, images: Catalog, conditions: Mapping[str, Change]) -> dict[str, Found]:
        """Measures the images in every condition, by its name."""
        measured: dict[str, dict[str, Measured]] = {name: {} for name in conditions}
        for source in SOURCES:
            extractor = self._extractor(source, self._config)
            for name, change in conditions.items():
                progress.say(f"measuring {len(images)} images {name}, features of {source}")
                measured[name][source] = self._measure(images, extractor, change)
        generators = np.array(images.table["generator"].to_pylist())

        def found(by_source: Mapping[str, Measured]) -> Found:
            values = {source: one.statistics for source, one in by_source.items()}
            nll = by_source[SOURCES[0]].nll
            return Found(
                Drawn(images.labels, generators, NAMES, values),
                signal.curves(images.labels, generators, nll, self._patch_counts),
            )

        return {name: found(by_source) for name, by_source in measured.items()}

    @property
    def _patch_counts(self) -> list[int]:
        model = self._detector.backbone.config
        masked = model.num_patches - model.num_visible(self._config.mask_ratio)
        return patch_counts(self._config.num_runs * masked)

    def _extractor(self, source: Source, config: DetectorConfig) -> Extractor:
        settings = self._detector.settings
        backbone, reconstruct, _ = retraining.frozen(source, self._detector.backbone, settings.seed)
        masks = dataclasses.replace(settings.masks, num_draws=DRAWS, group_size=config.group_size)
        return Extractor(config, masks, backbone, self._replicas, reconstruct=reconstruct)

    def _measure(self, images: Catalog, extractor: Extractor, change: Change) -> Measured:
        settings, counts = self._detector.settings, self._patch_counts
        shown = OnlineSet(images, extractor, settings.data, settings.eval.batch_size, change=change)
        values = np.full((len(images), DRAWS, len(NAMES)), np.nan)
        nll = np.full((len(images), len(counts)), np.nan)
        for batch, split in shown.scoring():
            self._bad.note(images, batch)
            features = merge(split)
            crops = len(features.f_global) // len(batch["row"])
            order = _random_orders(batch["example_id"].repeat(crops), counts[-1])
            valid, rows = batch["valid"], batch["row"]
            for result, found in (
                (values, _statistics(features, self._config, extractor.model.num_patches)),
                (nll, _first_patches(features, self._config, order)[:, np.array(counts) - 1]),
            ):
                by_crop = np.asarray(found).reshape(len(rows), crops, *found.shape[1:])
                result[rows[valid]] = by_crop.mean(axis=1)[valid]
        return Measured(values, nll)


def patch_counts(total: int) -> list[int]:
    """1, 2, 4, … and the total number of masked patches of a draw."""
    return [*(2**i for i in range(total.bit_length()) if 2**i < total), total]


def _random_orders(example_ids: np.ndarray, count: int) -> np.ndarray:
    """(B, count) random orders of each example's masked patches, whose ids are in raster order."""
    return np.stack([np.random.default_rng(int(i)).permutation(count) for i in example_ids])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _statistics(
    features: Features, config: DetectorConfig, num_patches: int
) -> Float[Array, "b 2 s"]:
    """The columns ``NAMES`` of both draws."""
    draws = []
    for draw in range(DRAWS):
        own = _draw(features, draw, config.num_runs)
        scored = [
            cinemae.statistics(
                own, dataclasses.replace(config, score=cast(Score, score)), num_patches
            )
            for score in SCORES
        ]
        draws.append(jnp.concatenate(scored, axis=1))
    return jnp.stack(draws, axis=1)


@functools.partial(jax.jit, static_argnums=1)
def _first_patches(features: Features, config: DetectorConfig, order: Array) -> Float[Array, "b p"]:
    """Running mean of the NLL over the masked patches of the first draw, in the given order."""
    terms = _draw(features, 0, config.num_runs).terms
    scores = lcas.score(terms, NLL, config.mismatch_weight)
    ordered = jnp.take_along_axis(scores.reshape(len(scores), -1), order, axis=1)
    return jnp.cumsum(ordered, axis=1) / jnp.arange(1, ordered.shape[1] + 1)[None]


def _draw(features: Features, draw: int, num_runs: int) -> Features:
    """The features with the runs of one draw alone."""
    runs = slice(draw * num_runs, (draw + 1) * num_runs)
    terms, masked = jax.tree.map(lambda x: x[:, runs], (features.terms, features.masked))
    return dataclasses.replace(features, terms=terms, masked=masked)
