"""Masks: the paper's, disjoint and stratified ones; statistics of the most textured patches alone.

python -m cinemae_jax.ablate --config configs/ablation/masking.py --workdir runs/masking ...
"""

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation


def get_config(base: str = "sd14") -> ConfigDict:
    half = {"detector.score_share": 0.5}
    rows: list[RowConfig] = [
        {"name": "random", "overrides": {"detector.masking": "random"}},
        {"name": "disjoint", "overrides": {"detector.masking": "disjoint"}},
        {"name": "stratified", "overrides": {"detector.masking": "stratified"}},
        {"name": "most textured half", "overrides": {**half, "detector.share_by": "texture"}},
        {"name": "any half", "overrides": {**half, "detector.share_by": "random"}},
    ]
    return ablation("Masks", rows, base)
