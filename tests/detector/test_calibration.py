import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.special import expit, logit

from cinemae_jax.detector import calibration
from cinemae_jax.detector.calibration import Calibration, fit, needed, threshold
from cinemae_jax.evaluation import metrics

CLASSES = ("nature", "ai", "inconclusive")


def draw(seed: int, count: int, *, shift: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of an overconfident head that leans to AI; the true logit is 2 · shift · x."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    x = rng.normal(shift * (2 * labels - 1), 1)
    return 6 * shift * x + 2, labels


def test_calibration_improves_probabilities_of_new_images() -> None:
    for seed in range(5):
        found = fit(*draw(seed, 1000))
        new, labels = draw(100 + seed, 4000)
        before, after = expit(new), found.probability(new)
        assert metrics.ece(labels, after) < 0.5 * metrics.ece(labels, before)
        assert metrics.brier(labels, after) < metrics.brier(labels, before)


def test_scale_and_offset_are_those_of_the_truth() -> None:
    """p = sigmoid(2x) and logits 6x + 2; within 4 deviations, 0.0035 and 0.012 over 20 draws."""
    found = fit(*draw(0, 40_000))
    assert found.scale == pytest.approx(1 / 3, abs=0.014)
    assert found.offset == pytest.approx(-2 / 3, abs=0.05)


@pytest.mark.parametrize(("count", "rate"), [(19, 0.05), (200, 0.05), (250, 0.01), (137, 0.1)])
def test_the_promised_rates_hold_over_a_thousand_calibrations(count: int, rate: float) -> None:
    """Uniform logits: the true rate beyond a threshold is known exactly.

    It is Beta(r, n + 1 - r): mean r / (n + 1) with r = ⌊(n + 1) · rate⌋, which the mean of 1,000
    may miss by 4 of its standard errors; the 95 % range holds 95 ± 2.8 % of them (4 deviations).
    """
    drawn = np.random.default_rng(0).uniform(size=(1000, count))
    rates = 1 - np.array([threshold(logits, rate) for logits in drawn])
    error = 4 * rates.std() / math.sqrt(1000)
    expected = math.floor(round((count + 1) * rate, 9)) / (count + 1)
    assert expected <= rate
    assert rates.mean() == pytest.approx(expected, abs=error)
    low, high = fit(drawn[0], np.zeros(count), fpr=rate).fpr_range(0.95)
    assert ((low <= rates) & (rates <= high)).mean() == pytest.approx(0.95, abs=0.028)


def test_the_promise_survives_ties_and_outliers() -> None:
    """Coarse, heavy-tailed logits: share of new photographs called AI, over 1,000 calibrations."""
    held_out, new = np.round(np.random.default_rng(1).standard_cauchy((2, 1000, 99)))
    called = [(z > threshold(logits, 0.05)).mean() for logits, z in zip(held_out, new, strict=True)]
    assert np.mean(called) <= 0.05 + 4 * np.std(called) / math.sqrt(1000)


def test_rounding_does_not_lose_an_image() -> None:
    """100 · 0.29 is 28.999999999999996 in floating point: 28 of 99 lie above, not 27."""
    assert (np.arange(99) > threshold(np.arange(99.0), 0.29)).sum() == 28


def test_both_thresholds_are_used_at_their_own_rate() -> None:
    """On the held-out images themselves at most r - 1 of n lie beyond a threshold."""
    z, y = draw(2, 800)
    found = fit(z, y, fpr=0.02, fnr=0.1)
    assert (z[y == 0] > found.ai_threshold).sum() == math.floor(401 * 0.02) - 1
    assert (z[y == 1] < found.nature_threshold).sum() == math.floor(401 * 0.1) - 1


def test_probability_rises_with_the_logit_and_the_verdict_follows() -> None:
    for shift in (0.3, 1.0, 4.0):
        found = fit(*draw(0, 400, shift=shift))
        grid = np.linspace(-300, 300, 5001)
        assert (np.diff(found.probability(grid)) >= 0).all()
        order = [("nature", "inconclusive", "ai").index(one) for one in found.verdict(grid)]
        assert (np.diff(order) >= 0).all()
        assert set(order) == {0, 1, 2}


def test_between_separated_classes_an_image_is_inconclusive() -> None:
    labels = np.arange(200) % 2
    found = fit(np.where(labels == 1, 10.0, -10.0) + np.linspace(-1, 1, 200), labels)
    assert found.nature_threshold > found.ai_threshold
    assert found.verdict([-11, 0, 11]).tolist() == ["nature", "inconclusive", "ai"]
    # without errors the scale stays finite and no probability is 1
    assert 0.9 < found.probability(10.0) < 1
    assert found.probability([-10, 10]).sum() == pytest.approx(1, abs=0.01)


def test_order_and_unit_of_the_logits_do_not_matter() -> None:
    z, y = draw(3, 300)
    found = fit(z, y)
    order = np.random.default_rng(0).permutation(300)
    shuffled = fit(z[order], y[order])
    moved = fit(1000 * z - 7, y)
    new = np.linspace(-30, 30, 101)
    assert shuffled.probability(new) == pytest.approx(found.probability(new), abs=1e-9)
    assert moved.probability(1000 * new - 7) == pytest.approx(found.probability(new), abs=1e-6)
    for other, at in ((shuffled, new), (moved, 1000 * new - 7)):
        assert other.verdict(at).tolist() == found.verdict(new).tolist()


def test_swapped_classes_mirror_the_calibration() -> None:
    z, y = draw(4, 300)
    found, mirrored = fit(z, y, fpr=0.1, fnr=0.02), fit(-z, 1 - y, fpr=0.02, fnr=0.1)
    assert mirrored.probability(-z) == pytest.approx(1 - found.probability(z), abs=1e-6)
    assert mirrored.ai_threshold == -found.nature_threshold
    assert mirrored.nature_threshold == -found.ai_threshold


def test_a_head_that_knows_nothing_gets_the_share_of_ai_images() -> None:
    z, y = draw(5, 300)
    for worthless in (-z, np.zeros(300)):  # worse than chance, and constant
        found = fit(worthless, y)
        assert found.scale == 0
        assert found.probability([-9, 0, 9]) == pytest.approx([0.5] * 3)
        assert np.isnan(found.probability(np.nan))


def test_low_context_and_nan_are_inconclusive() -> None:
    found = fit(*draw(0, 400))
    extreme = np.array([-1e3, 1e3, np.nan, -np.inf, np.inf])
    sure = ["nature", "ai", "inconclusive", "nature", "ai"]
    assert found.verdict(extreme).tolist() == sure
    assert found.verdict(extreme, True).tolist() == ["inconclusive"] * 5
    one = found.verdict(extreme, [True, False, False, False, False]).tolist()
    assert one == ["inconclusive", *sure[1:]]
    assert str(found.verdict(1e3)) == "ai"
    assert found.probability(np.zeros((2, 3))).shape == found.verdict(np.zeros((2, 3))).shape


@pytest.mark.parametrize(("rate", "least"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.3, 3)])
def test_too_few_images_give_no_verdict_rather_than_a_promise(rate: float, least: int) -> None:
    assert needed(rate) == least
    for count, promised in ((least, True), (least - 1, False)):
        z = np.concatenate([np.linspace(-1, 1, count), np.linspace(9, 10, 200)])
        y = np.arange(len(z)) >= count
        found = fit(z, y, fpr=rate)
        assert (found.ai_threshold is not None) == promised
        assert ("ai" in found.verdict([1e6])) == promised
        assert found.verdict([-1e6]).tolist() == ["nature"]
        assert any("no image is called ai" in line for line in found.in_words()) != promised
        if not promised:
            assert found.fpr_range() == (0, 0)
            assert f"{least:,} held-out nature images" in " ".join(found.in_words())


@pytest.mark.parametrize("labels", [[], [0], [1], [0, 1], [0] * 500, [1] * 500])
def test_a_set_without_enough_of_a_class_leaves_probabilities_alone(labels: list[int]) -> None:
    y = np.array(labels, int)
    found = fit(np.linspace(-1, 1, len(y)), y)
    assert found.probability([-2, 3]) == pytest.approx(expit([-2, 3]))
    assert any("not calibrated" in line for line in found.in_words())
    assert set(found.verdict(np.linspace(-9, 9, 50))) <= set(CLASSES)


def test_json_and_back_is_the_same_to_the_bit() -> None:
    for found in (fit(*draw(7, 300), images="abc"), fit(*draw(7, 30), fpr=0.001), fit([], [])):
        again = Calibration.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
        assert again == found


def test_errors_name_what_is_wrong() -> None:
    z, y = draw(0, 40)
    with pytest.raises(ValueError, match="1 of 40"):
        fit(np.where(np.arange(40) == 3, np.nan, z), y)
    with pytest.raises(ValueError, match="labels"):
        fit(y, z)
    with pytest.raises(ValueError, match="shape"):
        fit(z[1:], y)
    with pytest.raises(ValueError, match=r"calibration\.fpr"):
        fit(z, y, fpr=0)
    record = fit(z, y).to_dict()
    with pytest.raises(ValueError, match="temperature"):
        Calibration.from_dict(record | {"temperature": 1.0})
    with pytest.raises(ValueError, match="scale"):
        dataclasses.replace(fit(z, y), scale=-1.0)


def test_platt_is_the_maximum_of_its_likelihood() -> None:
    """No small step in scale or offset is better, for Platt's smoothed targets."""
    z, y = draw(8, 60)
    z, y = np.append(z, z[y == 0]), np.append(y, y[y == 0])  # twice as many photographs
    found = fit(z, y)
    targets = np.where(y == 1, 31 / 32, 1 / 62)

    def loss(scale: float, offset: float) -> float:
        s = scale * z + offset
        return float((np.where(y == 1, 2, 1) * (np.logaddexp(0, s) - targets * s)).sum())

    best = loss(found.scale, found.offset)
    for step in (-1e-3, 1e-3):
        assert loss(found.scale + step, found.offset) > best
        assert loss(found.scale, found.offset + step) > best
    assert logit(found.probability(0.0)) == pytest.approx(found.offset)
    assert calibration.MIN_IMAGES <= 30


# --- promises by source -------------------------------------------------------------------------


def by_source(num_sources: int, count: int, *, spread: float) -> tuple[np.ndarray, ...]:
    """Logits of photographs whose sources differ, and of AI images; labels; sources."""
    rng = np.random.default_rng(num_sources)
    sources = np.arange(num_sources).repeat(count)
    nature = rng.normal(spread * rng.normal(size=num_sources)[sources], 1)
    logits = np.concatenate([nature, rng.normal(8, 1, 100)])
    labels = (np.arange(len(logits)) >= len(nature)).astype(int)
    return logits, labels, np.concatenate([sources, np.full(100, num_sources)])


def test_nine_of_ten_sources_keep_the_promise() -> None:
    logits, labels, sources = by_source(20, 100, spread=1.0)
    pooled, found = fit(logits, labels), fit(logits, labels, sources=sources)
    assert (pooled.num_sources, found.num_sources) == (0, 20)
    assert pooled.ai_threshold is not None
    assert found.ai_threshold is not None
    rates = {
        one: np.array([(logits[sources == s] > one.ai_threshold).mean() for s in range(20)])
        for one in (pooled, found)
    }
    assert (rates[pooled] > 0.05).sum() > 2  # what pooling hides
    assert (rates[found] > 0.05).sum() <= 2
    assert any("90% of 20 sources" in line for line in found.in_words())
    assert found.nature_threshold == pooled.nature_threshold


def test_sources_that_are_alike_change_little() -> None:
    logits, labels, sources = by_source(20, 400, spread=0.0)
    pooled, found = fit(logits, labels), fit(logits, labels, sources=sources)
    assert found.ai_threshold == pytest.approx(pooled.ai_threshold, abs=0.35)


@pytest.mark.parametrize(("num_sources", "count"), [(4, 100), (20, 9)])
def test_few_or_small_sources_are_pooled(num_sources: int, count: int) -> None:
    logits, labels, sources = by_source(num_sources, count, spread=1.0)
    assert fit(logits, labels, sources=sources) == fit(logits, labels)


def test_a_record_of_before_sources_is_read() -> None:
    found = fit(*draw(0, 200))
    record = found.to_dict()
    del record["num_sources"]
    assert Calibration.from_dict(record) == found
