"""One pass of the frozen backbone over the images of a run: its feature bank.

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
from cinemae_jax.data.unread import BadImage, BadImages
from cinemae_jax.detector import loading, trained
from cinemae_jax.features import filling, splits
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
    replicas = replicas or Replicas()
    replicas.check_batch_size(config.features.batch_size, "config.features.batch_size")
    data = splits.read_data(config)
    backbone = loading.load_backbone(config)
    progress.say(f"backbone  {trained.describe(backbone)}")
    bad = BadImages(workdir / splits.BAD_IMAGES, replicas.host)
    made = filling.banks(config, data, backbone, workdir)
    recipes = {f"{name} of the bank": one.made_of() for name, one in made.items()}
    collectives.require_equal(recipes)
    filling.fill(made, config, backbone, replicas, bad)
    splits.share_bad_images(bad)
    splits.report_bad_images(workdir, bad.listed)
    return bad.listed


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> list[BadImage]:
        return extract(typed.read(config.to_dict(), Settings), workdir)

    return jobs.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
