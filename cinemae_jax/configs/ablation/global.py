"""Global features of encoders, alone and with the local anomaly scores by every fusion.

    python -m cinemae_jax.ablate --config configs/ablation/global.py:clip.safetensors \
        --workdir runs/global ...

List encoders after the colon, as `cinemae convert` writes them; ``clip_b16.safetensors`` is the
default.  ``global`` alone is the linear probe of the literature.  All rows share the backbone's
bank, and an encoder is extracted once.  The others are compared with the first row, the backbone
alone.
"""

from pathlib import Path

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation

FUSIONS = ("global", "additive", "concat", "gate", "logit")


def get_config(files: str = "clip_b16.safetensors") -> ConfigDict:
    """Rows of the backbone's own feature (MAE), then of every encoder."""
    features = {"MAE": "", **{Path(file).stem: file for file in files.split(",")}}
    rows: list[RowConfig] = [
        {
            "name": name if fusion == "global" else f"{name} + LCAS, {fusion}",
            "overrides": {"global_backbone": file, "detector.fusion": fusion},
        }
        for name, file in features.items()
        for fusion in FUSIONS
    ]
    rows.append({"name": "LCAS alone", "overrides": {"detector.fusion": "lcas"}})
    return ablation("Global feature", rows)
