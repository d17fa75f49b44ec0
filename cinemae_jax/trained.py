"""A trained detector on disk: the checkpoint of a head, tied to its backbone by hash."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cinemae_jax import __version__, settings, steps, weights
from cinemae_jax.checkpoint import CheckpointError, Checkpoints, Which
from cinemae_jax.data import loader
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.distributed import Replicas, merge
from cinemae_jax.model.config import STATISTICS, DetectorConfig
from cinemae_jax.model.detector import Backbone, num_params
from cinemae_jax.model.head import HeadState, Normalizer, head_of, init_params
from cinemae_jax.settings import Settings


@dataclasses.dataclass(frozen=True)
class TrainedDetector:
    """Backbone, head and the settings that they were trained under.

    Attributes:
      backbone: frozen; its hash is the one that the head was trained on.
      head: trained parameters and the normalizer of their inputs.
      settings: of the training run, preprocessing included.
      step: of the checkpoint.
    """

    backbone: Backbone
    head: HeadState
    settings: Settings
    step: int

    def frozen(self) -> steps.Frozen:
        return steps.Frozen(self.backbone, self.head.normalizer, jax.random.key(self.settings.seed))


KIND = "detector"
"""What the metadata of a checkpoint calls itself, so that another job's is not taken for one."""


def metadata(config: Settings, backbone: Backbone, images: Catalog) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Args:
      config: of the run.
      backbone: that the head is trained on.
      images: that it is trained on.
    """
    return {
        "kind": KIND,
        "version": __version__,
        "backbone_sha256": backbone.sha256,
        "train_images": images.fingerprint,
        "settings": json.loads(json.dumps(dataclasses.asdict(config))),
    }


def head_template(config: Settings, backbone: Backbone) -> HeadState:
    """A fresh head: random parameters from the seed, and an empty normalizer."""
    width, count = backbone.config.width, len(STATISTICS)
    params = init_params(head_of(config.detector), jax.random.key(config.seed), width, count)
    zeros = [np.zeros(n, np.float32) for n in (width, width, count, count)]
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
        config = settings.read(meta["settings"], Settings)
        if backbone and weights.resolve(backbone).is_file():
            config = dataclasses.replace(config, backbone=backbone)
        frozen = load_backbone(config)
        require_backbone(meta, frozen, folder / str(step))
        saved = checkpoints.restore(step, {"head": head_template(config, frozen)})
    return TrainedDetector(frozen, saved["head"], config, step)


def load_backbone(config: Settings) -> Backbone:
    """The backbone that a run names.

    Raises:
      weights.BackboneError: if it cannot be read, or has no decoder where runs need one.
    """
    backbone = weights.load(config.backbone)
    if config.detector.num_runs and not backbone.config.has_decoder:
        raise weights.BackboneError(
            f"{config.backbone} has no decoder, and detector.num_runs is "
            f"{config.detector.num_runs}: use a backbone with a decoder, or num_runs 0 with "
            "fusion 'global'"
        )
    return backbone


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
    """Scores batches on all devices; compiled once, used for every data set."""

    def __init__(self, config: DetectorConfig, replicas: Replicas) -> None:
        self._replicas = replicas
        self._score = replicas.pmap_map(steps.make_score(config), replicated=2)

    def batches(self, images: Catalog, config: Settings, size: int) -> Iterable[loader.Batch]:
        """The images as evaluation sees them: each once, centre crop, last batch padded."""
        return loader.eval_batches(
            config.data.images(images),
            config.data.eval_transform(size),
            size=size,
            batch_size=config.eval.batch_size,
            host=self._replicas.host,
            num_threads=config.data.num_threads,
        )

    def __call__(
        self, params: Any, frozen: steps.Frozen, batches: Iterable[loader.Batch]
    ) -> Iterator[tuple[loader.Batch, steps.Scores]]:
        """(batch, its scores as NumPy), both of this host, padding included.

        The scores of a batch are fetched after the next one was sent off, so that decoding,
        transfer and computation overlap.
        """
        params, frozen = self._replicas.replicate((params, frozen))
        pending: tuple[loader.Batch, Any] | None = None
        for batch in batches:
            sent = self._score(params, frozen, self._replicas.shard(batch, steps.INPUTS))
            if pending is not None:
                yield pending[0], merge(pending[1])
            pending = (batch, sent)
        if pending is not None:
            yield pending[0], merge(pending[1])


def describe(backbone: Backbone) -> str:
    """One phrase: what backbone this is."""
    c = backbone.config
    millions = num_params(backbone.params) / 1e6
    return (
        f"MAE {c.width}x{c.depth} patch {c.patch_size} at {c.image_size}, target {c.target}, "
        f"{millions:.1f} M parameters, sha256 {backbone.sha256[:12]}"
    )
