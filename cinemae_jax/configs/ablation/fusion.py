"""Fusions of the global feature and the anomaly statistics, and either of them alone.

    python -m cinemae_jax.ablate --config configs/ablation/fusion.py --workdir runs/fusion ...

``logit`` is this project's own.  The paper gives no number for ``lcas`` alone.
"""

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation

REPORTED = {"additive": 95.74, "concat": 95.61, "gate": 94.95, "global": 92.0}  # global: about


def get_config(base: str = "sd14") -> ConfigDict:
    rows: list[RowConfig] = [
        {
            "name": fusion,
            "overrides": {"detector.fusion": fusion},
            "reported": REPORTED.get(fusion),
        }
        for fusion in ("additive", "concat", "gate", "logit", "global", "lcas")
    ]
    return ablation("Fusion", rows, base)
