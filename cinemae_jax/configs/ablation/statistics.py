"""Statistics of the anomaly scores: all three, each left out, and the other form of s3.

python -m cinemae_jax.ablate --config configs/ablation/statistics.py --workdir runs/stats ...
"""

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation
from cinemae_jax.model.config import STATISTICS


def get_config(base: str = "sd14") -> ConfigDict:
    rows: list[RowConfig] = [
        {"name": "all three", "overrides": {"detector.statistics": STATISTICS}}
    ]
    for left_out in STATISTICS:
        rest = tuple(name for name in STATISTICS if name != left_out)
        rows.append(
            {
                "name": f"without {left_out.replace('_', ' ')}",
                "overrides": {"detector.statistics": rest},
            }
        )
    by_patch = {"detector.statistics": STATISTICS, "detector.sensitivity": "patch"}
    rows.append({"name": "sensitivity by patch", "overrides": by_patch})
    return ablation("Statistics", rows, base)
