"""A global encoder beside the local anomaly scores, trained on pictures of many sources.

    python -m cinemae_jax.train --config configs/clip.py --workdir runs/clip \
        --config.data.root=LIST.csv "--config.data.train_generators=('GENERATOR', …)"
    cinemae bundle runs/clip --out clip_detector.safetensors

The bundled encoder (the class token after eight blocks of CLIP ViT-B/16) sees each picture as a
whole, the bundled tiny backbone sees four crops at native pixels.  The two meet at the logit.  LIST
has a column ``split``: its ``held_out`` images come from other sources than those of ``train``,
because thresholds must hold for cameras that training has not seen (docs/clip.md).
"""

from ml_collections import ConfigDict

from cinemae_jax.configs import tiny


def get_config() -> ConfigDict:
    config = tiny.get_config()
    config.global_backbone = "clip"
    config.detector.fusion = "logit"
    config.data.global_view = "whole"
    config.data.augment.jpeg_quality = (60, 95)
    config.data.augment.short_side = (192, 512)
    config.data.eval_crops = 4
    config.features.num_views = 2
    config.features.shard_images = 64
    config.train.global_weight_decay = 4.0
    config.eval.fpr = 0.05  # in nine of ten sources of held-out photographs
    return config
