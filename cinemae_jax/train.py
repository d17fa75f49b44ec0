"""Trains a detector's head on a frozen MAE and evaluates it: the main job.

    python -m cinemae_jax.train --config configs/sd14.py --workdir runs/sd14 \
        --config.data.root=/data/GenImage --config.backbone=mae_visualize_vit_large.safetensors

Features come from a bank, which is extracted first where it is missing, or from the backbone in
every step (``config.features.source``).  Called again with the same --workdir, it goes on where it
was stopped, on as many hosts and devices as there are then.  Leaves checkpoints (best and last),
metrics.jsonl, bad_images.csv where there were any, and what evaluate writes.
"""

import dataclasses
import sys
from pathlib import Path

from ml_collections import ConfigDict

from cinemae_jax import typed
from cinemae_jax.data.unread import BadImage
from cinemae_jax.detector import loading, resuming, trained
from cinemae_jax.evaluation import results
from cinemae_jax.features import filling, splits
from cinemae_jax.features.run import Run
from cinemae_jax.runtime import collectives, jobs, progress
from cinemae_jax.runtime.checkpoints import Checkpoints, Interrupted
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings
from cinemae_jax.training import fitting


def train(config: Settings, workdir: Path, replicas: Replicas | None = None) -> list[BadImage]:
    """Runs or resumes a training, then evaluates its best checkpoint.

    Args:
      config: what to do (``configs/sd14.py`` explains every field).
      workdir: where its results go; one run each.
      replicas: devices to share every batch; None means all.

    Returns:
      The images that could not be read.
    """
    run = Run.start(workdir, replicas)
    run.replicas.check_batch_size(config.train.batch_size, "config.train.batch_size")
    run.replicas.check_batch_size(config.eval.batch_size, "config.eval.batch_size")
    if config.features.source == "bank":
        run.replicas.check_batch_size(config.features.batch_size, "config.features.batch_size")
    data = splits.read_data(config.data)
    backbone = loading.load_backbone(config)
    progress.say(f"backbone  {trained.describe(backbone)}")
    progress.say(f"train     {data.train.describe()}; held out {len(data.validation)}")
    with Checkpoints(workdir / "checkpoints", best=resuming.validation_score) as checkpoints:
        metadata = trained.metadata(config, backbone, data)
        collectives.require_equal(metadata | {"test_images": data.test.fingerprint})
        resuming.require_resumable(checkpoints, metadata, backbone)
        if not (checkpoints.latest or Interrupted(checkpoints).step):
            run.unread.forget()
        sets = filling.open_sets(config, data, backbone, run)
        fitting.fit(config, sets, backbone, run, checkpoints, metadata)
    best = loading.load(
        workdir, which="best", backbone=config.backbone, global_backbone=config.global_backbone
    )
    # settings that do not change the head may differ from the checkpoint's: these are the new ones
    results.evaluate(dataclasses.replace(best, settings=config), sets.test, run)
    splits.share_unread(run.unread)
    parts = data.train, data.validation, data.test  # the list may hold images of other data sets
    listed = (image for part in parts for image in run.unread.of(part))
    unread = sorted(listed, key=lambda image: image.path)
    splits.report_unread(workdir, unread)
    return unread


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> list[BadImage]:
        return train(typed.read(config.to_dict(), Settings), workdir, jobs.replicas())

    return jobs.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
