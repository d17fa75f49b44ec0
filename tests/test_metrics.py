import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from sklearn import metrics as sk

from cinemae_jax.evaluation import metrics, report
from cinemae_jax.evaluation.metrics import Row


def scored(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    logits = (labels - 0.5 + rng.normal(0, 1, n)).astype(np.float32)
    return labels, logits, np.where(np.arange(n) < n // 3, "a", "b")


def evaluate(labels: np.ndarray, logits: np.ndarray, names: np.ndarray, **options: object) -> list:
    settings = {
        "valid": np.ones(len(labels), bool),
        "bootstrap": 200,
        "confidence": 0.95,
        "seed": 0,
    } | options
    return metrics.evaluate(labels, logits, names, **settings)


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
    for name in metrics.METRICS:
        expected = (a.metrics[name].value + b.metrics[name].value) / 2
        assert mean.metrics[name].value == pytest.approx(expected)
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
    # binomial with p = 0.9: mean 54, standard deviation 2.3; a bootstrap is a bit too narrow
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
    assert a.metrics == alone.metrics


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


FACTS = {
    "backbone": "b",
    "backbone_sha256": "abc",
    "checkpoint_step": 3,
    "data_root": "data",
    "bad_images": {"nature": 0, "ai": 1},
    "low_context_images": 0,
    "left_out": {"extension .txt": 2},
    "settings": {"eval": {"confidence": 0.95, "bootstrap": 200}, "x": "</pre><script>"},
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
            "probability": pa.array(1 / (1 + np.exp(-logits)), mask=np.arange(60) == 0),
            **{
                name: pa.array(np.abs(logits), mask=np.arange(60) == 0)
                for name in ("variability", "mean_anomaly", "perturbation_sensitivity")
            },
        }
    )
    return evaluate(labels, logits, names), table


def test_files_say_the_same_as_the_rows(tmp_path: Path) -> None:
    rows, table = results()
    report.write(tmp_path, rows, table, FACTS)
    saved = json.loads((tmp_path / "eval.json").read_text())
    assert saved["results"][-1]["metrics"]["auc"]["value"] == rows[-1].metrics["auc"].value
    assert saved["backbone_sha256"] == "abc"
    assert "jax" in saved["versions"]
    frame = pyarrow.csv.read_csv(tmp_path / "eval.csv").to_pylist()
    assert frame[0]["accuracy_low"] == pytest.approx(rows[0].metrics["accuracy"].low)
    scores = pyarrow.csv.read_csv(tmp_path / "scores.csv")
    assert scores["path"].to_pylist() == table["path"].to_pylist()
    assert scores["logit"].null_count == 1
    page = (tmp_path / "report.html").read_text()
    assert report.format_value(rows[0].metrics["auc"]) in page
    assert report.format_interval(rows[0].metrics["auc"]) in page
    assert "<script>" not in page
    assert page.count("data:image/svg+xml;base64,") == 3


def test_a_report_without_a_single_readable_image_is_still_written(tmp_path: Path) -> None:
    rows, table = results()
    unread = pa.array(["damaged"] * 60, pa.string())
    table = table.set_column(table.schema.get_field_index("error"), "error", unread)
    report.write(tmp_path, rows, table, FACTS)
    assert "data:image/svg" not in (tmp_path / "report.html").read_text()


def test_an_undefined_mean_names_its_generator() -> None:
    labels, logits, names = scored()
    labels = np.where(names == "a", 1, labels)
    rows = evaluate(labels, logits, names, bootstrap=0)
    assert "No mean: a has 0 readable nature and 20 readable ai images." in report.as_text(
        rows, 0.95
    )
