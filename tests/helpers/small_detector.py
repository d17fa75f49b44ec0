"""An untrained detector on the small backbone, for tests of what is done with a detector."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from cinemae_jax import typed, weights
from cinemae_jax.detector import trained
from cinemae_jax.detector.bundle import Bundle, TrainingView
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.detector.trained import HeldOut, TrainedDetector
from cinemae_jax.model.head import Normalizer
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings
from tests.helpers.small_run import small_config

NUM_HELD_OUT = 100  # per class: enough to promise error rates of 0.05 and 0.01
CALIBRATION = Calibration(0.8, 0.1, 0.4, -0.3, 0.05, 0.05, 100, 100)


def one_device() -> Replicas:
    return Replicas((jax.devices()[0],))


def small_bundle(
    backbone_file: Path, *, seen: TrainingView | None = None, **data: object
) -> Bundle:
    """Random heads, and held-out scores of two overlapping classes.

    Args:
      backbone_file: file of its backbone.
      seen: images that it claims to have been trained on.
      **data: other values of ``settings.data``.
    """
    config = typed.read(small_config(Path("nowhere"), backbone_file).to_dict(), Settings)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    backbone = weights.load(backbone_file)
    heads = trained.head_template(config, backbone)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (leaf + rng.normal(0, 0.3, leaf.shape)).astype(np.float32), heads.params
    )
    width, count = heads.normalizer.global_mean.shape[1], heads.normalizer.stats_mean.shape[1]
    normalizer = Normalizer(
        *(np.full((1, n), x, np.float32) for n in (width, count) for x in (0, 1))
    )
    label = np.repeat([0, 1], NUM_HELD_OUT).astype(np.int32)
    logit = (rng.normal(0, 1, (len(label), 1)) + 2 * label[:, None]).astype(np.float32)
    heads = dataclasses.replace(heads, params=params, normalizer=normalizer)
    detector = TrainedDetector(backbone, heads, config, 7, HeldOut(logit, label), "some images")
    return Bundle(detector, "small", seen=seen)
