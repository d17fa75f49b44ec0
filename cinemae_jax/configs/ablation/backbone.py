"""Backbones of several sizes, each with its own bank.

    python -m cinemae_jax.ablate --config configs/ablation/backbone.py:b.safetensors,l.safetensors \
        --workdir runs/backbone ...

Name the files after the colon; the default is the official ViT-L, ViT-B and ViT-H, converted.
The first is the reference of the others.
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
