"""Reads a trained detector and its backbone from disk."""

import dataclasses
from pathlib import Path

from cinemae_jax import typed, weights
from cinemae_jax.detector import resuming, trained
from cinemae_jax.detector.trained import HeldOut, TrainedDetector
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.runtime.checkpoints import CheckpointError, Checkpoints, Which
from cinemae_jax.settings import Settings


def load(
    workdir: Path, *, which: Which = "best", backbone: str = "", global_backbone: str = ""
) -> TrainedDetector:
    """Reads the detector of a training run.

    Args:
      workdir: of the run.
      which: the checkpoint with the best validation loss, or the last one.
      backbone, global_backbone: files to use if they exist, otherwise the run's own; their hashes
        must match.

    Raises:
      CheckpointError: if there is none, or it was trained on another backbone.
      weights.BackboneError: if the backbone cannot be read.
    """
    folder = Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoints in {workdir}: train first, with this --workdir")
    with Checkpoints(folder, best=resuming.validation_score) as checkpoints:
        last = checkpoints.latest
        if last is None:
            raise CheckpointError(f"no complete checkpoint in {folder}")
        resuming.require_kind(checkpoints.metadata(last), folder)
        step = checkpoints.best if which == "best" else last
        if step is None:
            raise CheckpointError(f"{folder} has no validated checkpoint yet: train for longer")
        meta = checkpoints.metadata(step)
        config = typed.read(meta["settings"], Settings, saved=True)
        if backbone and weights.resolve(backbone).is_file():
            config = dataclasses.replace(config, backbone=backbone)
        if config.global_backbone and weights.resolve(global_backbone).is_file():
            config = dataclasses.replace(config, global_backbone=global_backbone)
        frozen = load_backbone(config)
        resuming.require_backbone(meta, frozen, folder / str(step))
        like = {
            "head": trained.head_template(config, frozen),
            "held_out": HeldOut.unknown(meta["num_held_out"], config.num_seeds),
        }
        saved = checkpoints.restore(step, like)
    held_out, images = saved["held_out"], meta["held_out_images"]
    sources = tuple(meta.get("held_out_sources", ()))
    return TrainedDetector(frozen, saved["head"], config, step, held_out, images, sources)


def load_backbone(config: Settings) -> Backbone:
    """The backbone of a run, with its global encoder if it has one.

    Raises:
      weights.BackboneError: if a file cannot be read, or the backbone has no decoder but masked
        runs need one.
    """
    backbone = weights.load(config.backbone)
    for field, num_runs in config.runs.items():
        if num_runs and not backbone.config.has_decoder:
            raise weights.BackboneError(
                f"{config.backbone} has no decoder, but {field} is {num_runs}: use a backbone with "
                "a decoder, or set num_runs to 0 in config.detector and config.features, with "
                "fusion 'global'"
            )
    if not config.global_backbone:
        return backbone
    encoder = weights.load_encoder(config.global_backbone)
    return dataclasses.replace(backbone, encoder=encoder)
