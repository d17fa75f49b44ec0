import importlib
from typing import Any

import pytest

from cinemae_jax import settings

CONFIGS = ("sd14", "demo")


def config_with(path: str, value: Any) -> dict[str, Any]:
    """sd14 with one field set, given by its dotted path; None removes it."""
    config = importlib.import_module("configs.sd14").get_config().to_dict()
    config["data"]["root"] = "data"
    section = config
    *folders, name = path.split(".")
    for folder in folders:
        section = section[folder]
    if value is None:
        del section[name]
    else:
        section[name] = value
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files_are_complete(name: str) -> None:
    config = importlib.import_module(f"configs.{name}").get_config()
    config.data.root = "data"
    settings.read(config.to_dict())


def test_sd14_is_what_the_paper_states() -> None:
    read = settings.read(config_with("seed", 0))
    assert read.detector.num_runs == 2
    assert read.detector.fusion == "additive"
    assert read.train.epochs == 25
    assert read.data.train_generators == ("stable_diffusion_v_1_4",)


def test_settings_survive_json() -> None:
    import dataclasses
    import json

    read = settings.read(config_with("seed", 5))
    assert settings.read(json.loads(json.dumps(dataclasses.asdict(read)))) == read


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.epochs", None, "config.train.epochs is missing"),
        ("train.epoch", 3, "config.train.epoch is not a setting"),
        ("train.epochs", "3", "config.train.epochs must be int, is '3'"),
        ("train.epochs", True, "config.train.epochs must be int"),
        ("train.epochs", 0, "config.train.epochs must be positive"),
        ("data.root", "", "config.data.root is empty"),
        ("data.holdout", 1.0, "config.data.holdout must lie between"),
        ("data.train_generators", "sd", "config.data.train_generators must be a tuple"),
        ("data.train_generators", (), "config.data.train_generators is empty"),
        ("detector.fusion", "sum", "detector.fusion is 'sum': use one of"),
        ("extra", 1, "config.extra is not a setting"),
    ],
)
def test_mistakes_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings.read(config_with(path, value))


def test_whole_numbers_are_fine_where_fractions_are_asked_for() -> None:
    assert settings.read(config_with("train.learning_rate", 1)).train.learning_rate == 1.0
