"""λ, the weight of the reconstruction error relative to the deviation from the context.

python -m cinemae_jax.ablate --config configs/ablation/mismatch_weight.py --workdir runs/lambda ...
"""

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation


def get_config(base: str = "sd14") -> ConfigDict:
    rows: list[RowConfig] = [
        {"name": f"λ = {weight:g}", "overrides": {"detector.mismatch_weight": weight}}
        for weight in (1.0, 0.0, 0.1, 10.0)
    ]
    learned = {"detector.mismatch_weight": 1.0, "detector.learn_mismatch_weight": True}
    rows.append({"name": "λ learned", "overrides": learned})
    return ablation("Mismatch weight λ", rows, base)
