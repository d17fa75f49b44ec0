"""A frozen backbone against one that is trained with the head: encoder, decoder, or both.

    python -m cinemae_jax.ablate --config configs/ablation/frozen.py --workdir runs/frozen ...

Unfrozen rows read images instead of stored features and differentiate through the backbone: each
epoch costs about three passes, and the optimiser's state takes twice the trained parameters.  Each
writes its tuned backbone beside its head.  ``--config.unfrozen.learning_rate`` is this project's
choice; set a ``--config.base.train.batch_size`` that fits the devices.

The paper reports 96.31 frozen and 70.07 unfrozen.  It does not say which part was unfrozen; the
number is shown for ``both``.
"""

from ml_collections import ConfigDict

from cinemae_jax.configs.ablation import RowConfig, ablation


def get_config(base: str = "sd14") -> ConfigDict:
    one_seed = {"num_seeds": 1}
    rows: list[RowConfig] = [
        {"name": "frozen", "reported": 96.31},
        {"name": "encoder unfrozen", "unfreeze": "encoder", "overrides": one_seed},
        {"name": "decoder unfrozen", "unfreeze": "decoder", "overrides": one_seed},
        {"name": "both unfrozen", "unfreeze": "both", "overrides": one_seed, "reported": 70.07},
    ]
    return ablation("Frozen and unfrozen backbones", rows, base)
