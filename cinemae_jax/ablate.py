"""Runs an ablation: one table of runs that differ in a field or two.

    python -m cinemae_jax.ablate --config configs/ablation/fusion.py --workdir runs/fusion \
        --config.base.data.root=/data/GenImage \
        --config.base.backbone=mae_visualize_vit_large.safetensors

Rows with the same features share one bank.  Every row is a run in a folder of its own; called
again, finished rows are kept and the others go on.  A row that fails does not stop the others.
Writes ablation.md, ablation.csv, ablation.json and ablation.svg.
"""

import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cinemae_jax.ablation import plan, running
from cinemae_jax.runtime import jobs


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> list[Any]:
        return running.ablate(plan.read(config.to_dict()), workdir, jobs.replicas())

    return jobs.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
