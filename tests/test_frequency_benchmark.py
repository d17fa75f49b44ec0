"""The comparison of the hybrid with its better part: data in, paired differences out."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import frequency
from cinemae_jax.data import catalog


def test_prepared_data_are_equalised_under_every_condition(data_set: Path, tmp_path: Path) -> None:
    count = frequency.prepare(str(data_set), tmp_path / "out", 2, ["half"])
    found = catalog.scan(tmp_path / "out")
    assert count == len(found) == 48 + 2 * 2 * 2 * 2  # training; classes, generators, conditions
    assert found.generators == ["gen_a", "gen_a__half", "gen_b", "gen_b__half"]
    sides: dict[bool, set[int]] = {}
    for path, generator in zip(found.table["path"], found.table["generator"], strict=True):
        with Image.open(tmp_path / "out" / path.as_py()) as image:
            sides.setdefault(generator.as_py().endswith("half"), set()).add(min(image.size))
    assert sides == {False: {256}, True: {128}}


def test_the_better_part_is_chosen_by_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frequency, "RESAMPLES", 50)
    right = {"cinemae": "a", "residual_alone": "b", "hybrid_residual": "ab"}
    for row, knows in right.items():
        (tmp_path / row).mkdir()
        with open(tmp_path / row / "scores.csv", "w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["path", "label", "generator", "logit", "error"])
            for generator in ("a", "b", "a__half"):
                for i in range(20):
                    label = i % 2
                    logit = label if generator[0] in knows else 0.0
                    out.writerow([f"{generator}/{i}.png", label, generator, logit, ""])
    scores = frequency.Scores(tmp_path, {})
    found = {(n, "clean"): scores.curve(n, "clean") for n in scores.logits}
    np.testing.assert_array_equal(found["cinemae", "clean"][:, 0], [1.0, 0.5])
    gain = frequency._gain(found, "hybrid_residual", ("cinemae", "residual_alone"), "clean")
    np.testing.assert_array_equal(gain, 0)  # each part is as good where it is the better one
