"""A trained detector on disk: the checkpoint of a head, tied to its backbone by hash."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, struct, traverse_util

from cinemae_jax import __version__, cli, preemption, settings, steps, weights
from cinemae_jax.checkpoint import CheckpointError, Checkpoints, Which
from cinemae_jax.data.bad import BadImages
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch
from cinemae_jax.distributed import Replicas, merge
from cinemae_jax.evaluation import calibration
from cinemae_jax.evaluation.calibration import Calibration
from cinemae_jax.features import Featured, FeatureSet
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.detector import Backbone, num_params, num_statistics
from cinemae_jax.model.head import HeadState, Normalizer, init_params
from cinemae_jax.settings import Settings


@struct.dataclass
class HeldOut:
    """Scores of the held-out images of training: what verdicts are calibrated by.

    Attributes:
      logit: (N, S) float32; NaN where an image could not be read or was not scored.
      label: (N,) int32.
    """

    logit: Any
    label: Any

    @classmethod
    def unknown(cls, count: int, num_seeds: int) -> "HeldOut":
        """Of images that were not scored."""
        logit = np.full((count, num_seeds), np.nan, np.float32)
        return cls(logit, np.zeros(count, np.int32))


@dataclasses.dataclass(frozen=True)
class TrainedDetector:
    """Backbone, head and the settings that they were trained under.

    Attributes:
      backbone: frozen; its hash is the one that the heads were trained on.
      heads: trained parameters and the normalizers of their inputs, with a leading axis of seeds.
      settings: of the training run, preprocessing included.
      step: of the checkpoint.
      held_out: scores that verdicts are calibrated by; of the training generators alone.
      held_out_images: fingerprint of those images.
    """

    backbone: Backbone
    heads: HeadState
    settings: Settings
    step: int
    held_out: HeldOut
    held_out_images: str

    @property
    def first_head(self) -> HeadState:
        """The head of the first seed, without the axis of seeds."""
        return jax.tree.map(lambda leaf: leaf[0], self.heads)

    def calibration(self, head: int = 0) -> Calibration:
        """Probabilities and thresholds of one head, at the error rates of its ``settings.eval``."""
        scored = np.isfinite(self.held_out.logit[:, head])
        return calibration.fit(
            self.held_out.logit[scored, head],
            self.held_out.label[scored],
            fpr=self.settings.eval.fpr,
            fnr=self.settings.eval.fnr,
            images=self.held_out_images,
        )


KIND = "detector"
"""What the metadata of a checkpoint calls itself, so that another job's is not taken for one."""


def metadata(
    config: Settings, backbone: Backbone, images: Catalog, held_out: Catalog
) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Args:
      config: of the run.
      backbone: that the head is trained on.
      images: that it is trained on.
      held_out: those that it is validated and calibrated on.
    """
    return {
        "kind": KIND,
        "version": __version__,
        "backbone_sha256": backbone.sha256,
        "train_images": images.fingerprint,
        "held_out_images": held_out.fingerprint,
        "num_held_out": len(held_out),
        "settings": json.loads(json.dumps(dataclasses.asdict(config))),
    }


MAY_DIFFER = (
    "version",
    "settings.backbone",  # its hash must be the same
    "settings.data.root",  # the images must be the same
    "settings.data.source",
    "settings.data.quarantine",
    "settings.data.test_generators",
    "settings.data.num_threads",
    "settings.features.bank",
    "settings.features.batch_size",
    "settings.features.shard_images",
    "settings.features.memory",
    "settings.train.checkpoint_every",
    "settings.eval.",
)
"""What a resumed run may do otherwise: nothing here changes the head."""


def require_resumable(
    checkpoints: Checkpoints, metadata: dict[str, Any], backbone: Backbone
) -> None:
    """Raises CheckpointError if there are checkpoints that another run has made."""
    if checkpoints.latest is None:
        return
    before = checkpoints.metadata(checkpoints.latest)
    require_kind(before, checkpoints.folder)
    require_backbone(before, backbone, checkpoints.folder / str(checkpoints.latest))
    require_same_run(before, metadata, checkpoints.folder)


def require_same_run(before: dict[str, Any], metadata: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError if the metadata of a checkpoint are another run's."""
    cli.require_same(before, metadata, folder, may_differ=MAY_DIFFER)


def head_template(config: Settings, backbone: Backbone) -> HeadState:
    """Fresh heads: random parameters, one set a seed, and empty normalizers; leading axis S."""
    width, count = backbone.config.width, num_statistics(config.detector, backbone.config)
    heads = [
        init_params(config.detector, jax.random.key(config.seed + i), width, count)
        for i in range(config.num_seeds)
    ]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *heads)
    zeros = (np.zeros((config.num_seeds, n), np.float32) for n in (width, width, count, count))
    return HeadState(params, Normalizer(*zeros))


def load(workdir: Path, *, which: Which = "best", backbone: str = "") -> TrainedDetector:
    """Reads the detector of a training run.

    Args:
      workdir: of the run.
      which: the checkpoint with the best validation loss, or the last one.
      backbone: file to use if it exists, else the one that the run names; the hash decides
        whether it is the right one.

    Raises:
      CheckpointError: if there is none, or it was trained on another backbone.
      weights.BackboneError: if the backbone cannot be read.
    """
    folder = Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoints in {workdir}: train first, with this --workdir")
    with Checkpoints(folder, best=validation_score) as checkpoints:
        last = checkpoints.latest
        if last is None:
            raise CheckpointError(f"no complete checkpoint in {folder}")
        require_kind(checkpoints.metadata(last), folder)
        step = checkpoints.best if which == "best" else last
        if step is None:
            raise CheckpointError(f"{folder} has no validated checkpoint yet: let it train longer")
        meta = checkpoints.metadata(step)
        config = settings.read(meta["settings"], Settings, saved=True)
        if backbone and weights.resolve(backbone).is_file():
            config = dataclasses.replace(config, backbone=backbone)
        frozen = load_backbone(config)
        require_backbone(meta, frozen, folder / str(step))
        like = {
            "head": head_template(config, frozen),
            "held_out": HeldOut.unknown(meta["num_held_out"], config.num_seeds),
        }
        saved = checkpoints.restore(step, like)
    held_out, images = saved["held_out"], meta["held_out_images"]
    return TrainedDetector(frozen, saved["head"], config, step, held_out, images)


def load_backbone(config: Settings) -> Backbone:
    """The backbone that a run names.

    Raises:
      weights.BackboneError: if it cannot be read, or has no decoder where runs need one.
    """
    backbone = weights.load(config.backbone)
    stored = config.features.num_runs if config.features.source == "bank" else 0
    for field, num_runs in (("detector", config.detector.num_runs), ("features", stored)):
        if num_runs and not backbone.config.has_decoder:
            raise weights.BackboneError(
                f"{config.backbone} has no decoder, and config.{field}.num_runs is {num_runs}: "
                "use a backbone with a decoder, or num_runs 0 in both with fusion 'global'"
            )
    return backbone


def head_sha256(heads: HeadState) -> str:
    """sha256 over name, type, shape and bytes of every array, in the order of the names."""
    digest = hashlib.sha256()
    flat = traverse_util.flatten_dict(serialization.to_state_dict(heads), sep="/")
    for name, leaf in sorted(flat.items()):
        values = np.ascontiguousarray(leaf)
        digest.update(f"{name} {values.dtype.str} {values.shape};".encode() + values.tobytes())
    return digest.hexdigest()


def validation_score(metrics: Any) -> float:
    """By which the best checkpoint is chosen: larger is better."""
    loss = float(metrics["validation_loss"])
    return -loss if math.isfinite(loss) else -math.inf


def require_kind(meta: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError unless a checkpoint is a detector's."""
    if meta.get("kind") != KIND:
        raise CheckpointError(
            f"{folder} holds checkpoints of {meta.get('kind')!r}, not of a detector: "
            "use the --workdir of a training run"
        )


def require_backbone(meta: dict[str, Any], backbone: Backbone, where: Path) -> None:
    """Raises CheckpointError unless a checkpoint was trained on this very backbone."""
    if meta["backbone_sha256"] != backbone.sha256:
        raise CheckpointError(
            f"checkpoint {where} was trained on the backbone with sha256 "
            f"{meta['backbone_sha256'][:12]}…, not on this one ({backbone.sha256[:12]}…): "
            "its head means nothing here; give the old backbone, or train anew"
        )


class Scorer:
    """Scores features on all devices; compiled once, used for every set."""

    def __init__(self, config: DetectorConfig, num_patches: int, replicas: Replicas) -> None:
        self._replicas = replicas
        self._score = replicas.pmap_map(steps.make_score(config, num_patches), replicated=1)

    def __call__(
        self, heads: HeadState, batches: Iterable[Featured]
    ) -> Iterator[tuple[Batch, steps.Scores]]:
        """(batch, its scores as NumPy), of all hosts and on all of them, padding included.

        Of the batch: row, label, validity and error.  The scores of several crops of an image are
        averaged.  Those of a batch are fetched after the next one was sent off, so that decoding,
        transfer and computation overlap.
        """
        heads = self._replicas.replicate(heads)
        pending: tuple[Batch, Any] | None = None
        for batch, features in batches:
            sent = self._score(heads, features)
            if pending is not None:
                yield self._fetched(*pending)
            pending = (batch, sent)
        if pending is not None:
            yield self._fetched(*pending)

    def _fetched(self, batch: Batch, sent: Any) -> tuple[Batch, steps.Scores]:
        scores = self._replicas.gather(_average_crops(batch, sent))
        return self._replicas.gather_batch(batch), scores


def score_held_out(
    heads: HeadState, held_out: FeatureSet, scorer: Scorer, bad: BadImages
) -> HeldOut:
    """Scores of the held-out images of the training generators by all heads."""
    found = HeldOut.unknown(len(held_out.images), len(jax.tree.leaves(heads)[0]))
    for batch, scores in scorer(heads, preemption.checked(held_out.scoring())):
        bad.note(held_out.images, batch)
        rows = batch["row"][batch["valid"]]
        found.logit[rows] = scores.logit[batch["valid"]]
        found.label[rows] = batch["label"][batch["valid"]]
    return found


def _average_crops(batch: Batch, scores: steps.Scores) -> steps.Scores:
    def average(leaf: np.ndarray) -> np.ndarray:
        return leaf.reshape(len(batch["row"]), -1, *leaf.shape[1:]).mean(axis=1)

    return jax.tree.map(average, merge(scores))


def describe(backbone: Backbone) -> str:
    """One phrase: what backbone this is."""
    c = backbone.config
    millions = num_params(backbone.params) / 1e6
    return (
        f"MAE {c.width}x{c.depth} patch {c.patch_size} at {c.image_size}, target {c.target}, "
        f"{millions:.1f} M parameters, sha256 {backbone.sha256[:12]}"
    )
