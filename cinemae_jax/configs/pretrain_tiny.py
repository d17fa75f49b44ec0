"""MAE pre-training of the bundled tiny backbone.

    python -m cinemae_jax.pretrain --config configs/pretrain_tiny.py --workdir runs/pretrain_tiny \
        "--config.data.photos=('photos/a','photos/b')"

Needs folders of real photographs (any format, no labels).  The encoder has 3.6 million parameters.
With 8-pixel patches on 112-pixel crops it sees 196 patches, as ViT-L/16 does at 224.  On a CPU, one
device per core is fastest: XLA_FLAGS=--xla_force_host_platform_device_count=CORES.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.init = ""  # backbone file to start from; '' for random parameters

    config.model = ConfigDict()
    config.model.image_size = 112  # pixels, side
    config.model.patch_size = 8  # pixels, side
    config.model.width = 192
    config.model.depth = 8
    config.model.num_heads = 3
    config.model.decoder_width = 128
    config.model.decoder_depth = 4
    config.model.decoder_num_heads = 2
    config.model.target = "raw"  # or norm_pix
    config.model.layer_norm_eps = 1e-6

    config.data = ConfigDict()
    config.data.photos = ()  # folders
    config.data.scale = (0.2, 1.0)  # random crop, share of the area
    config.data.native = 0.7  # share of samples cropped at native pixels instead
    config.data.holdout = 0.03  # share of photographs held out for the validation loss
    config.data.num_threads = 4

    config.mask_ratio = 0.75
    config.batch_size = 64  # images over all devices
    config.epochs = 30
    config.learning_rate = 1e-3  # peak
    config.warmup = 0.05  # share of steps
    config.weight_decay = 0.05
    config.b2 = 0.95
    config.dtype = "float32"  # of activations
    config.checkpoint_every = 100  # steps
    return config
