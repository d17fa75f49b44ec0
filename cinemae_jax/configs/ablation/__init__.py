"""The tables of the paper, one command each: a base config and rows that change some fields.

    python -m cinemae_jax.ablate --config configs/ablation/fusion.py --workdir runs/fusion \
        --config.base.data.root=/data/GenImage \
        --config.base.backbone=mae_visualize_vit_large.safetensors

Every field of the base is a flag.  The base is ``sd14``; to choose another, write it after a colon:
``--config configs/ablation/fusion.py:demo``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from cinemae_jax.configs import demo, sd14

BASES = {"sd14": sd14, "demo": demo}


def ablation(title: str, rows: Iterable[Mapping[str, Any]], base: str = "sd14") -> ConfigDict:
    """Config of an ablation.

    Args:
      title: title of the table.
      rows: ``name`` and, optionally, ``overrides`` (dotted fields of the base and their values),
        ``reported`` (mean accuracy in the paper, per cent) and ``unfreeze`` (encoder, decoder or
        both).  The other rows are compared with the first.
      base: name of the config that all rows start from.

    Raises:
      ValueError: for an unknown base.
    """
    if base not in BASES:
        raise ValueError(f"there is no base config {base!r}: use one of {', '.join(BASES)}")
    config = ConfigDict()
    config.title = title
    config.base = BASES[base].get_config()
    config.unfrozen = ConfigDict()  # AdamW of the backbone, for rows with unfreeze
    config.unfrozen.learning_rate = 1e-5  # peak
    config.unfrozen.weight_decay = 0.05
    config.rows = tuple(dict(row) for row in rows)
    return config
