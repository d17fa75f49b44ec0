"""Whether a checkpoint may be resumed or loaded: kind, backbone, settings."""

import math
from pathlib import Path
from typing import Any

from cinemae_jax.detector.trained import KIND
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.config import LATER
from cinemae_jax.runtime import differences, progress
from cinemae_jax.runtime.checkpoints import CheckpointError, Checkpoints

# Settings that may differ when a run is resumed: they do not change the head.
MAY_DIFFER = (
    "version",
    "settings.backbone",  # its hash must be the same
    "settings.global_backbone",
    "settings.detector.attention",  # rounding only
    "settings.detector.run_layout",
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


def require_resumable(
    checkpoints: Checkpoints, metadata: dict[str, Any], backbone: Backbone
) -> None:
    """Raises CheckpointError if the folder holds checkpoints of another run, or damaged metrics.

    A best checkpoint that is missing is said, and does not stop a run that has steps left.
    """
    if checkpoints.latest is None:
        return
    before = checkpoints.metadata(checkpoints.latest)
    require_kind(before, checkpoints.folder)
    require_backbone(before, backbone, checkpoints.folder / str(checkpoints.latest))
    require_same_run(before, metadata, checkpoints.folder)
    if (lost := checkpoints.lost) is not None:
        progress.say(
            f"caution   checkpoint {checkpoints.folder / str(lost)}, the best so far, is missing: "
            "the best of the others and of the steps to come will be used"
        )
    else:
        checkpoints.best  # noqa: B018 - refuses damaged metrics before any work


def require_same_run(before: dict[str, Any], metadata: dict[str, Any], folder: Path) -> None:
    """Raises CheckpointError if a checkpoint belongs to another run.

    Fields of the detector that are newer than the checkpoint had the value of before.
    """
    settings = before["settings"]
    settings = settings | {"detector": LATER | settings["detector"]}
    before = before | {"settings": settings}
    differences.require_same(before, metadata, folder, may_differ=MAY_DIFFER)


def validation_score(metrics: Any) -> float:
    """The score that the best checkpoint is chosen by; larger is better."""
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
    """Raises CheckpointError unless a checkpoint was trained on exactly these frozen files."""
    for name, what in (
        ("backbone_sha256", "backbone"),
        ("global_backbone_sha256", "global backbone"),
    ):
        before, now = meta.get(name, ""), backbone.hashes.get(name, "")
        if before != now:
            raise CheckpointError(
                f"checkpoint {where} was trained on another {what}: {_digest(before)}, not "
                f"{_digest(now)}; use the old one, or train in another --workdir"
            )


def _digest(sha256: str) -> str:
    return f"sha256 {sha256[:12]}…" if sha256 else "none"
