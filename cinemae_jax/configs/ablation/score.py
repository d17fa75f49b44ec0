"""All variants of a masked patch's anomaly score.

python -m cinemae_jax.ablate --config configs/ablation/score.py --workdir runs/score ...
"""

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation
from cinemae_jax.model.config import SCORES


def get_config(base: str = "sd14") -> ConfigDict:
    rows: list[RowConfig] = [
        {"name": score, "overrides": {"detector.score": score}} for score in SCORES
    ]
    return ablation("Anomaly score", rows, base)
