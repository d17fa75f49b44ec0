"""The dilution experiment: what it does to images, and its tables."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import dilution
from benchmarks.dilution import FAMILIES, UNIFORM, diluted
from cinemae_jax.data import catalog
from tests.helpers.small_run import small_run

PATCH = 8


def photo(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 200, 32)[:, None, None] * np.ones((1, 32, 3))
    ramp[16:] += rng.normal(0, 30, (16, 32, 3))  # the lower half is textured
    return np.clip(ramp + rng.normal(0, 1, ramp.shape), 0, 255).astype(np.uint8)


def changed_patches(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    differs = (before != after).any(axis=-1).reshape(4, PATCH, 4, PATCH).any(axis=(1, 3))
    return np.flatnonzero(differs.reshape(-1))


@pytest.mark.parametrize(("dose", "count"), [(0.0, 0), (0.25, 4), (0.3, 5), (0.75, 12), (1.0, 16)])
def test_a_dose_replaces_so_many_patches_that_follow_each_other(dose: float, count: int) -> None:
    before = photo()
    changed = changed_patches(before, diluted(before, dose, PATCH, np.random.default_rng(3)))
    assert len(changed) == count
    gaps = np.diff(np.append(changed, changed[:1] + 16)) if count else np.array([])
    assert (gaps > 1).sum() <= 1  # one band, which may wrap around


def test_what_replaces_them_is_smooth_and_has_the_noise_of_flat_patches() -> None:
    after = diluted(photo(), 1.0, PATCH, np.random.default_rng(3)).astype(float)
    assert after[16:].reshape(2, PATCH, 4, PATCH, 3).std(axis=(1, 3)).max() < 12  # 30 before
    assert 0.3 < np.diff(after[:8], axis=1).std() < 4
    flat = np.full((32, 32, 3), 90, np.uint8)
    np.testing.assert_array_equal(diluted(flat, 0.5, PATCH, np.random.default_rng(0)), flat)


def test_groups_come_from_the_list_or_from_their_own_file(data_set: Path, tmp_path: Path) -> None:
    images = catalog.scan(data_set)
    paths = images.table["path"].to_pylist()
    file = tmp_path / "groups.csv"
    file.write_text(f"path,group\n{paths[0]},a prompt\n{paths[1]},a prompt\n")
    options = argparse.Namespace(root=str(data_set), groups=str(file))
    assert dilution.groups(images, options).tolist() == ["a prompt"] * 2 + paths[2:]
    options.groups = None
    assert dilution.groups(images, options).tolist() == paths


@pytest.fixture(scope="module")
def found(data_set: Path, backbone_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("dilution") / "found.json"
    workdir = small_run(data_set, backbone_file)
    argv = [data_set, "--detector", workdir, "--images", 4, "--train-images", 6, "--side", 40]
    argv += ["--doses", 0.5, "--bootstrap", 20, "--json", file]
    dilution.main(list(map(str, argv)))
    return json.loads(file.read_text())


@pytest.mark.slow
def test_every_row_is_measured_at_every_dose(found: Any) -> None:
    names = {kind.name for family in FAMILIES for kind in family} | {UNIFORM}
    rows = {(row["row"], row["dose"]): row for row in found["dilution"]}
    assert set(rows) == {(name, dose) for name in names for dose in (0.0, 0.5)}
    for (name, dose), row in rows.items():
        if dose == 0:
            assert row["change"] == {"value": 0, "low": 0, "high": 0}
        if name == "random":
            assert row["to_random"] == {"value": 0, "low": 0, "high": 0}
        assert 0 <= row["auc"]["low"] <= row["auc"]["value"] <= row["auc"]["high"] <= 1


@pytest.mark.slow
def test_the_retest_covers_all_masks(found: Any) -> None:
    rows = {(row["masks"], row["K"]) for row in found["retest"]}
    assert rows == {(m, k) for m in ("random", "disjoint", "stratified") for k in (2, 4)}
