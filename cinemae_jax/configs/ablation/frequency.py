"""The frequency of the image beside CINEMAE (beyond the paper): alone, hybrid, and controls.

    python -m cinemae_jax.ablate --config configs/ablation/frequency.py --workdir runs/frequency ...

The question is whether the hybrid is better than the better of its parts.  All rows share a bank,
except those by frequency band and with random weights.  The last three rows show what the MAE adds
to the hybrid.
"""

from typing import Any

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation

BEST = "residual"  # the kind of the hybrid's controls; it includes rings and blocks


def get_config(base: str = "sd14") -> ConfigDict:
    def read(fusion: str, kind: str, **fields: Any) -> dict[str, Any]:
        return {"detector.fusion": fusion, "detector.frequency": kind, **fields}

    kinds = ("radial", "blocks", "residual")
    bands = {"detector.anomaly": "bands", "detector.fusion": "lcas", "detector.clip": 4.0}
    rows: list[RowConfig] = [{"name": "CINEMAE"}]
    for kind in kinds:
        rows.append({"name": f"{kind} alone", "overrides": read("frequency", kind)})
        rows.append({"name": f"hybrid, {kind}", "overrides": read("hybrid", kind)})
    rows += [
        {"name": f"additive, {BEST}", "overrides": read("additive", BEST)},
        {"name": "bands", "overrides": bands},
        {
            "name": "hybrid, random weights",
            "overrides": read("hybrid", BEST),
            "control": "random weights",
        },
        {
            "name": "hybrid, shuffled scores",
            "overrides": read("hybrid", BEST),
            "control": "shuffled scores",
        },
    ]
    return ablation("Frequency", rows, base)
