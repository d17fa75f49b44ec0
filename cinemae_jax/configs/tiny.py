"""The bundled detector: LCAS by frequency band on the bundled tiny backbone.

    python -m cinemae_jax.train --config configs/tiny.py --workdir runs/tiny \
        --config.data.root=DATA "--config.data.train_generators=('GENERATOR',)"
    cinemae bundle runs/tiny --out tiny_detector.safetensors

This goes beyond the paper and was chosen by experiment (docs/tiny.md): nine crops of 112 at native
pixels; a small network on energies and errors of masked patches by spatial frequency; half of the
training views of both classes resized and compressed, some brightened or noisy.

Cost: 8 to 20 minutes on two CPU cores for a thousand images.
"""

from ml_collections import ConfigDict

from cinemae_jax.configs import sd14


def get_config() -> ConfigDict:
    config = sd14.get_config()
    config.backbone = "tiny"

    config.detector.anomaly = "bands"
    config.detector.fusion = "lcas"
    config.detector.hidden = 256
    config.detector.clip = 4.0

    config.data.holdout = 0.1
    config.data.resize = 0  # native pixels
    config.data.num_crops = 4  # per training view
    config.data.eval_crops = 9
    config.data.augment.jpeg_probability = 0.5
    config.data.augment.jpeg_quality = (75, 95)
    config.data.augment.short_probability = 0.5
    config.data.augment.short_side = (224, 288)
    config.data.augment.together = True  # half unchanged, half resized and compressed
    config.data.augment.brightness_probability = 0.3
    config.data.augment.noise_probability = 0.4
    config.data.augment.noise = (0.0, 6.0)  # slight noise must not look like generation
    config.data.num_threads = 2

    config.features.num_runs = 2
    config.features.num_views = 8
    config.features.batch_size = 8  # images, four crops each
    config.features.shard_images = 128

    config.train.learning_rate = 1e-3
    config.train.weight_decay = 1.0
    config.train.batch_size = 128
    config.train.epochs = 90
    config.train.checkpoint_every = 100_000

    config.eval.batch_size = 8  # images, nine crops each
    config.eval.fpr = 0.02  # with few held-out photographs, only the highest score is a safe bound
    return config
