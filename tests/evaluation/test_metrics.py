import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from sklearn import metrics as sk

from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.evaluation import bootstrap, metrics, report, scores
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.metrics import Row, ScoredImages
from tests.helpers.small_detector import CALIBRATION


def scored(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    logits = (labels - 0.5 + rng.normal(0, 1, n)).astype(np.float32)
    return labels, logits, np.where(np.arange(n) < n // 3, "a", "b")


def evaluate(
    labels: np.ndarray,
    logits: np.ndarray,
    names: np.ndarray,
    *,
    valid: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    calibration: Calibration | None = None,
    **options: float,
) -> list[Row]:
    valid = np.ones(len(labels), bool) if valid is None else valid
    images = ScoredImages(labels, logits, names, valid, groups)
    resampling = Resampling(**{"bootstrap": 200} | options)
    return metrics.evaluate(images, resampling, calibration=calibration)


def test_values_are_scikit_learns_and_the_mean_is_unweighted() -> None:
    labels, logits, names = scored()
    logits = np.round(logits, 1)  # ties
    a, b, mean = evaluate(labels, logits, names)
    for row in (a, b):
        y, z = labels[names == row.name], logits[names == row.name]
        assert row.metrics["auc"].value == pytest.approx(sk.roc_auc_score(y, z))
        assert row.metrics["ap"].value == pytest.approx(sk.average_precision_score(y, z))
        assert row.metrics["accuracy"].value == pytest.approx(sk.accuracy_score(y, z > 0))
        recall = sk.recall_score(y, z > 0, average=None)
        assert row.metrics["nature_accuracy"].value == pytest.approx(recall[0])
        assert row.metrics["ai_accuracy"].value == pytest.approx(recall[1])
        fpr, tpr, _ = sk.roc_curve(y, z)
        for name, rate in (("tpr_at_fpr_1", 0.01), ("tpr_at_fpr_5", 0.05)):
            assert row.metrics[name].value == pytest.approx(tpr[fpr <= rate].max())
        probability = 1 / (1 + np.exp(-z.astype(float)))
        assert row.metrics["brier"].value == pytest.approx(sk.brier_score_loss(y, probability))
        assert math.isnan(row.metrics["accuracy_calibrated"].value)
    for name in metrics.METRICS:
        expected = (a.metrics[name].value + b.metrics[name].value) / 2
        assert mean.metrics[name].value == pytest.approx(expected, nan_ok=True)
    assert (mean.nature, mean.ai) == (30, 30)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """True accuracy of a unit shift is Φ(0.5) = 0.691; 90 % intervals, 60 simulations."""
    truth = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    hits = 0
    for seed in range(60):
        labels, logits, _ = scored(200, seed)
        (row, _) = evaluate(
            labels, logits, np.full(200, "a"), bootstrap=60, confidence=0.9, seed=seed
        )
        estimate = row.metrics["accuracy"]
        hits += estimate.low <= truth <= estimate.high
    # binomial with p = 0.9: mean 54, standard deviation 2.3; a bootstrap is slightly too narrow
    assert 45 <= hits <= 59


def test_unread_images_are_counted_and_not_scored() -> None:
    labels, logits, names = scored()
    valid = np.ones(60, bool)
    valid[:4] = False
    logits[:4] = np.nan
    a, _, mean = evaluate(labels, logits, names, valid=valid)
    assert (a.nature, a.ai, a.bad) == (8, 8, 4)
    assert mean.bad == 4
    alone = evaluate(labels[4:], logits[4:], names[4:])[0]
    for name in metrics.METRICS:
        assert dataclasses.astuple(a.metrics[name]) == pytest.approx(
            dataclasses.astuple(alone.metrics[name]), abs=0, rel=0, nan_ok=True
        )


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], []])
def test_what_is_undefined_is_nan_and_shown_as_a_dash(labels: list[int], tmp_path: Path) -> None:
    y = np.array([*labels, 0, 1])
    names = np.array(["odd"] * len(labels) + ["fine"] * 2)
    valid = np.ones(len(y), bool)
    if not labels:
        y, names, valid = np.append(y, 1), np.append(names, "odd"), np.append(valid, False)
    rows = evaluate(y, np.linspace(-1, 1, len(y)), names, valid=valid, bootstrap=5)
    odd = next(r for r in rows if r.name == "odd")
    assert math.isnan(odd.metrics["auc"].value)
    assert report.format_value(odd.metrics["auc"]) == "–"
    assert report.format_interval(odd.metrics["auc"]) == ""
    assert "odd" in report.as_text(rows, 0.95)


def test_no_bootstrap_means_no_interval() -> None:
    row = evaluate(*scored(), bootstrap=0)[0]
    assert math.isnan(row.metrics["auc"].low)
    assert not math.isnan(row.metrics["auc"].value)


@pytest.mark.parametrize("decimals", [8, 0])  # without and with ties
def test_a_weighting_is_the_set_with_its_images_repeated(decimals: int) -> None:
    """All metrics equal scikit-learn's on the repeated images, up to rounding."""
    rng = np.random.default_rng(1)
    labels, logits, _ = scored(80)
    logits = np.round(logits.astype(float), decimals)
    weights = rng.integers(0, 4, (20, 80)).astype(float)
    weights[0, labels == 0] = 0  # a class that was not drawn
    weights[1] = 0
    found = bootstrap.Weighted.of(labels, logits, CALIBRATION).metrics(weights)
    assert tuple(found) == metrics.METRICS
    for i, times in enumerate(weights.astype(int)):
        repeated = np.repeat(labels, times), np.repeat(logits, times)
        expected = metrics.values(*repeated, CALIBRATION)
        got = {name: found[name][i] for name in metrics.METRICS}
        assert got == pytest.approx(expected, abs=1e-12, nan_ok=True)
        if i > 1:
            area = sk.roc_auc_score(labels, logits, sample_weight=times)
            assert got["auc"] == pytest.approx(area, abs=1e-12)
            ap = sk.average_precision_score(labels, logits, sample_weight=times)
            assert got["ap"] == pytest.approx(ap, abs=1e-12)


def test_a_false_positive_rate_that_is_met_exactly_counts() -> None:
    """1 and 5 of 100 photographs score above the AI images found at 1 % and 5 % FPR."""
    nature, ai = np.arange(100.0), np.array([98.5, 94.5, 94.5, 0.5])
    labels, logits = np.repeat([0, 1], [100, 4]), np.concatenate([nature, ai])
    found = metrics.values(labels, logits)
    assert (found["tpr_at_fpr_1"], found["tpr_at_fpr_5"]) == (0.25, 0.75)
    drawn = bootstrap.Weighted.of(labels, logits).metrics(np.ones((1, 104)))
    assert (drawn["tpr_at_fpr_1"][0], drawn["tpr_at_fpr_5"][0]) == (0.25, 0.75)


def test_the_calibrated_threshold_and_probability_are_the_calibrations() -> None:
    labels, logits, _ = scored()
    found = metrics.values(labels, logits, CALIBRATION)
    called = logits > CALIBRATION.ai_threshold
    assert found["accuracy_calibrated"] == pytest.approx(sk.accuracy_score(labels, called))
    recall = sk.recall_score(labels, called, average=None)
    assert found["nature_accuracy_calibrated"] == pytest.approx(recall[0])
    assert found["ai_accuracy_calibrated"] == pytest.approx(recall[1])
    probability = CALIBRATION.probability(logits)
    assert found["brier"] == pytest.approx(sk.brier_score_loss(labels, probability))
    assert found["accuracy"] == metrics.accuracy(labels, logits)  # at 0.5 of the head itself


def test_ece_of_a_hand_computed_case() -> None:
    """Bins [0, 1/15) with one of four AI at 0.05, and [14/15, 1] with all AI at 0.95 and 1."""
    probability = np.array([0.05, 0.05, 0.05, 0.05, 0.95, 1.0])
    labels = np.array([0, 0, 0, 1, 1, 1])
    expected = (4 * abs(0.05 - 1 / 4) + 2 * abs(0.975 - 1)) / 6
    assert metrics.ece(labels, probability) == pytest.approx(expected)


def test_nan_scores_are_unread_and_infinite_scores_are_extreme() -> None:
    labels, logits, names = scored()
    spoilt, huge = logits.copy(), logits.copy()
    spoilt[:3] = np.nan
    a, _, mean = evaluate(labels, spoilt, names)
    assert (a.bad, mean.bad) == (3, 3)
    assert not math.isnan(a.metrics["auc"].low)
    for function in (metrics.accuracy, metrics.auc, metrics.average_precision):
        assert math.isnan(function(labels, spoilt))
    assert math.isnan(metrics.brier(labels, spoilt))
    assert math.isnan(metrics.ece(labels, spoilt))
    huge[[0, 1]], logits[[0, 1]] = [-np.inf, np.inf], [-1e9, 1e9]
    assert metrics.values(labels, huge) == pytest.approx(
        metrics.values(labels, logits), nan_ok=True
    )


def test_no_images_give_an_undefined_mean() -> None:
    nothing = np.zeros(0)
    (mean,) = evaluate(nothing.astype(int), nothing, np.zeros(0, str))
    assert (mean.nature, mean.ai, mean.bad) == (0, 0, 0)
    assert all(math.isnan(estimate.value) for estimate in mean.metrics.values())
    assert metrics.worst([mean]) == {}


def width(row: Row, metric: str = "accuracy") -> float:
    return row.metrics[metric].high - row.metrics[metric].low


def test_copies_of_an_image_in_one_group_add_no_certainty() -> None:
    """4 copies in a group give the intervals of one image; 4 separate images halve them."""
    labels, logits, _ = scored(300)
    options = {"bootstrap": 800}
    (once, _) = evaluate(labels, logits, np.full(300, "a"), **options)
    copies = [np.repeat(part, 4) for part in (labels, logits, np.full(300, "a"))]
    (grouped, _) = evaluate(*copies, groups=np.repeat(np.arange(300), 4), **options)
    (fooled, _) = evaluate(*copies, **options)
    for metric in ("accuracy", "auc", "brier"):
        # a percentile of 800 resamples is off by about 4 % of the width
        assert width(grouped, metric) == pytest.approx(width(once, metric), rel=0.15)
        assert width(fooled, metric) == pytest.approx(width(once, metric) / 2, rel=0.15)


def test_groups_of_one_image_are_images() -> None:
    labels, logits, names = scored()
    alone = evaluate(labels, logits, names, groups=np.arange(60))
    for row, other in zip(alone, evaluate(labels, logits, names), strict=True):
        for name in ("accuracy", "auc", "ap", "ece"):
            got = dataclasses.astuple(row.metrics[name])
            assert got == pytest.approx(dataclasses.astuple(other.metrics[name]))


def test_a_prompt_of_two_generators_is_drawn_for_both() -> None:
    """Two generators with equal scores: with shared groups, the interval of the mean is as wide as
    that of one generator; without groups it is narrower by √2."""
    labels, logits, _ = scored(300)
    both = [np.tile(labels, 2), np.tile(logits, 2), np.repeat(["a", "b"], 300)]
    a, b, mean = evaluate(*both, groups=np.tile(np.arange(300), 2), bootstrap=800)
    assert a.metrics["auc"] == b.metrics["auc"]
    assert width(mean) == pytest.approx(width(a))
    a, _, mean = evaluate(*both, bootstrap=800)
    assert width(mean) == pytest.approx(width(a) / math.sqrt(2), rel=0.15)


@pytest.mark.parametrize("grouped", [False, True])
def test_resamples_keep_the_size_of_each_class(grouped: bool) -> None:
    """If all images are called AI, the accuracy is the share of AI images in every resample."""
    labels = np.arange(90) % 3 // 2
    groups = np.arange(90) // 7 if grouped else None
    row = evaluate(labels, np.ones(90), np.full(90, "a"), groups=groups)[0]
    estimate = dataclasses.astuple(row.metrics["accuracy"])
    assert estimate == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_the_interval_of_the_ece_holds_its_value() -> None:
    for seed in range(5):
        labels, logits, _ = scored(200, seed)
        estimate = evaluate(labels, logits, np.full(200, "a"))[0].metrics["ece"]
        assert 0 <= estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(("photographs", "has_one"), [(99, False), (100, True)])
def test_tpr_at_fpr_has_an_interval_only_with_enough_photographs(
    photographs: int, has_one: bool
) -> None:
    """At 5 % of 100 photographs, the threshold lies below the five highest."""
    logits = np.random.default_rng(0).normal(0, 1, photographs + 50)
    labels = (np.arange(len(logits)) >= photographs).astype(int)
    for row in evaluate(labels, logits + labels, np.full(len(logits), "a")):
        one_in_100, one_in_20 = row.metrics["tpr_at_fpr_1"], row.metrics["tpr_at_fpr_5"]
        assert one_in_100.value <= one_in_20.value
        assert math.isnan(one_in_100.low)
        assert math.isnan(one_in_100.high)
        assert (one_in_20.low <= one_in_20.value <= one_in_20.high) == has_one


def compared(
    first: np.ndarray, second: np.ndarray, calibration: Calibration | None = None
) -> list[Row]:
    labels, _, names = scored(len(first))
    images = ScoredImages(labels, first, names, np.ones(len(first), bool))
    return metrics.compare(images, second, Resampling(300), calibration=calibration)


def test_nothing_differs_from_itself() -> None:
    _, logits, _ = scored()
    for row in compared(logits, logits, CALIBRATION):
        for name, one in row.metrics.items():
            known = slice(1) if name.startswith("tpr_at_fpr") else slice(3)  # few photographs
            assert set(dataclasses.astuple(one)[known]) == {0.0}
    for row in compared(logits, 3 * logits):  # the same order, the same side of 0
        for name in ("accuracy", "auc", "ap"):
            assert dataclasses.astuple(row.metrics[name]) == (0, 0, 0)
        assert row.metrics["tpr_at_fpr_5"].value == 0
        assert row.metrics["brier"].value != 0


def test_a_difference_is_second_minus_first_with_a_narrower_interval() -> None:
    labels, first, names = scored(300)
    second = first + np.random.default_rng(5).normal(0, 0.3, 300)
    rows = compared(first, second)
    before, after = (evaluate(labels, z, names, bootstrap=300) for z in (first, second))
    for row, a, b in zip(rows, before, after, strict=True):
        for name in ("accuracy", "auc", "ece", "brier"):
            difference = b.metrics[name].value - a.metrics[name].value
            assert row.metrics[name].value == pytest.approx(difference, abs=1e-12)
        assert width(row, "auc") < 0.5 * width(a, "auc")
    back = compared(second, first)[-1].metrics["auc"]
    there = rows[-1].metrics["auc"]
    assert (back.value, back.low, back.high) == pytest.approx(
        (-there.value, -there.high, -there.low)
    )


def test_a_comparison_skips_images_unread_in_either_scoring() -> None:
    _, logits, _ = scored()
    spoilt = logits.copy()
    spoilt[0] = np.nan
    assert compared(logits, spoilt)[0].bad == compared(spoilt, logits)[0].bad == 1


def test_the_worst_generator_is_worst_by_each_metrics_own_direction() -> None:
    labels, logits, names = scored(120)
    logits = np.where(names == "b", 0.2 * logits, np.where(labels == 1, 9, -9))
    found = metrics.worst(evaluate(labels, logits, names))
    for name in ("accuracy", "auc", "ap", "ece", "brier"):
        assert found[name].name == "b"
    assert "accuracy_calibrated" not in found  # undefined everywhere


FACTS = {
    "backbone": "b",
    "backbone_sha256": "abc",
    "head_sha256": "def",
    "test_images": "ghi",
    "checkpoint_step": 3,
    "data_root": "data",
    "bad_images": {"nature": 0, "ai": 1},
    "low_context_images": 0,
    "left_out": {"extension .txt": 2},
    "settings": {
        "eval": {"confidence": 0.95, "bootstrap": 200, "detector": ""},
        "data": {"root": "data", "source": "folder", "quarantine": ""},
        "x": "</pre><script>",
    },
}


def results() -> tuple[list[Row], pa.Table]:
    labels, logits, names = scored()
    table = pa.table(
        {
            "path": [f'{i}, "x".png' for i in range(60)],
            "label": pa.array(labels, pa.int8()),
            "generator": pa.array(names).dictionary_encode(),
            "error": pa.array(["damaged"] + [None] * 59, pa.string()),
            "logit": pa.array(logits, mask=np.arange(60) == 0),
            "raw_probability": pa.array(1 / (1 + np.exp(-logits)), mask=np.arange(60) == 0),
            **{
                name: pa.array(np.abs(logits), mask=np.arange(60) == 0)
                for name in ("variability", "mean_anomaly", "perturbation_sensitivity")
            },
        }
    )
    return evaluate(labels, logits, names), table


def test_csv_cells_are_neither_formulas_nor_lines(tmp_path: Path) -> None:
    rows, table = results()
    names = ["=1+1.png", "+a", "@b", "line\rbreak\n", "\x1b[2Jclear"]
    paths = names + table["path"].to_pylist()[len(names) :]
    report.write(tmp_path, rows, table.set_column(0, "path", pa.array(paths)), FACTS)
    written = (tmp_path / "scores.csv").read_bytes()
    assert b"\x1b" not in written
    assert b"\r" not in written
    assert len(written.splitlines()) == 61
    found = pyarrow.csv.read_csv(tmp_path / "scores.csv")["path"].to_pylist()
    assert found[: len(names)] == ["'=1+1.png", "'+a", "'@b", r"line\rbreak\n", r"\x1b[2Jclear"]


def test_probability_is_calibrated_wherever_it_is_called_so() -> None:
    _, table = results()
    rated = scores.with_verdicts(
        table.append_column("low_context", pa.array([False] * 60)), CALIBRATION
    )
    logit = table["logit"].to_numpy(zero_copy_only=False)
    found = rated["probability"].to_numpy(zero_copy_only=False)
    np.testing.assert_allclose(found[1:], CALIBRATION.probability(logit)[1:])
    raw = rated["raw_probability"].to_numpy(zero_copy_only=False)
    np.testing.assert_allclose(raw[1:], 1 / (1 + np.exp(-logit[1:])))
    assert rated["probability"].null_count == 1


def test_files_say_the_same_as_the_rows(tmp_path: Path) -> None:
    rows, table = results()
    report.write(tmp_path, rows, table, FACTS)
    saved = json.loads((tmp_path / "eval.json").read_text())
    assert saved["results"][-1]["metrics"]["auc"]["value"] == rows[-1].metrics["auc"].value
    assert saved["backbone_sha256"] == "abc"
    assert "jax" in saved["versions"]
    frame = pyarrow.csv.read_csv(tmp_path / "eval.csv").to_pylist()
    assert frame[0]["accuracy_low"] == pytest.approx(rows[0].metrics["accuracy"].low)
    listed = pyarrow.csv.read_csv(tmp_path / "scores.csv")
    assert listed["path"].to_pylist() == table["path"].to_pylist()
    assert listed["logit"].null_count == 1
    page = (tmp_path / "report.html").read_text()
    assert report.format_value(rows[0].metrics["auc"]) in page
    assert report.format_interval(rows[0].metrics["auc"]) in page
    assert "<script>" not in page
    assert page.count("<svg ") == 7


def test_a_report_without_a_single_readable_image_is_still_written(tmp_path: Path) -> None:
    rows, table = results()
    unread = pa.array(["damaged"] * 60, pa.string())
    table = table.set_column(table.schema.get_field_index("error"), "error", unread)
    report.write(tmp_path, rows, table, FACTS)
    assert "<svg" not in (tmp_path / "report.html").read_text()


def test_an_undefined_mean_names_its_generator() -> None:
    labels, logits, names = scored()
    labels = np.where(names == "a", 1, labels)
    rows = evaluate(labels, logits, names, bootstrap=0)
    assert "No mean: a has 0 readable nature and 20 readable ai images." in report.as_text(
        rows, 0.95
    )


def test_a_table_of_the_calibrated_threshold_appears_with_a_calibration() -> None:
    labels, logits, names = scored()
    without = report.as_text(evaluate(labels, logits, names), 0.95)
    with_one = report.as_text(evaluate(labels, logits, names, calibration=CALIBRATION), 0.95)
    assert "at the calibrated threshold" in with_one
    assert "at the calibrated threshold" not in without
    assert "Brier" in without


def test_the_worst_generator_is_named_in_every_form(tmp_path: Path) -> None:
    rows, table = results()
    report.write(tmp_path, rows, table, FACTS)
    worst = metrics.worst(rows)
    saved = json.loads((tmp_path / "eval.json").read_text())["worst_generator"]
    assert saved == {name: row.name for name, row in worst.items()}
    (sentence,) = report.worst_in_words(rows)
    assert f"({worst['auc'].name})" in sentence
    assert sentence in report.as_text(rows, 0.95)
    assert sentence in (tmp_path / "report.html").read_text()
