"""Config files are complete, and every mistake in a config is named."""

import dataclasses
import importlib
from typing import Any

import pytest

from cinemae_jax import typed
from cinemae_jax.model.config import LATER, DetectorConfig, as_before, vit_huge, vit_tiny
from cinemae_jax.settings import PretrainSettings, Settings

CONFIGS = ("sd14", "demo", "tiny")


def config_with(path: str, value: Any) -> dict[str, Any]:
    """sd14 with one field set, given by its dotted path; None removes it."""
    config = importlib.import_module("cinemae_jax.configs.sd14").get_config().to_dict()
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
    config = importlib.import_module(f"cinemae_jax.configs.{name}").get_config()
    config.data.root = "data"
    assert typed.read(config.to_dict(), Settings).detector.num_runs == 2


def test_pretrain_config_is_complete_and_its_model_is_checked() -> None:
    config = importlib.import_module("cinemae_jax.configs.pretrain_tiny").get_config()
    config.data.photos = ("photos",)
    read = typed.read(config.to_dict(), PretrainSettings)
    assert read.model.num_patches == 196
    config.model.num_heads = 5
    with pytest.raises(ValueError, match=r"MAEConfig.width 192 is not a multiple of num_heads 5"):
        typed.read(config.to_dict(), PretrainSettings)


def test_sd14_is_what_the_paper_states() -> None:
    read = typed.read(config_with("seed", 0), Settings)
    assert read.detector.num_runs == 2
    assert read.detector.fusion == "additive"
    assert read.train.epochs == 25
    assert read.data.train_generators == ("stable_diffusion_v_1_4",)


def test_settings_survive_json() -> None:
    import json

    read = typed.read(config_with("seed", 5), Settings)
    assert typed.read(json.loads(json.dumps(dataclasses.asdict(read))), Settings) == read


def test_a_detector_saved_before_a_field_existed_has_its_default() -> None:
    saved = config_with("data.augment.noise_probability", None)
    with pytest.raises(ValueError, match="noise_probability is missing"):
        typed.read(saved, Settings)
    assert typed.read(saved, Settings, saved=True).data.augment.noise_probability == 0
    for field, default in {"attention": "plain", "run_layout": "vmap", **LATER}.items():
        older = config_with(f"detector.{field}", None)
        assert getattr(typed.read(older, Settings, saved=True).detector, field) == default
    with pytest.raises(ValueError, match="seed is missing"):  # there is none to take
        typed.read(config_with("seed", None), Settings, saved=True)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.epochs", None, "config.train.epochs is missing"),
        ("train.epoch", 3, "config.train.epoch is not a setting"),
        ("train.epochs", "3", "config.train.epochs must be int, is '3'"),
        ("train.epochs", True, "config.train.epochs must be int"),
        ("train.epochs", 0, "config.train.epochs must be 1 or more"),
        ("train.warmup", 2.0, "config.train.warmup must be between 0 and 1"),
        ("train.learning_rate", -1.0, "config.train.learning_rate must be 0 or more"),
        ("eval.confidence", 95.0, "config.eval.confidence must be between 0 and 1"),
        ("data.resize", -1, "config.data.resize must be between 0 and"),
        ("train.learning_rate", float("nan"), "config.train.learning_rate must be 0 or more"),
        ("data.num_crops", 3, "config.data.num_crops is 3: .* use a square number"),
        ("data.eval_crops", 8, "config.data.eval_crops is 8: .* use a square number"),
        ("data.num_crops", 0, "config.data.num_crops must be between 1 and"),
        ("seed", -1, "config.seed must be 0 or more"),
        ("train", 3, "config.train must be a section"),
        ("detector.mask_ratio", 7.0, "detector.mask_ratio must lie in"),
        ("data.root", "", "config.data.root is empty"),
        ("data.holdout", 1.5, "config.data.holdout must be between 0 and 1"),
        ("data.train_generators", "sd", "config.data.train_generators must be a tuple"),
        ("data.train_generators", (), "config.data.train_generators is empty"),
        ("detector.fusion", "sum", "detector.fusion is 'sum': use one of"),
        ("data.source", "web", "config.data.source is 'web': use 'folder' or 'tfds'"),
        ("data.augment.jpeg_probability", 2.0, "augment.jpeg_probability must be between 0 and 1"),
        (
            "data.augment.jpeg_quality",
            (90.0, 95.0),
            r"augment.jpeg_quality\[0\] must be",
        ),
        ("extra", 1, "config.extra is not a setting"),
        ("data.train_generators", 3, "config.data.train_generators must be a tuple, is 3"),
        ("detector.statistics", ("variability",) * 2, "name each once"),
        ("detector.masking", "learned", "detector.masking"),
        ("detector.share_by", "colour", "detector.share_by"),
        ("detector.score_share", 0.0, "detector.score_share"),
        ("detector.texture_temperature", 0.0, "detector.texture_temperature"),
        ("detector.texture_temperature", float("inf"), "detector.texture_temperature"),
    ],
)
def test_mistakes_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        typed.read(config_with(path, value), Settings)


@pytest.mark.parametrize(
    ("field", "value"), [("score", "relative"), ("fusion", "global"), ("anomaly", "bands")]
)
def test_a_weight_that_nothing_reads_cannot_be_learned(field: str, value: str) -> None:
    config = config_with("detector.learn_mismatch_weight", True)
    assert typed.read(config, Settings).detector.learn_mismatch_weight
    config["detector"][field] = value
    with pytest.raises(ValueError, match="learn_mismatch_weight"):
        typed.read(config, Settings)


def test_whole_numbers_are_fine_where_fractions_are_asked_for() -> None:
    assert typed.read(config_with("train.learning_rate", 1), Settings).train.learning_rate == 1.0


def test_disjoint_masks_are_stored_in_whole_groups() -> None:
    config = config_with("detector.masking", "disjoint")
    assert typed.read(config, Settings).masks.group_size == 4
    config["features"]["num_runs"] = 6
    with pytest.raises(ValueError, match=r"features\.num_runs is 6.*multiple of 4"):
        typed.read(config, Settings)
    config["detector"]["mask_ratio"] = 2 / 3
    assert typed.read(config, Settings).masks.group_size == 3
    config["detector"]["mask_ratio"] = 0.4
    with pytest.raises(ValueError, match=r"detector\.mask_ratio"):
        typed.read(config, Settings)


@pytest.mark.parametrize("ratio", [0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 0.95])
def test_the_disjoint_sets_of_a_group_fit_into_an_image(ratio: float) -> None:
    group = DetectorConfig(masking="disjoint", mask_ratio=ratio).group_size
    assert group == int(1 / (1 - ratio) + 1e-6)
    for model in (vit_tiny(), vit_huge()):
        assert group * model.num_visible(ratio) <= model.num_patches


def test_a_field_that_changes_nothing_leaves_names_as_they_were() -> None:
    older = {k: v for k, v in dataclasses.asdict(DetectorConfig()).items() if k not in LATER}
    assert as_before(dataclasses.asdict(DetectorConfig())) == older
    changed = dataclasses.asdict(DetectorConfig(score_share=0.5))
    assert as_before(changed) == older | {"score_share": 0.5}
