from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cinemae_jax.data.inspect import shortcuts


def files(**columns: object) -> pa.Table:
    """200 readable files, nature before ai, identical except for the given columns."""
    alike: dict[str, object] = {
        "format": "PNG",
        "mode": "RGB",
        "deep": False,
        "alpha": False,
        "quality": None,
    }
    alike |= {"width": 64, "height": 64, "label": None, "generator": "g"}
    table: dict[str, list[Any]] = {name: [value] * 200 for name, value in alike.items()}
    table["label"] = ["nature"] * 100 + ["ai"] * 100
    table |= {name: list(np.asarray(value).tolist()) for name, value in columns.items()}
    return pa.table(table | {"quality": pa.array(table["quality"], pa.int8())})


def auc(table: pa.Table, fact: str) -> shortcuts.Shortcut:
    return next(one for one in shortcuts.find(table, scope=shortcuts.ALL) if one.fact == fact)


def test_identical_files_have_no_shortcut() -> None:
    found = shortcuts.find(files(), scope=shortcuts.ALL)
    assert [one.auc for one in found if one.fact != "JPEG quality"] == [0.5] * 4
    assert auc(files(), "JPEG quality").auc is None
    none_found, untested = shortcuts.in_words(found)
    assert "beyond chance (highest AUC 0.50)" in none_found
    assert untested.startswith("not tested")
    assert "JPEG quality in the whole set" in untested


@pytest.mark.parametrize("order", [1, -1])
def test_one_format_per_class_separates_them_in_either_order(order: int) -> None:
    table = files(format=(["JPEG"] * 100 + ["PNG"] * 100)[::order])
    assert auc(table, "file format").auc == 1.0
    said = shortcuts.in_words(shortcuts.find(table, scope=shortcuts.ALL))
    assert "file format alone separates" in said[0]
    assert "AUC 1.00 (100 nature + 100 ai)" in said[0]


def test_a_single_medium_size_is_found_among_others() -> None:
    rng = np.random.default_rng(0)
    width = np.concatenate([rng.choice([100, 150, 400, 900], 100), np.full(100, 256)])
    assert auc(files(width=width), "image size").auc == 1.0
    assert auc(files(width=width), "aspect ratio").auc == 1.0
    assert auc(files(height=width), "image size").auc == 1.0
    scaled = files(width=width, height=width)
    assert auc(scaled, "image size").auc == 1.0
    assert auc(scaled, "aspect ratio").auc == 0.5


def test_chance_is_not_a_finding() -> None:
    false_alarms = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = files(quality=rng.integers(50, 100, 200), width=rng.integers(64, 999, 200))
        found = shortcuts.find(table, scope=shortcuts.ALL)
        assert all(one.auc is None or 0.5 <= one.auc < 0.7 for one in found)
        false_alarms += sum(one.found for one in found)
    assert false_alarms <= 2  # of 60 tests


def test_quality_is_compared_only_among_jpegs() -> None:
    quality = [75] * 50 + [None] * 50 + [95] * 50 + [None] * 50
    one = auc(files(quality=quality), "JPEG quality")
    assert (one.auc, one.num_nature, one.num_ai) == (1.0, 50, 50)
    assert "uncertain" in one.note
    only_nature = auc(files(quality=[75] * 100 + [None] * 100), "JPEG quality")
    assert (only_nature.auc, only_nature.num_ai) == (None, 0)


def test_a_sample_of_a_large_set_gives_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    table = files(format=["JPEG"] * 90 + ["PNG"] * 110)
    whole = auc(table, "file format").auc
    monkeypatch.setattr(shortcuts, "MAX_IMAGES", 60)
    sampled = auc(table, "file format")
    assert (sampled.num_nature, sampled.num_ai) == (100, 100)
    assert sampled.auc == pytest.approx(whole, abs=0.08)  # two standard errors of 60 images
