"""What a statistic is worth, on planted values; and the section of the report."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cinemae_jax.audit import findings, sentences
from cinemae_jax.evaluation import audited, signal
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.signal import CONTROL, MEAN, NLL, Condition, Drawn, Signal
from tests.evaluation.test_report import FACTS, pages, score_table, write_audit

OTHER = "relative"
NAMES = tuple((score, statistic) for score in (NLL, CONTROL, OTHER) for statistic in signal.SHORT)
PER_CLASS = 60
GENERATORS = ("gen_a", "gen_b")
RESAMPLING = Resampling(bootstrap=200)
PLACE = {name: i for i, name in enumerate(NAMES)}


def planted() -> Drawn:
    """gen_a and gen_b; noise everywhere except for the columns planted below.

    NLL s2 separates perfectly and repeats, AI lower.  OTHER s2 is the control and a little noise;
    the control itself separates partly.  OTHER s1 is the same for all images.
    """
    rng = np.random.default_rng(0)
    label = np.tile(np.repeat([0, 1], PER_CLASS), len(GENERATORS))
    generator = np.repeat(GENERATORS, 2 * PER_CLASS)

    def noise() -> np.ndarray:
        return rng.normal(size=(len(label), 2, len(NAMES)))

    mae, other = noise(), noise()
    mae[:, :, PLACE[NLL, MEAN]] = (rng.uniform(size=len(label)) - 3 * label)[:, None]
    control = label + rng.normal(size=len(label))
    mae[:, :, PLACE[CONTROL, MEAN]] = control[:, None]
    mae[:, :, PLACE[OTHER, MEAN]] = control[:, None] + 0.1 * noise()[:, :, 0]
    mae[:, :, PLACE[OTHER, "variability"]] = 1.0
    return Drawn(label, generator, NAMES, {"MAE": mae, "random weights": other})


Rows = dict[tuple[str, str, str], signal.SignalRow]


@pytest.fixture(scope="module")
def rows() -> Rows:
    found = signal.measure(planted(), RESAMPLING)
    return {(row.source, row.score, row.statistic): row for row in found}


def test_a_separable_statistic_that_repeats_is_perfect(rows: Rows) -> None:
    row = rows["MAE", NLL, MEAN]
    for one in (*row.generators, row.mean):
        assert one.retest == pytest.approx(1)
        assert (one.ks, one.auc.value, one.auc.high) == (1, 0, 0)
        assert one.overlap < 0.01
    assert row.lower == list(GENERATORS)
    assert row.higher == row.overlapping == []
    assert row.gains["random weights"].low > 0.2
    assert row.gains["log σ²"].low > 0


def test_an_exchangeable_statistic_is_worth_nothing(rows: Rows) -> None:
    row = rows["MAE", NLL, "variability"]
    assert abs(row.mean.auc.value - 0.5) < 0.1
    assert row.mean.auc.low < 0.5 < row.mean.auc.high
    assert abs(row.mean.retest) < 0.2
    assert row.mean.overlap > signal.MOST_OVERLAP
    assert row.mean.ks < 0.25
    assert row.gains["random weights"].low < 0 < row.gains["random weights"].high


def test_a_copy_of_the_control_has_nothing_beyond_it(rows: Rows) -> None:
    control, copy = rows["MAE", CONTROL, MEAN].mean, rows["MAE", OTHER, MEAN].mean
    assert control.auc.low > 0.6
    assert control.beyond.value == 0.5
    assert copy.auc.low > 0.6
    assert copy.beyond.low < 0.5 < copy.beyond.high
    assert rows["MAE", NLL, MEAN].mean.beyond.high < 0.1  # the other way: not explained by it


def test_a_curved_copy_of_the_control_leaves_nothing() -> None:
    control = np.random.default_rng(0).normal(size=100)
    np.testing.assert_array_equal(signal.residual(np.exp(2 * control), control), 0)
    other = np.random.default_rng(1).normal(size=100)
    assert np.corrcoef(signal.residual(other, control), other)[0, 1] > 0.9


def test_a_constant_has_no_retest_and_overlaps_with_itself(rows: Rows) -> None:
    worth = rows["MAE", OTHER, "variability"].mean
    assert np.isnan(worth.retest)
    assert (worth.auc.value, worth.ks, worth.overlap) == (0.5, 0, 1)


def test_an_unread_image_counts_for_no_source() -> None:
    drawn = planted()
    drawn.values["random weights"][0, 1, 3] = np.nan
    for row in signal.measure(drawn, Resampling(bootstrap=0)):
        assert [(g.nature, g.ai) for g in row.generators] == [
            (PER_CLASS - 1, PER_CLASS),
            (PER_CLASS, PER_CLASS),
        ]


def test_a_generator_of_one_class_is_left_out_and_named() -> None:
    drawn = planted()
    drawn.label[drawn.generator == "gen_b"] = 1
    assert signal.comparable(drawn) == (["gen_a"], ["gen_b"])
    assert {len(row.generators) for row in signal.measure(drawn, RESAMPLING)} == {1}


def test_overlap_is_that_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    for distance in (0.0, 1.0, 2.0, 4.0):
        one, two = rng.normal(size=(2, 4000))
        exact = 2 * norm.cdf(-distance / 2)
        assert signal.overlap(one, two + distance) == pytest.approx(exact, abs=0.03)
        assert signal.overlap(100 * one, 100 * (two + distance)) == pytest.approx(exact, abs=0.03)


def test_weighted_auc_is_scikit_learns_with_ties() -> None:
    rng = np.random.default_rng(0)
    is_ai, values = np.arange(40) % 2 == 1, rng.integers(0, 5, 40).astype(float)
    weights = rng.integers(0, 4, (3, 40)).astype(float)
    expected = [roc_auc_score(is_ai, values, sample_weight=one) for one in weights]
    np.testing.assert_allclose(signal.weighted_auc(is_ai, values, weights), expected)


# --- words and report ---------------------------------------------------------------------------


def section() -> Signal:
    drawn = planted()
    nll = np.stack([drawn.values["MAE"][:, 0, PLACE[NLL, MEAN]]] * 3, axis=1)
    curves = signal.curves(drawn.label, drawn.generator, nll, (1, 2, 3))
    rows = signal.measure(drawn, RESAMPLING)
    found = Signal(
        2, 1.0, OTHER, (Condition("equalised", tuple(rows), tuple(curves)),), too_few=("gen_c",)
    )
    return dataclasses.replace(found, sentences=tuple(sentences.signal_in_words(found)))


def test_sentences_say_where_the_nll_is_lower_and_what_is_noise() -> None:
    said = section().sentences
    assert "lower for AI in 2 of 2 generators (gen_a, gen_b)" in said[0]
    assert "higher in 0 of 2" in said[0]
    noise = [one for one in said if "draw of the masks" in one]
    assert [one.split(" is ")[0] for one in noise] == [f"{NLL} s1", f"{NLL} s3", f"{OTHER} s3"]
    (crowded,) = [one for one in said if "overlap" in one and one.split(" in ")[1].startswith(NLL)]
    assert "s1 in 2 of 2" in crowded
    assert "s2" not in crowded
    assert any(one.startswith(f"{NLL} s2") and "information beyond log σ²" in one for one in said)
    assert any(one.startswith(f"{OTHER} s2") and "no measurable" in one for one in said)
    better = [one for one in said if one.startswith(f"{NLL} s2 separates the classes better")]
    assert len(better) == 2  # than random weights, than log σ²


def test_a_curve_has_the_quartiles_of_its_images() -> None:
    nll = np.arange(8, dtype=float)[:, None] * [1, 10]
    nll[7] = np.nan
    label = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    nature, ai = signal.curves(label, np.full(8, "g"), nll, (1, 4))
    assert (nature.label, nature.patches, nature.median) == ("nature", (1, 4), (1, 10))
    assert (ai.low, ai.median, ai.high) == ((3.75, 37.5), (4.5, 45), (5.25, 52.5))


def test_the_section_survives_json_and_is_in_the_report(tmp_path: Path) -> None:
    table, found = score_table(), section()
    write_audit(tmp_path, table)
    for page in pages(tmp_path, table).values():
        assert "What a statistic is worth" not in page
    path = tmp_path / audited.FILE
    record = json.loads(path.read_text())
    record["signal"] = findings.as_json(found)
    record["verdict"] += found.sentences
    path.write_text(json.dumps(record, allow_nan=False))
    read, why_not = audited.read(path, FACTS)
    assert read is not None, why_not
    assert repr(read.signal) == repr(found)  # NaN equals nothing, not even itself
    for page in pages(tmp_path, table).values():
        assert "What a statistic is worth" in page
        assert page.count("the paper says that AI images have the lower NLL") == 1
    page = pages(tmp_path, table)["report.html"]
    assert 'aria-label="NLL against the number of masked patches, equalised images"' in page
    assert "0.00<small>0.00–0.00</small>" in page
