"""How much of everything is measured, and a reason not to."""

import dataclasses

from benchmarks.bench_backbone import PRESETS
from cinemae_jax.model.config import MAEConfig


class Skipped(Exception):  # noqa: N818 - not an error
    """A section or row does not apply to this machine; the message says why."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of the models, batches and repetitions.

    Attributes:
      model: whose speed is measured.
      compared: model that is compared with the CPU, and in bfloat16.
      batch: images at a time, unless varied.
      batches: numbers of images at a time.
      runs: numbers K of masked runs.
      seconds: least duration of a repeated measurement.
      square: side of the matrices whose product is the ceiling.
      goldens: names of stored outputs.
      demo: bundled images for the AUC.
      banked: images of a bank that heads are trained from.
      pretrained: images a pre-training step.
      pretrained_model: fields of its model that differ from configs/pretrain_tiny.py.
      files: JPEG files.
      patience: factor on the time limits of the sections.
    """

    model: MAEConfig
    compared: MAEConfig
    batch: int
    batches: tuple[int, ...]
    runs: tuple[int, ...]
    seconds: float
    square: int
    goldens: tuple[str, ...]
    demo: int
    banked: int
    pretrained: int
    pretrained_model: dict[str, int]
    files: int
    patience: float = 1.0


LARGE, TOY = PRESETS["vit_large"], PRESETS["toy"]
FULL = Size(
    model=LARGE,
    compared=LARGE,
    batch=64,
    batches=(64, 256, 16, 512, 128, 32),
    runs=(2, 0, 1, 3, 4),
    seconds=1.0,
    square=8192,
    goldens=(
        "raw_8_facebook",
        "norm_pix_16_huggingface",
        "raw_16_huggingface",
        "norm_pix_14_facebook",
    ),
    demo=200,
    banked=131_072,
    pretrained=256,
    pretrained_model={},
    files=512,
)
SMALL = Size(
    model=TOY,
    compared=dataclasses.replace(TOY, depth=3),
    batch=4,
    batches=(4, 2),
    runs=(2, 0),
    seconds=0.05,
    square=256,
    goldens=("raw_8_facebook",),
    demo=16,
    banked=512,
    pretrained=8,
    pretrained_model={
        "width": 24,
        "depth": 1,
        "decoder_width": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 2,
    },
    files=8,
    patience=10.0,
)
