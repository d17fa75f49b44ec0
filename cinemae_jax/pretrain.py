"""Pre-trains a small backbone, a masked autoencoder, on folders of photographs.

    python -m cinemae_jax.pretrain --config configs/pretrain_tiny.py --workdir runs/pretrain \
        "--config.data.photos=('photos',)"

Writes checkpoints (resumed from when called again), metrics.jsonl, pictures of reconstructions of
held-out photographs, and at the end backbone.safetensors.
"""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from cinemae_jax import typed
from cinemae_jax.data.unread import BadImage
from cinemae_jax.runtime import jobs
from cinemae_jax.settings import PretrainSettings
from cinemae_jax.training import pretraining


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> list[BadImage]:
        return pretraining.pretrain(
            typed.read(config.to_dict(), PretrainSettings), workdir, jobs.replicas()
        )

    return jobs.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
