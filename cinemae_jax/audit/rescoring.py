"""Scores changed images with a trained detector: through another transform, or under attack."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from cinemae_jax.audit.attacks import Attack, make_attack
from cinemae_jax.audit.conditions import Change, Scored
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch
from cinemae_jax.data.transforms import Transform
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import scoring
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.features.extraction import Extractor, Featured, mask_key
from cinemae_jax.features.sources import FeatureSet, OnlineSet
from cinemae_jax.runtime.devices import Replicas, merge


@dataclasses.dataclass(frozen=True)
class ChangedSet(OnlineSet):
    """Images to score through a change of the detector's transform."""

    change: Change

    @property
    def scored(self) -> Transform:
        return self.change(super().scored)


class Rescorer:
    """Scores images by the first head of a detector, under any change; compiled once."""

    def __init__(self, detector: TrainedDetector, replicas: Replicas, bad: BadImages) -> None:
        """
        Args:
          detector: whose ``settings`` say how images are read.
          replicas: devices that share every batch.
          bad: takes note of the images that cannot be read.
        """
        config, self.detector, self.replicas = detector.settings, detector, replicas
        self.extractor = Extractor(config, detector.backbone, replicas)
        self._bad = bad
        num_patches = detector.backbone.config.num_patches
        self._scorer = scoring.Scorer(config.detector, num_patches, replicas)

    def __call__(self, images: Catalog, change: Change) -> Scored:
        """Scores of all images, through a changed transform."""
        return self.of(ChangedSet(images, self.extractor, change))

    def of(self, images: FeatureSet) -> Scored:
        """Scores of a set, whatever the source of its features."""
        logit = np.full(len(images.images), np.nan)
        uniform_share = np.full(len(images.images), np.nan)
        for batch, scores in self._scorer(self.detector.heads, images.scoring()):
            self._bad.note(images.images, batch)
            valid = batch["valid"]
            logit[batch["row"][valid]] = scores.logit[valid, 0]
            uniform_share[batch["row"][valid]] = scores.uniform_share[valid]
        return Scored(logit, uniform_share > self.detector.settings.detector.low_context_share)


class Attacker:
    """White-box attacks on the first head of a detector; compiled once for every ε."""

    def __init__(self, detector: TrainedDetector, replicas: Replicas, attack: Attack) -> None:
        """
        Args:
          detector: to be attacked.
          replicas: devices that share every batch.
          attack: how strongly.
        """
        self.undefined: set[int] = set()
        self._replicas = replicas
        config = detector.settings
        placed = detector.backbone.in_dtype(config.detector.dtype)
        self._known = replicas.replicate((placed, detector.first_head, mask_key(config)))
        push = make_attack(config.detector, attack)

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


@dataclasses.dataclass(frozen=True)
class AttackedSet(OnlineSet):
    """Centre crops that are attacked, and then scored with the masks of every other score.

    Attributes:
      attacker: changes the crops.
      epsilon: grey levels; 0 leaves them as they are.
    """

    attacker: Attacker
    epsilon: float

    def scoring(self) -> Iterator[Featured]:
        return self.extractor(self.extractor.scoring, self._attacked())

    def _attacked(self) -> Iterator[Batch]:
        config = self.extractor.config
        centre = dataclasses.replace(config.data, eval_crops=1)
        transform = centre.eval_transform(self.extractor.model.image_size)
        rows = range(len(self.images))
        for batch in self.views(transform, 1, rows, config.eval.batch_size):
            flat = batch | {"image": batch["image"].reshape(-1, *batch["image"].shape[-3:])}
            yield flat | {"image": self.attacker(flat, self.epsilon)}
