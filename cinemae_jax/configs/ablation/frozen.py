"""A frozen backbone against one trained with the head: encoder, decoder or both.

    python -m cinemae_jax.ablate --config configs/ablation/frozen.py --workdir runs/frozen ...

The unfrozen rows read images instead of stored features and differentiate through the backbone.  An
epoch costs about three passes; the optimiser holds twice the trained parameters.  Each row leaves
its tuned backbone next to its head.  Check ``--config.unfrozen.learning_rate`` (chosen by this
project), and choose a ``--config.base.train.batch_size`` that fits the devices.

The second table shows the training generator and each other one: what unfreezing costs is the drop
between them.

The paper reports 96.31 frozen and 70.07 unfrozen.  We do not know which part it unfroze; the number
is listed with ``both``.
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
