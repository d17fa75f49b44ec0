"""The tables of the paper, one command each: a base config, and rows that override some fields.

    python -m cinemae_jax.ablate --config configs/ablation/fusion.py --workdir runs/fusion \
        --config.base.data.root=/data/GenImage \
        --config.base.backbone=mae_visualize_vit_large.safetensors

Every field of the base is a flag.  The base is ``sd14``; to choose another, write it after a colon:
``--config configs/ablation/fusion.py:demo``.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Required, TypedDict

from ml_collections import ConfigDict

from cinemae_jax.configs import clip, demo, sd14, tiny

BASES = {"sd14": sd14, "demo": demo, "tiny": tiny, "clip": clip}


class RowConfig(TypedDict, total=False):
    """One row of an ablation.

    Attributes:
      name: in the table.
      overrides: values of dotted fields of the base.
      reported: mean accuracy in the paper, per cent.
      unfreeze: part of the backbone to train: encoder, decoder or both.
      control: ``random weights``: on a backbone of the same architecture, untrained; ``shuffled
        scores``: every image gets the anomaly scores of another image of its split.
    """

    name: Required[str]
    overrides: Mapping[str, Any]
    reported: float | None
    unfreeze: str
    control: str


def ablation(
    title: str, rows: Iterable[RowConfig], base: str = "sd14", *, timed: bool = False
) -> ConfigDict:
    """Config of an ablation.

    Args:
      title: title of the table.
      rows: in the order of the table; the others are compared with the first.
      base: name of the config that all rows start from.
      timed: measure the milliseconds per image of every row.

    Raises:
      ValueError: for an unknown base.
    """
    if base not in BASES:
        raise ValueError(f"unknown base config {base!r}: use one of {', '.join(BASES)}")
    config = ConfigDict()
    config.title = title
    config.base = BASES[base].get_config()
    config.unfrozen = ConfigDict()  # AdamW of the backbone, for rows with unfreeze
    config.unfrozen.learning_rate = 1e-5  # peak
    config.unfrozen.weight_decay = 0.05
    config.timed = timed
    config.rows = tuple(dict(row) for row in rows)
    return config
