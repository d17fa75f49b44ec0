"""Configs of small runs, a training done once per session, and what a run leaves behind."""

import dataclasses
import functools
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cinemae_jax import evaluate, train, typed
from cinemae_jax.configs import pretrain_tiny, sd14
from cinemae_jax.data.unread import BadImage
from cinemae_jax.settings import PretrainSettings, Settings
from tests.conftest import SMALL

ROOT = Path(__file__).parents[2]


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
    config.eval.fpr = config.eval.fnr = 0.2  # six held-out images per class support no less
    return config


def small_settings(data_set: Path, backbone_file: Path) -> Settings:
    return typed.read(small_config(data_set, backbone_file).to_dict(), Settings)


def small_pretraining(photos: Path, **model: object) -> PretrainSettings:
    """Pre-training of the small backbone, with other fields of its model on request."""
    config = pretrain_tiny.get_config()
    config.model = ConfigDict(dataclasses.asdict(SMALL) | model)
    config.data.photos = (str(photos),)
    config.data.holdout = 0.2
    config.data.num_threads = 2
    config.batch_size = 8
    config.epochs = 6
    config.learning_rate = 3e-3
    config.checkpoint_every = 7
    return typed.read(config.to_dict(), PretrainSettings)


@functools.cache
def small_run(data_set: Path, backbone_file: Path) -> Path:
    """Workdir of a finished training."""
    workdir = Path(tempfile.mkdtemp(prefix="cinemae-small-run-"))
    assert train.train(small_settings(data_set, backbone_file), workdir) == []
    return workdir


def evaluated(config: Settings, workdir: Path) -> list[BadImage]:
    """What ``python -m cinemae_jax.evaluate`` does with a config."""
    return evaluate.evaluate(config.evaluation, workdir)


def as_flags(config: Mapping[str, Any], prefix: str = "--config") -> list[str]:
    """Overrides of every field, as a user would type them."""
    flags = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            flags += as_flags(value, f"{prefix}.{name}")
        else:
            flags.append(f"{prefix}.{name}={value}")
    return flags


def logged(workdir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def results(workdir: Path) -> list[dict[str, Any]]:
    """Rows of eval.json."""
    return json.loads((workdir / "eval.json").read_text())["results"]


def spoil(root: Path, *names: str) -> None:
    """Cuts off images of gen_a in a data set of ``write_data_set``."""
    for name in names:
        path = root / "gen_a/imagenet_ai_test" / name
        path.write_bytes(path.read_bytes()[:300])
