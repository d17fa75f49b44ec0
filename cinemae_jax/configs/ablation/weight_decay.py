"""Weight decay of the head, the same for all its pathways.

python -m cinemae_jax.ablate --config configs/ablation/weight_decay.py --workdir runs/decay ...
"""

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation


def get_config(base: str = "sd14") -> ConfigDict:
    rows: list[RowConfig] = [
        {
            "name": f"weight decay {decay:g}",
            "overrides": {"train.weight_decay": decay, "train.global_weight_decay": decay},
        }
        for decay in (1e-2, 0.0, 1e-3, 1e-1, 1.0)
    ]
    return ablation("Weight decay", rows, base)
