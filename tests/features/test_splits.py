"""Held-out images: a share of the training images, or those that a list names."""

import csv
import dataclasses
from pathlib import Path

import pytest

from cinemae_jax import train
from cinemae_jax.data.catalog import scan
from cinemae_jax.detector import bundle, loading, trained
from cinemae_jax.features import splits
from cinemae_jax.settings import Settings
from tests.helpers.small_run import small_settings

pytestmark = pytest.mark.usefixtures("no_figures")


def listed(data_set: Path, file: Path) -> Path:
    """The images of ``data_set``; those of gen_b are held out, their photographs of two sources."""
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("path", "label", "generator", "split"))
        for i, row in enumerate(scan(data_set).table.to_pylist()):
            held = row["generator"] == "gen_b"
            source = f"camera {i % 2}" if held and not row["label"] else row["generator"]
            split = "held_out" if held else row["split"]
            writer.writerow((data_set / row["path"], row["label"], source, split))
    return file


@pytest.fixture
def config(data_set: Path, backbone_file: Path, tmp_path: Path) -> Settings:
    config = small_settings(data_set, backbone_file)
    root = str(listed(data_set, tmp_path / "list.csv"))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, root=root),
        train=dataclasses.replace(config.train, epochs=1),
    )


def test_a_list_names_the_held_out_images(config: Settings, data_set: Path) -> None:
    data = splits.read_data(config.data)
    generators = set(data.validation.table["generator"].to_pylist())
    assert generators == {"gen_b", "camera 0", "camera 1"}
    everything = scan(data_set).select(generators=["gen_a"], split="train")
    assert len(data.train) == len(everything)  # no share of them is held out
    assert set(data.test.table["generator"].to_pylist()) == {"gen_a"}


def test_without_such_a_split_there_are_no_sources(data_set: Path, backbone_file: Path) -> None:
    data = splits.read_data(small_settings(data_set, backbone_file).data)
    assert trained.sources_of(data) == {}


def test_run_and_bundle_know_the_sources_of_held_out_photographs(
    config: Settings, tmp_path: Path
) -> None:
    assert train.train(config, tmp_path / "run") == []
    data = splits.read_data(config.data)
    names = data.validation.table["generator"].to_pylist()
    detector = loading.load(tmp_path / "run")
    assert len(detector.held_out_sources) == len(names)
    assert len(set(zip(names, detector.held_out_sources, strict=True))) == 3
    bundle.save(tmp_path / "one.safetensors", bundle.load(tmp_path / "run"))
    again = bundle.load(tmp_path / "one.safetensors", backbone=config.backbone).detector
    assert again.held_out_sources == detector.held_out_sources
