"""Backbones of several sizes, each with its own bank.

    python -m cinemae_jax.ablate --config configs/ablation/backbone.py:b.safetensors,l.safetensors \
        --workdir runs/backbone ...

List the files after the colon.  The default is the official ViT-L, ViT-B and ViT-H, converted under
their own names.  The others are compared with the first.
"""

from pathlib import Path

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation

OFFICIAL = ",".join(f"mae_visualize_vit_{size}.safetensors" for size in ("large", "base", "huge"))


def get_config(files: str = OFFICIAL) -> ConfigDict:
    rows: list[RowConfig] = [
        {"name": Path(file).stem, "overrides": {"backbone": file}} for file in files.split(",")
    ]
    return ablation("Backbone", rows)
