"""The command line of jobs: which config file ``--config`` names."""

import importlib
from pathlib import Path

import pytest

from cinemae_jax.runtime import jobs
from tests.helpers.small_run import ROOT

PACKAGED = jobs.packaged_configs()


def config_of(*words: str) -> list[str]:
    return jobs.with_config_files(["job", *words])[1:]


def test_packaged_configs_are_those_of_the_package() -> None:
    assert {"sd14", "demo", "tiny", "pretrain_tiny", "ablation/fusion"} <= PACKAGED.keys()
    for name in PACKAGED:
        module = importlib.import_module(f"cinemae_jax.configs.{name.replace('/', '.')}")
        assert callable(module.get_config)


@pytest.mark.parametrize(
    ("words", "name", "argument"),
    [
        (["--config", "sd14"], "sd14", ""),
        (["--config=tiny", "--config.seed=1"], "tiny", ""),
        (["-config", "ablation/fusion"], "ablation/fusion", ""),
        (["--config=ablation/fusion:demo"], "ablation/fusion", ":demo"),
    ],
)
def test_a_name_finds_the_packaged_config(
    words: list[str],
    name: str,
    argument: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name.split("/")[0]).mkdir()  # a folder is not a config file
    others = [word for word in words if word.startswith("--config.")]
    assert config_of(*words) == [f"--config={PACKAGED[name]}{argument}", *others]


def test_a_file_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd14").write_text("")
    assert config_of("--config", "sd14:a:b") == ["--config=sd14:a:b"]
    monkeypatch.chdir(ROOT)
    assert config_of("--config=configs/sd14.py") == ["--config=configs/sd14.py"]


@pytest.mark.parametrize("name", ["sd15", "sd14.py", "../configs/sd14", "", "ablation"])
def test_an_unknown_name_lists_the_packaged_configs(name: str) -> None:
    with pytest.raises(ValueError, match=f"--config {name}: .*ablation/backbone.*sd14, .*tiny"):
        config_of("--config", name)
