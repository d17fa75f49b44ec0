"""Masked runs K: what they add to the encoder alone, how many are needed, and what they cost.

python -m cinemae_jax.ablate --config configs/ablation/runs.py --workdir runs/ablation_runs ...
"""

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation


def get_config(base: str = "sd14") -> ConfigDict:
    rows: list[RowConfig] = [
        {"name": "K = 2", "overrides": {"detector.num_runs": 2}, "reported": 95.96},
        {
            "name": "K = 0",
            "overrides": {"detector.num_runs": 0, "detector.fusion": "global"},
            "reported": 92.0,  # approximate
        },
        {"name": "K = 1", "overrides": {"detector.num_runs": 1}},
        {"name": "K = 3", "overrides": {"detector.num_runs": 3}},
    ]
    return ablation("Masking runs", rows, base, timed=True)
