"""Extracts the feature bank of a run: one pass of the frozen backbone over its images.

    python -m cinemae_jax.extract --config configs/sd14.py --workdir runs/sd14 \\
        --config.data.root=/data/GenImage --config.backbone=mae_visualize_vit_large.safetensors

Writes Parquet files, one row an image, to <workdir>/bank or ``config.features.bank``: what
``train`` would extract by itself.  Stopped and called again, it goes on with the next file.  Of
several hosts, each writes files of its own.
"""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from cinemae_jax import typed
from cinemae_jax.data.unread import BadImage
from cinemae_jax.detector import loading, trained
from cinemae_jax.features import filling, splits
from cinemae_jax.features.run import Run
from cinemae_jax.runtime import collectives, jobs, progress
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings


def extract(config: Settings, workdir: Path, replicas: Replicas | None = None) -> list[BadImage]:
    """Fills the bank of a run.

    Args:
      config: of the run.
      workdir: its folder.
      replicas: devices; None means all.

    Returns:
      The images that could not be read: they are rows with a reason.
    """
    run = Run.start(workdir, replicas)
    run.replicas.check_batch_size(config.features.batch_size, "config.features.batch_size")
    data = splits.read_data(config.data)
    backbone = loading.load_backbone(config)
    progress.say(f"backbone  {trained.describe(backbone)}")
    made = filling.banks(config, data, backbone, workdir)
    collectives.require_equal({f"{name} of the bank": one.made_of() for name, one in made.items()})
    programs = filling.Programs.of(config, backbone, run.replicas.local)
    filling.fill(made, config.data, programs, run)
    splits.share_unread(run.unread)
    splits.report_unread(workdir, run.unread.listed)
    return run.unread.listed


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> list[BadImage]:
        return extract(typed.read(config.to_dict(), Settings), workdir, jobs.replicas())

    return jobs.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
