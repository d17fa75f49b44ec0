"""Scores changed images with a trained detector: through another transform, or under attack."""

import dataclasses
from typing import Any

import numpy as np

from cinemae_jax.audit.attacks import Attack, Objective, make_attack, mean_logit
from cinemae_jax.audit.conditions import Change, Scored
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import scoring
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.features.extraction import Extractor
from cinemae_jax.features.sources import FeatureSet, OnlineSet
from cinemae_jax.model.frequency import num_values
from cinemae_jax.model.head import STD_FLOOR
from cinemae_jax.runtime.devices import Replicas, merge


class Rescorer:
    """Scores images by the first head of a detector, under any change; compiled once."""

    def __init__(self, detector: TrainedDetector, replicas: Replicas, bad: BadImages) -> None:
        """
        Args:
          detector: whose ``settings`` say how images are read.
          replicas: devices that share every batch.
          bad: records images that cannot be read.
        """
        config, self.detector = detector.settings, detector
        self._extractor = Extractor(config.detector, config.masks, detector.backbone, replicas)
        self._bad = bad
        num_patches = detector.backbone.config.num_patches
        self._scorer = scoring.Scorer(config.detector, num_patches, replicas)

    def __call__(self, images: Catalog, change: Change) -> Scored:
        """Scores of all images, through a changed transform."""
        return self.of(self._online(images, change=change))

    def attacked(
        self, images: Catalog, attacker: "Attacker", epsilon: float, *, label: int | None = None
    ) -> Scored:
        """Scores of attacked centre crops, with the masks of every other score.

        Args:
          images: to be attacked.
          attacker: changes the crops.
          epsilon: grey levels; 0 leaves them as they are.
          label: attacks all images as if they had this label; None takes their own.
        """

        def edit(batch: Batch) -> Batch:
            flat = batch | {"image": batch["image"].reshape(-1, *batch["image"].shape[-3:])}
            labels = batch["label"] if label is None else np.full_like(batch["label"], label)
            return flat | {"image": attacker(flat | {"label": labels}, epsilon)}

        centre = dataclasses.replace(self.detector.settings.data, eval_crops=1)
        return self.of(dataclasses.replace(self._online(images), data=centre, edit=edit))

    def _online(self, images: Catalog, change: Change | None = None) -> OnlineSet:
        config = self.detector.settings
        size = config.eval.batch_size
        return OnlineSet(images, self._extractor, config.data, size, change=change)

    def of(self, images: FeatureSet) -> Scored:
        """Scores of a set, whatever the source of its features."""
        logit = np.full(len(images.images), np.nan)
        uniform_share = np.full(len(images.images), np.nan)
        width = self.detector.first_head.normalizer.stats_mean.shape[0]
        statistics = np.full((len(images.images), width), np.nan)
        for batch, scores in self._scorer(self.detector.heads, images.scoring()):
            self._bad.note(images.images, batch)
            valid = batch["valid"]
            logit[batch["row"][valid]] = scores.logit[valid, 0]
            statistics[batch["row"][valid]] = scores.stats[valid, 0]
            uniform_share[batch["row"][valid]] = scores.uniform_share[valid]
        low_context = uniform_share > self.detector.settings.detector.low_context_share
        return Scored(logit, low_context, self._by_name(statistics))

    def _by_name(self, statistics: np.ndarray) -> dict[str, np.ndarray]:
        """Standardised statistics of the first head; NaN where unread."""
        config, normalizer = self.detector.settings.detector, self.detector.first_head.normalizer
        deviation = np.maximum(normalizer.stats_std, STD_FLOOR)
        standard = (statistics - np.asarray(normalizer.stats_mean)) / deviation
        num_frequency = num_values(config.frequency) if config.reads_frequency else 0
        count = standard.shape[1] - num_frequency
        names = ("bands",) if config.anomaly == "bands" else config.statistics
        parts = dict(zip(names, np.split(standard[:, :count], len(names), axis=1), strict=True))
        parts["frequency"] = standard[:, count:]
        return {name: part for name, part in parts.items() if part.shape[1]}


class Attacker:
    """White-box attacks on the first head of a detector; compiled once for every ε."""

    def __init__(
        self,
        detector: TrainedDetector,
        replicas: Replicas,
        attack: Attack,
        objective: Objective = mean_logit,
    ) -> None:
        """
        Args:
          detector: to be attacked.
          replicas: devices that share every batch.
          attack: how strongly.
          objective: what to lower for images labelled 1, and to raise for the others.
        """
        self.undefined: set[int] = set()
        self._replicas = replicas
        config = detector.settings
        placed = detector.backbone.in_dtype(config.detector.dtype)
        self._known = replicas.replicate((placed, detector.first_head, config.masks.key))
        push = make_attack(config.detector, attack, objective)

        def on_device(known: Any, epsilon: Any, batch: Any) -> Any:
            return push(*known, batch["image"], batch["example_id"], batch["label"], epsilon)

        self._push = replicas.pmap_map(on_device, replicated=2)

    def __call__(self, batch: Batch, epsilon: float) -> np.ndarray:
        """The batch's crops, (B, H, W, 3) uint8, changed by at most ``epsilon`` grey levels.

        Rows whose gradient was ever undefined are added to ``undefined``.
        """
        sent = self._replicas.shard(batch, ("image", "example_id", "label"))
        level = self._replicas.replicate(np.float32(epsilon))
        images, undefined = merge(self._push(self._known, level, sent))
        self.undefined |= {int(row) for row in batch["row"][undefined & batch["valid"]]}
        return images
