"""A small detector, trained once a session."""

import functools
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

from cinemae_jax import evaluate, train, typed
from cinemae_jax.configs import sd14
from cinemae_jax.data.unread import BadImage
from cinemae_jax.settings import Settings


def small_config(data_set: Path, backbone_file: Path) -> ConfigDict:
    config = sd14.get_config()
    config.backbone = str(backbone_file)
    config.detector.hidden = 8
    config.data.root = str(data_set)
    config.data.train_generators = ("gen_a",)
    config.data.holdout = 0.25
    config.data.resize = 36
    config.data.num_threads = 2
    config.features.batch_size = 16
    config.features.num_runs = 3
    config.train.batch_size = 8
    config.train.epochs = 5
    config.train.learning_rate = 1e-2
    config.train.standardize_images = 16
    config.train.checkpoint_every = 2
    config.eval.batch_size = 16
    config.eval.bootstrap = 20
    config.eval.fpr = config.eval.fnr = 0.2  # what six held-out images of a class can promise
    return config


def small_settings(data_set: Path, backbone_file: Path) -> Settings:
    return typed.read(small_config(data_set, backbone_file).to_dict(), Settings)


@functools.cache
def small_run(data_set: Path, backbone_file: Path) -> Path:
    """Workdir of a finished training."""
    workdir = Path(tempfile.mkdtemp(prefix="cinemae-small-run-"))
    assert train.train(small_settings(data_set, backbone_file), workdir) == []
    return workdir


def evaluated(config: Settings, workdir: Path) -> list[BadImage]:
    """What ``python -m cinemae_jax.evaluate`` does with a config."""
    return evaluate.evaluate(config.evaluation, workdir)
