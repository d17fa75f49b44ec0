import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cinemae_jax import main
from cinemae_jax.audit import conditions, corruptions, edits, robustness
from cinemae_jax.audit.attacks import Attack, make_attack, mean_logit, mean_nll
from cinemae_jax.audit.conditions import Scored
from cinemae_jax.audit.corruptions import SUITE, Brightness, Corrupted, CropPart, Jpeg, Noise
from cinemae_jax.audit.edits import (
    TONES,
    ColourTransfer,
    Contrast,
    Occlude,
    Saturation,
    ToneCurve,
    Uploads,
)
from cinemae_jax.audit.rescoring import Attacker, Rescorer
from cinemae_jax.audit.robustness import NamedChange
from cinemae_jax.data import catalog
from cinemae_jax.data.transforms import Crop
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import loading
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.model import masking
from cinemae_jax.model.cinemae import Backbone, extract_features, pixel_features
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.head import HeadState, Normalizer, init_params
from cinemae_jax.model.mae import normalize_images
from tests.conftest import SMALL
from tests.helpers.pictures import encoded, gradient, noise
from tests.helpers.small_run import small_run

pytestmark = pytest.mark.slow

# --- corruptions --------------------------------------------------------------------------------


@pytest.mark.parametrize("corruption", SUITE, ids=repr)
def test_a_corruption_is_a_function_of_the_image_and_its_seed(
    corruption: corruptions.Corruption,
) -> None:
    image = Image.fromarray(gradient(60, 80))
    one, again, other = (corruption(image, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert one.mode == "RGB"
    np.testing.assert_array_equal(one, again)
    drawn = isinstance(corruption, Noise | CropPart | Occlude | ColourTransfer)
    assert (np.asarray(one).tobytes() != np.asarray(other).tobytes()) == drawn
    unlike = one.size != image.size or (np.asarray(one) != np.asarray(image)).any()
    assert unlike or corruption.family == "social network"  # which leaves a gradient as it is


def test_no_two_corruptions_are_alike() -> None:
    assert len(set(map(repr, SUITE))) == len(SUITE)
    assert len({(one.family, one.strength) for one in SUITE}) == len(SUITE)


def test_what_follows_a_corruption_gets_its_very_pixels() -> None:
    data = encoded(noise(50, 70), "PNG")
    plain, rng = Crop(32, resize=0), np.random.default_rng(0)
    same = Corrupted(plain, Brightness(1.0))
    assert same.shape == plain.shape
    np.testing.assert_array_equal(same(data, rng), plain(data, rng))
    darker = Corrupted(plain, Brightness(0.5))(data, rng)
    np.testing.assert_allclose(darker, plain(data, rng) / 2, atol=1)


def test_noise_has_its_deviation_and_lower_quality_costs_more() -> None:
    grey = Image.fromarray(np.full((100, 100, 3), 128, np.uint8))
    got = np.asarray(Noise(5.0)(grey, np.random.default_rng(0)), np.float64)
    assert got.std() == pytest.approx(5, rel=0.02)  # of 30,000 values: 0.4 %
    image = Image.fromarray(noise(64, 64))
    errors = [
        np.abs(np.asarray(Jpeg(q)(image, np.random.default_rng(0)), int) - noise(64, 64)).mean()
        for q in (95, 60, 30)
    ]
    assert errors == sorted(errors)


def test_occlusion_hides_its_share_in_the_mean_colour() -> None:
    image = noise(80, 120)  # squares of 10 pixels
    changed = np.asarray(Occlude(0.25)(Image.fromarray(image), np.random.default_rng(0)))
    hidden = (changed == image.mean(axis=(0, 1)).round()).all(axis=2)
    assert hidden.mean() == pytest.approx(0.25, abs=0.01)
    np.testing.assert_array_equal(changed[~hidden], image[~hidden])


def test_colour_edits_move_what_they_name() -> None:
    image, rng = Image.fromarray(noise(64, 64) // 2 + 64), np.random.default_rng(0)
    before = np.asarray(image, float)
    assert np.asarray(Contrast(0.5)(image, rng), float).std() == pytest.approx(
        before.std() / 2, rel=0.05
    )
    grey = np.asarray(Saturation(0.0)(image, rng), int)
    assert np.abs(grey - grey[..., :1]).max() == 0
    moved = np.asarray(ColourTransfer(1.0)(image, rng).convert("YCbCr"), float)
    means = [palette[0] for palette in edits.PALETTES]
    assert min(np.abs(moved.mean(axis=(0, 1)) - mean).max() for mean in means) < 3
    warm, cool = (
        np.asarray(ToneCurve(n)(image, rng), float).mean((0, 1)) for n in ("warm", "cool")
    )
    assert warm[0] > cool[0]
    assert warm[2] < cool[2]
    assert all(len(set(map(len, curves))) == 1 for curves in TONES.values())


def test_an_uploaded_image_fits_the_service() -> None:
    image = Image.fromarray(noise(900, 1800))
    assert max(Uploads(720, 60)(image, np.random.default_rng(0)).size) == 718


# --- what changes do ----------------------------------------------------------------------------

CALIBRATION = Calibration(1.0, 0.0, 1.0, -1.0, 0.05, 0.05, 100, 100)


def test_flips_and_stability_are_counted(data_set: Path) -> None:
    """Seven photographs and seven AI images, all right; then some move, and one is lost."""
    images = catalog.scan(data_set).select(generators=["gen_a"], split="val")
    nature, ai = (np.flatnonzero(images.labels == label) for label in (0, 1))
    right = np.where(images.labels == 1, 2.0, -2.0)
    low = np.zeros(14, bool)
    moved, lost = right.copy(), right.copy()
    moved[nature[:2]] = 2.0  # nature → ai
    moved[ai[0]] = 0.5  # ai → inconclusive: the same side of 0
    lost[ai[1]] = np.nan
    still = {"s": np.zeros((14, 1))}
    shifted = {"s": np.where(images.labels == 1, 1.0, -2.0)[:, None]}
    found = robustness.measure(
        images,
        Scored(right, low, still),
        {
            NamedChange("m", "f", 1.0): Scored(moved, low, shifted),
            NamedChange("l", "f", 2.0): Scored(lost, low, still),
        },
        CALIBRATION,
        Resampling(bootstrap=20),
    )
    first, second = found.effects
    assert {k: n for k, n in first.flips.items() if n} == {"nature → ai": 2, "ai → inconclusive": 1}
    assert {k: n for k, n in first.crossings.items() if n} == {"nature → ai": 2}
    assert {(f["label"], f["before"], f["after"]) for f in first.flipped} == {
        ("nature", "nature", "ai"),
        ("ai", "ai", "inconclusive"),
    }
    assert first.shifts == {"s": {"nature": pytest.approx(-2.0), "ai": pytest.approx(1.0)}}
    assert second.shifts["s"]["ai"] == 0  # without the lost image
    assert not any(second.flips.values())
    assert second.comparison.after[0].bad == 1
    expected = np.ones(14)
    expected[nature[:2]] = 0.5
    np.testing.assert_array_equal(found.side_stability, expected)
    expected[ai[0]] = 0.5
    np.testing.assert_array_equal(found.stability, expected)  # the lost one counts once: 1
    said = robustness.in_words(found, "corruptions")
    assert "is m:" in said[0]
    assert all(part in said[1] for part in ("11 of 14", "calibrated verdict", "all corruptions"))
    listed = robustness.stability_rows(images, found)
    assert [row["verdict_stability"] for row in listed] == [0.5] * 3 + [1.0] * 11


# --- the differentiable path --------------------------------------------------------------------

CONFIG = DetectorConfig(hidden=8)


def keys_and_runs(count: int, config: DetectorConfig = CONFIG) -> tuple[jax.Array, jax.Array]:
    keys = masking.example_keys(jax.random.key(5), jnp.arange(count, dtype=jnp.uint32))
    return keys, jnp.tile(jnp.arange(config.num_runs), (count, 1))


def some_head(config: DetectorConfig) -> HeadState:
    """Random, with a last layer of MLP_δ that is not zero."""
    params = init_params(config, jax.random.key(0), SMALL.width, 3)
    moved = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), params)
    return HeadState(moved, Normalizer(jnp.zeros(24), jnp.ones(24), jnp.zeros(3), jnp.ones(3)))


def test_only_pixels_are_differentiable_and_only_on_the_attacks_path(backbone: Backbone) -> None:
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    keys, runs = keys_and_runs(2)
    pixels = normalize_images(images)

    @jax.jit
    def both(backbone: Backbone, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.grad(total, argnums=(0, 1), allow_int=True)(backbone, pixels)

    def total(backbone: Backbone, pixels: jax.Array) -> jax.Array:
        features = pixel_features(backbone, pixels, keys, runs, CONFIG)
        return features.f_global[:, :5].sum() + features.terms.mismatch.sum()

    of_backbone, of_pixels = both(backbone, pixels)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(of_backbone.params))
    assert (np.abs(of_pixels) > 0).mean() > 0.9
    extract = jax.jit(extract_features, static_argnums=4)
    path = jax.jit(pixel_features, static_argnums=4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        extract(backbone, images, keys, runs, CONFIG),
        path(backbone, pixels, keys, runs, CONFIG),
    )


@pytest.mark.parametrize("epsilon", [0.0, 1.0, 2.5, 8.0])
def test_an_attack_stays_in_its_box_and_goes_the_right_way(
    backbone: Backbone, epsilon: float
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    images[0] = np.where(images[0] > 127, 255, 0)  # nowhere to go on one side
    labels = jnp.array([0, 0, 1, 1])
    keys, runs = keys_and_runs(4)
    head = some_head(CONFIG)
    push = attacker(CONFIG)
    changed, undefined = push(
        backbone,
        head,
        jax.random.key(5),
        jnp.asarray(images),
        jnp.arange(4, dtype=jnp.uint32),
        labels,
        jnp.float32(epsilon),
    )
    assert changed.dtype == jnp.uint8
    assert not np.asarray(undefined).any()
    difference = np.asarray(changed, int) - images
    assert np.abs(difference).max() == np.floor(epsilon)
    if not epsilon:
        return
    before, after = (
        scored(backbone, head, normalize_images(jnp.asarray(x)), keys, runs)
        for x in (images, changed)
    )
    towards = np.where(np.asarray(labels) == 1, -1, 1)
    assert (towards * (np.asarray(after) - np.asarray(before)) > 0).all()


def test_an_attack_on_the_score_moves_the_mean_anomaly_both_ways(backbone: Backbone) -> None:
    images = np.random.default_rng(1).integers(80, 160, (4, 32, 32, 3), dtype=np.uint8)
    keys, runs = keys_and_runs(4)
    head, labels = some_head(CONFIG), jnp.array([1, 1, 0, 0])
    push = jax.jit(make_attack(CONFIG, Attack(steps=3, draws=2), mean_nll))
    given = jax.random.key(5), jnp.asarray(images), jnp.arange(4, dtype=jnp.uint32), labels
    changed, undefined = push(backbone, head, *given, jnp.float32(4))
    assert not undefined.any()

    @jax.jit
    def nll(images: jax.Array) -> jax.Array:
        return mean_nll(backbone, head, normalize_images(images), keys, runs, CONFIG, 1)

    moved = np.asarray(nll(changed) - nll(jnp.asarray(images)))
    assert (moved[:2] < 0).all()
    assert (moved[2:] > 0).all()


@functools.cache
def attacker(config: DetectorConfig) -> Any:
    """Compiled once for all ε."""
    return jax.jit(make_attack(config, Attack(steps=3, draws=2)))


scored = jax.jit(lambda b, h, p, k, r: mean_logit(b, h, p, k, r, CONFIG, 1))


def test_an_undefined_gradient_is_reported_and_changes_nothing(backbone: Backbone) -> None:
    """With one run s3 is the deviation of one number, whose root has no derivative."""
    config = DetectorConfig(num_runs=1, hidden=8)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    ids, labels = jnp.arange(2, dtype=jnp.uint32), jnp.array([0, 1])
    given = jax.random.key(5), images, ids, labels, jnp.float32(4)
    changed, undefined = attacker(config)(backbone, some_head(config), *given)
    same = np.asarray(changed == images).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same, undefined)


def test_accuracy_falls_with_epsilon_on_a_trained_head(
    data_set: Path, backbone_file: Path, tmp_path: Path
) -> None:
    """At ε = 0 nothing changes, bit for bit; then the margin falls, and accuracy never rises."""
    detector = loading.load(small_run(data_set, backbone_file))
    images = catalog.scan(data_set).select(split="val")
    replicas = detector.devices()
    score = Rescorer(detector, replicas, BadImages(tmp_path / "bad.csv"))
    attack = Attacker(detector, replicas, Attack(steps=4, draws=2))
    clean = score(images, conditions.unchanged)
    towards = np.where(images.labels == 1, 1, -1)
    margins, accuracies = [], []
    for epsilon in (0.0, 4.0, 16.0, 48.0):
        found = score.attacked(images, attack, epsilon)
        if not epsilon:
            np.testing.assert_array_equal(found.logit, clean.logit)
        margins.append((towards * found.logit).mean())
        accuracies.append(((found.logit > 0) == (images.labels == 1)).mean())
    assert margins == sorted(margins, reverse=True)
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[-1] < accuracies[0] - 0.3
    assert not attack.undefined


def test_the_command_reports_corruptions_and_attacks(
    data_set: Path,
    backbone_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(corruptions, "SUITE", (Jpeg(30), Noise(10.0)))
    file, workdir = tmp_path / "audit.json", small_run(data_set, backbone_file)
    argv = ["audit", str(data_set), "--detector", str(workdir), "--json", str(file)]
    options = "--robustness --no-controls --bootstrap 20 --images 5 --attack-images 2"
    assert main.main([*argv, *options.split(), "--attack-steps", "2", "--attack-draws", "1"]) == 0
    printed = capsys.readouterr().out
    assert "--no-controls" in printed
    assert "4 attacks is PGD ε" in printed
    report = json.loads(file.read_text())
    assert [one["change"]["name"] for one in report["corruptions"]] == [
        "Jpeg(quality=30)",
        "Noise(sigma=10.0)",
    ]
    assert len(report["stability"]) == 20
    assert report["attacks"]["num_images"] == 8
    assert [one["change"]["strength"] for one in report["attacks"]["effects"]] == [1, 2, 4, 8]
    of_nll = report["attacks"]["nll_effects"]
    assert [one["change"]["strength"] for one in of_nll] == [2, 8, 2, 8]
    moved = [one["shifts"]["mean_anomaly"] for one in of_nll]
    # of noisy images: on smooth ones, two steps are too long to lower anything
    lowered, further, raised, higher = (one["ai"] for one in moved)
    assert further < lowered < 0 < raised < higher, moved
    assert "how far statistics move" in printed


def test_an_attack_needs_a_step() -> None:
    with pytest.raises(ValueError, match="steps"):
        Attack(steps=0)
    assert Attack() == Attack(steps=10, draws=4)
