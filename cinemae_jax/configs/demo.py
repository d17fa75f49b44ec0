"""The bundled demonstration: tiny backbone, bundled images, minutes on a laptop.

    python -m cinemae_jax.train --config configs/demo.py --workdir runs/demo

It shows that everything works.  It proves nothing about GenImage: there are only a few hundred
images, and the backbone is 240 times smaller than ViT-L.
"""

from pathlib import Path

from ml_collections import ConfigDict

import cinemae_jax
from cinemae_jax.configs import sd14


def get_config() -> ConfigDict:
    config = sd14.get_config()
    config.backbone = "tiny"
    config.data.root = str(Path(cinemae_jax.__file__).parent / "assets" / "demo")
    config.data.train_generators = ("stable_diffusion",)
    config.data.holdout = 0.2
    config.data.resize = 0  # native pixels: crops of 112 from 256
    config.data.num_threads = 2
    config.train.batch_size = 32
    config.train.epochs = 50  # of 28 images
    config.train.checkpoint_every = 100
    config.eval.batch_size = 16
    return config
