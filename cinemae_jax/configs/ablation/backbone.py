"""Backbones of several sizes, each with a bank of its own.

    python -m cinemae_jax.ablate --config configs/ablation/backbone.py:b.safetensors,l.safetensors \
        --workdir runs/backbone ...

The files stand after the colon; without any, they are the official ViT-L, ViT-B and ViT-H under
their own names, converted.  The first is what the others are compared with.
"""

from pathlib import Path

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import ablation

OFFICIAL = ",".join(f"mae_visualize_vit_{size}.safetensors" for size in ("large", "base", "huge"))


def get_config(files: str = OFFICIAL) -> ConfigDict:
    rows = [{"name": Path(file).stem, "overrides": {"backbone": file}} for file in files.split(",")]
    return ablation("Backbone", rows)
