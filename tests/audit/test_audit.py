import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from cinemae_jax import main
from cinemae_jax.audit import conditions, controls, retraining, sentences
from cinemae_jax.audit.conditions import Change, Scored
from cinemae_jax.audit.corruptions import DownUp
from cinemae_jax.audit.options import AuditOptions
from cinemae_jax.audit.rescoring import Rescorer
from cinemae_jax.data import catalog, loader
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.decode import decode, open_header
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import loading
from cinemae_jax.evaluation import metrics, phrases
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.metrics import ScoredImages
from cinemae_jax.features.run import Run
from cinemae_jax.features.splits import Data
from cinemae_jax.model import masking
from cinemae_jax.model.cinemae import Backbone, extract_features
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.mae import normalize_images, patchify, to_target, unpatchify
from tests.conftest import SMALL
from tests.helpers.pictures import saved
from tests.helpers.planted import planted_set, smooth_image, write_files
from tests.helpers.small_run import small_run

pytestmark = pytest.mark.slow

RESAMPLING = Resampling(bootstrap=50)
HOW = {"side": 64, "quality": 80}

# --- a detector of file formats -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Format:
    """A transform whose only pixel says whether the file is a PNG."""

    shape = (1,)
    global_shape = ()

    def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        return np.array([255 * (open_header(data).image.format == "PNG")], np.uint8)


@dataclasses.dataclass(frozen=True)
class Sharpness:
    """A transform whose only pixel is high for smooth images."""

    shape = (1,)
    global_shape = ()

    def __call__(self, data: bytes, rng: np.random.Generator) -> np.ndarray:
        grey = np.asarray(decode(data).convert("L"), np.float64)
        return np.array([max(0, 255 - 20 * np.abs(np.diff(grey)).mean())], np.uint8)


@dataclasses.dataclass(frozen=True)
class Reads:
    """A detector: AI where the pixel of its transform is above 127."""

    transform: Format | Sharpness

    def __call__(self, images: Catalog, change: Change) -> Scored:
        source = loader.from_catalog(images)
        shown = loader.Loader(source, change(self.transform))
        (batch,) = shown.eval_batches(batch_size=len(images))
        logit = np.where(batch["valid"], batch["image"][:, 0] / 127.5 - 1.0, np.nan)
        return Scored(logit, np.zeros(len(images), bool))


def rescored(root: Path) -> Comparison:
    images, score = catalog.scan(root).select(split="val"), Reads(Format())
    clean = score(images, conditions.unchanged)
    return conditions.equalised(score, images, clean, **HOW, resampling=RESAMPLING)


def accuracy(rows: list) -> list[float]:
    return [row.metrics["accuracy"].value for row in rows]


def test_a_detector_of_file_formats_is_caught(tmp_path: Path) -> None:
    """All right as the files are, chance once they are equalised; for every generator."""
    found = rescored(planted_set(tmp_path, confounded=True, splits=("val",)))
    assert [row.name for row in found.before] == ["gen_a", "gen_b", "mean"]
    assert accuracy(found.before) == [1, 1, 1]
    assert accuracy(found.after) == [0.5, 0.5, 0.5]
    assert accuracy(found.difference) == [-0.5, -0.5, -0.5]
    of_accuracy, of_auc = phrases.equalised_in_words(found, **HOW)
    for part in ("accuracy falls", "100.0 %", "50.0 %", "-50.0 [-50.0, -50.0]"):
        assert part in of_accuracy
    for part in ("AUC falls", "1.000", "0.500"):
        assert part in of_auc


def test_a_clean_set_passes(tmp_path: Path) -> None:
    found = rescored(planted_set(tmp_path, confounded=False, splits=("val",)))
    assert accuracy(found.before) == accuracy(found.after) == [0.5, 0.5, 0.5]
    for said in phrases.equalised_in_words(found, **HOW):
        assert "falls" not in said
        assert "rises" not in said


def test_photographs_that_a_push_makes_ai_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = {}
    for i in range(8):
        noisy = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        files[f"gen_a/imagenet_x/val/nature/{i}.png"] = saved(Image.fromarray(noisy))
        files[f"gen_a/imagenet_x/val/ai/{i}.png"] = saved(smooth_image(rng))
    images, score = catalog.scan(write_files(tmp_path, files)), Reads(Sharpness())
    clean = score(images, conditions.unchanged)
    (found,) = conditions.pushed(
        score, images, clean, resampling=RESAMPLING, pushes=[DownUp(8)]
    ).values()
    assert (found.before[0].nature, found.before[0].ai) == (8, 0)
    shares = [
        phrases.called_ai(rows[-1].metrics["nature_accuracy"]).value
        for rows in (found.before, found.after)
    ]
    assert shares == [0, 1]
    (said,) = sentences.pushes_in_words({"DownUp(factor=8)": found})
    assert "DownUp(factor=8)" in said
    assert said.index(" 0.0 %") < said.index("100.0 %") < said.index("+100.0 [+100.0, +100.0]")


def test_a_sample_is_even_and_the_same_in_any_order(data_set: Path) -> None:
    images = catalog.scan(data_set).select(split="val")
    turned = dataclasses.replace(images, table=images.table.take(np.arange(len(images))[::-1]))
    some = conditions.sample(images, 3)
    cells = zip(some.table["generator"].to_pylist(), some.labels.tolist(), strict=True)
    assert set(collections.Counter(cells).values()) == {3}
    assert len(some) == 12
    assert set(some.table["path"].to_pylist()) == set(
        conditions.sample(turned, 3).table["path"].to_pylist()
    )
    assert conditions.sample(images, 0) is images
    assert len(conditions.sample(images, 99)) == len(images)


def test_unread_images_count_in_neither_scoring(data_set: Path) -> None:
    images = catalog.scan(data_set).select(generators=["gen_a"], split="val")
    right = np.where(images.labels == 1, 1.0, -1.0)
    low = np.zeros(len(images), bool)
    one, two = right.copy(), right.copy()
    one[0], two[1] = np.nan, np.nan
    found = conditions.compared(images, Scored(one, low), Scored(two, low), RESAMPLING)
    for rows in (found.before, found.after, found.difference):
        assert rows[0].bad == 2


# --- controls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["raw", "norm_pix"])
def test_inpainting_is_a_normalised_convolution_of_the_visible_pixels(target: str) -> None:
    """Against SciPy, whose kernel is truncated at 20 deviations: beyond any border here."""
    model = dataclasses.replace(SMALL, target=target)
    rng = np.random.default_rng(0)
    pixels = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    visible = jnp.array([[0, 5, 10], [3, 9, 15]])
    masked = masking.masked_ids(visible, model.num_patches)
    got = controls.gaussian_inpainting(model, width=0.75)(pixels, visible, masked)
    seen = jnp.zeros((2, 16, 64 * 3)).at[jnp.arange(2)[:, None], visible].set(1.0)
    weight = np.asarray(unpatchify(seen, 8), np.float64)

    def smooth(images: np.ndarray) -> np.ndarray:
        sigma = (0, 6, 6, 0)
        return gaussian_filter(images, sigma, mode="constant", truncate=20)

    filled = smooth(weight * np.asarray(pixels, np.float64)) / smooth(weight)
    patches = to_target(patchify(jnp.asarray(filled, jnp.float32), 8), target)
    expected = jnp.take_along_axis(patches, masked[..., None], axis=1)
    scale = 1e-4 if target == "raw" else 1e-2  # norm_pix divides by a small deviation
    np.testing.assert_allclose(got, expected, atol=scale)


def test_inpainting_never_looks_at_masked_pixels_and_survives_its_kernels_end() -> None:
    model = dataclasses.replace(SMALL, image_size=256)
    rng = np.random.default_rng(0)
    one, two = (jnp.asarray(rng.normal(size=(1, 256, 256, 3)), jnp.float32) for _ in range(2))
    visible = jnp.array([[0]])  # a corner: 40 deviations from the other one
    masked = masking.masked_ids(visible, model.num_patches)
    two = two.at[:, :8, :8].set(one[:, :8, :8])
    inpaint = controls.gaussian_inpainting(model)
    got = inpaint(one, visible, masked)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, inpaint(two, visible, masked))
    far = one[0, :8, :8].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(got[0, -1].reshape(-1, 3)[-1], far, atol=1e-5)


def test_a_control_changes_the_reconstruction_and_nothing_else(backbone: Backbone) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    keys = masking.example_keys(jax.random.key(0), jnp.arange(3, dtype=jnp.uint32))
    runs = jnp.tile(jnp.arange(2), (3, 1))
    given = jnp.asarray(images), keys, runs, DetectorConfig()
    extract = jax.jit(extract_features, static_argnums=(4, 5))
    usual = extract(backbone, *given)

    def zeros(pixels: jax.Array, visible: jax.Array, masked: jax.Array) -> jax.Array:
        return jnp.zeros((*masked.shape, SMALL.patch_dim))

    changed = extract(backbone, *given, zeros)
    np.testing.assert_allclose(changed.f_global, usual.f_global, atol=1e-5)
    np.testing.assert_array_equal(changed.masked, usual.masked)
    np.testing.assert_allclose(changed.terms.deviation, usual.terms.deviation, rtol=1e-5)
    patches = np.asarray(patchify(normalize_images(jnp.asarray(images)), 8))
    truth = patches[np.arange(3)[:, None, None], np.asarray(usual.masked)]
    np.testing.assert_allclose(changed.terms.mismatch, (truth**2).mean(axis=-1), rtol=1e-4)


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (DetectorConfig(), 8),
        (DetectorConfig(fusion="lcas"), 5),  # "LCAS alone" is the recipe itself
        (DetectorConfig(fusion="global", num_runs=0), 3),
    ],
)
def test_no_control_is_trained_twice(config: DetectorConfig, names: int) -> None:
    made = controls.controls(config)
    assert made[0].name == controls.RECIPE
    assert len({(one.source, one.detector) for one in made}) == len(made) == names


def test_the_retrained_recipe_is_the_detector(
    data_set: Path, backbone_file: Path, tmp_path: Path
) -> None:
    """From features in memory, on other devices: the same head, so the same scores.

    To 0.01 of a logit: float32 sums over another number of devices, in 25 steps.
    """
    detector = loading.load(small_run(data_set, backbone_file))
    everything = catalog.scan(data_set)
    learned = everything.select(generators=["gen_a"], split="train")
    data = Data(*learned.hold_out(0.25), everything.select(split="val"))
    bad = BadImages(tmp_path / "bad.csv")
    replicas = detector.devices()
    recipe = controls.controls(detector.settings.detector)[0]
    again = retraining.Retrainer(detector, data, Run(tmp_path, replicas, bad))(recipe)
    before = Rescorer(detector, replicas, bad)(data.test, conditions.unchanged)
    np.testing.assert_allclose(again.logit, before.logit, atol=0.01)


def fake(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> Comparison:
    names, valid = np.full(len(labels), "gen"), np.ones(len(labels), bool)
    images = [ScoredImages(labels, z, names, valid) for z in (first, second)]
    before, after = (metrics.evaluate(one, RESAMPLING) for one in images)
    return Comparison(before, after, metrics.compare(images[0], second, RESAMPLING))


def test_a_control_that_does_as_well_is_said_to() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    good = labels + rng.normal(0, 0.5, 200)
    noise = rng.normal(size=200)
    said = sentences.controls_in_words(
        {
            controls.RECIPE: fake(good, good, labels),
            "random weights": fake(good, good + rng.normal(0, 0.01, 200), labels),
            "encoder alone": fake(good, noise, labels),
            "LCAS alone": fake(noise, good, labels),
            "content": fake(good, np.zeros(200), labels),
        }
    )
    expected = (
        ("not measurably better", "random weights"),
        ("is better", "encoder alone"),
        ("is worse", "LCAS alone"),
        ("learned nothing", "content"),
    )
    for sentence, words in zip(said, expected, strict=True):
        assert all(word in sentence for word in words)


# --- the command --------------------------------------------------------------------------------


# Entries of a report with a detector, without robustness, in their order.
KEYS = [
    *("schema", "root", "images", "resampling", "versions"),
    *("unreadable", "probes", "shortcuts", "verdict"),
    *("detector", "test_images", "scored", "num_scored", "equalised", "pushes", "controls"),
    "seconds",
]


def run(*argv: object) -> int:
    return main.main(["audit", *map(str, argv), "--bootstrap", "20"])


def said_of(subject: str, printed: str, *words: str) -> list[str]:
    """Sentences of the verdict that begin with a subject and hold some words."""
    lines = [line for line in printed.splitlines() if line.startswith(f"- {subject}")]
    return [line for line in lines if all(word in line for word in words)]


def test_without_a_detector_the_files_speak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = planted_set(tmp_path / "planted", confounded=True, splits=("train", "val"))
    assert run(planted, "--json", tmp_path / "planted.json") == 0
    printed = capsys.readouterr().out
    assert said_of("file facts", printed, "separate")
    assert said_of("file format", printed, "AUC 1.00")
    report = json.loads((tmp_path / "planted.json").read_text())
    assert report["probes"]["file facts"]["rows"][-1]["metrics"]["accuracy"]["value"] == 1
    assert "equalised" not in report
    clean = planted_set(tmp_path / "clean", confounded=False, splits=("train", "val"))
    assert run(clean) == 0
    printed = capsys.readouterr().out
    assert said_of("file facts", printed, "no measurable", "AUC 0.500")
    assert not said_of("file format", printed, "AUC 1.00")


def test_with_a_detector_everything_is_reported(
    data_set: Path,
    backbone_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {controls.RECIPE, "encoder alone", "LCAS alone, Gaussian in-painting"}
    some = [one for one in controls.controls(DetectorConfig()) if one.name in names]
    monkeypatch.setattr(controls, "controls", lambda config: some)
    workdir, file = small_run(data_set, backbone_file), tmp_path / "audit.json"
    capsys.readouterr()  # what training said, if it was trained here
    assert run(data_set, "--detector", workdir, "--json", file, "--side", 40, "--images", 5) == 0
    printed, progress = capsys.readouterr()
    for title in ("without any detector", "raw and equalised", "photographs called ai"):
        assert title in printed
    for line in ("scoring   20 images", "control   encoder alone", "step 1"):
        assert line in progress
        assert line not in printed  # progress is not part of the report
    report = json.loads(file.read_text())
    assert list(report) == KEYS
    assert report["num_scored"] == 20
    assert set(report["controls"]["comparisons"]) == names
    recipe = report["controls"]["comparisons"][controls.RECIPE]["difference"][-1]["metrics"]
    assert recipe["auc"] == {"value": 0, "low": 0, "high": 0}
    for row in report["equalised"]["comparison"]["before"]:
        assert row["nature"] + row["ai"] in (10, 20)
    assert set(report["pushes"]) == {"DownUp(factor=2.0)", "Jpeg(quality=75)"}


def test_controls_without_training_images_are_left_out_with_a_reason(
    data_set: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    files = {
        f"other/imagenet_x/val/{label}/{i}.png": saved(smooth_image(rng))
        for label in ("nature", "ai")
        for i in range(5)
    }
    root = write_files(tmp_path / "other", files)
    detector = ("--detector", small_run(data_set, backbone_file))
    assert run(root, *detector) == 0
    printed = capsys.readouterr().out
    assert said_of("controls left out", printed, "gen_a", "--train-root")
    assert run(root, *detector, "--train-root", tmp_path) == 2


def test_unread_files_are_named_and_end_in_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = planted_set(tmp_path, confounded=False, splits=("val",))
    write_files(root, {"gen_a/imagenet_x/val/ai/bad.png": b"no image"})
    assert run(root) == 1
    assert "gen_a/imagenet_x/val/ai/bad.png: " in capsys.readouterr().out


def test_quarantined_files_are_left_out(tmp_path: Path) -> None:
    root = planted_set(tmp_path / "data", confounded=False, splits=("val",))
    write_files(root, {"gen_a/imagenet_x/val/ai/bad.png": b"no image"})
    listed, file = tmp_path / "quarantine.csv", tmp_path / "audit.json"
    listed.write_text("path,reason\ngen_a/imagenet_x/val/ai/bad.png,damaged\n")
    assert run(root, "--quarantine", listed, "--json", file) == 0
    report = json.loads(file.read_text())
    assert report["unreadable"] == []
    assert report["images"] == catalog.scan(root).without_listed(listed).fingerprint


@pytest.mark.parametrize(
    "wrong", [{"images": -1}, {"side": 8}, {"quality": 0}, {"attack_draws": 0}, {"train_root": "."}]
)
def test_options_are_checked_before_any_work(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name.removeprefix("attack_")):
        AuditOptions("/nowhere", **wrong)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["/nowhere"], "/nowhere"),
        ([".", "--robustness"], "--detector"),
        ([".", "--train-root", "."], "--detector"),
        ([".", "--json", "/nowhere/x.json"], "/nowhere/x.json"),
        ([".", "--attack-steps", "0"], "steps"),
        ([".", "--side", "8"], "side"),
        ([".", "--side", "wide"], "'wide'"),
    ],
)
def test_mistakes_end_in_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code: object
    try:
        code = run(*argv)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
