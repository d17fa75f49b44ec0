"""Global feature: CLS token or mean of the patch tokens.  Extracts two banks.

python -m cinemae_jax.ablate --config configs/ablation/pooling.py --workdir runs/pooling ...
"""

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation


def get_config(base: str = "sd14") -> ConfigDict:
    rows: list[RowConfig] = [
        {"name": pooling, "overrides": {"detector.pooling": pooling}} for pooling in ("cls", "mean")
    ]
    return ablation("Global feature", rows, base)
