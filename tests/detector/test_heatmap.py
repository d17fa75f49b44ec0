"""Heat maps show the right values in the right places and depend on the trained weights."""

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from cinemae_jax import weights
from cinemae_jax.data.transforms import MultiCrop
from cinemae_jax.detector import heatmap, inference
from cinemae_jax.detector.api import Detector
from cinemae_jax.features import extraction
from cinemae_jax.model import lcas
from cinemae_jax.model.cinemae import Backbone, random_backbone
from cinemae_jax.model.config import DetectorConfig, Score
from cinemae_jax.model.head import HeadState, Normalizer
from tests.conftest import photo
from tests.helpers.small_detector import one_device, small_bundle

pytestmark = pytest.mark.slow

TINY_RUNS = 6


def scene(seed: int, size: int = 112) -> np.ndarray:
    """Smooth colours, and textured discs in front of them."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 215, (4, 4, 3), dtype=np.uint8))
    picture = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(float)
    y, x = np.mgrid[:size, :size]
    for _ in range(6):
        row, column, radius = *rng.integers(0, size, 2), rng.integers(8, 24)
        inside = (y - row) ** 2 + (x - column) ** 2 < radius**2
        texture = 8 * np.sin(x[inside, None] / rng.uniform(1, 4))
        picture[inside] = rng.integers(0, 255, 3) + texture
    return (picture + rng.normal(0, 3, picture.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def detector(backbone_file: Path) -> Detector:
    return Detector(small_bundle(backbone_file), replicas=one_device())


# --- what it shows ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(40, 40), (57, 36), (16, 25), (300, 40)])
@pytest.mark.parametrize("num_crops", [1, 4])
@pytest.mark.parametrize("resize", [0, 36])
def test_every_pixel_knows_where_it_comes_from(
    size: tuple[int, int], num_crops: int, resize: int
) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    transform = MultiCrop(32, num_crops, resize=resize)
    taken = heatmap.assemble(
        image,
        transform,
        np.zeros((num_crops, 16)),
        np.ones((num_crops, 16)),
        runs=1,
        score="mismatch",
    ).image
    pixels = np.asarray(taken)
    origins = heatmap.origins(taken.size, transform)
    for (rows, columns), crop in zip(origins, transform.cut(image), strict=True):
        np.testing.assert_array_equal(pixels[rows, columns], crop)


def test_drawing_a_large_picture_takes_little_memory(tmp_path: Path) -> None:
    image = Image.new("RGB", (4000, 3000), "grey")
    tracemalloc.start()
    shown = np.ones((1, 16), int)
    one = heatmap.assemble(
        image, MultiCrop(32, 1), np.arange(16.0)[None], shown, runs=1, score="mismatch"
    )
    one.save(tmp_path / "map.png")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 4000 * 3000 + 50_000_000  # drawn at full size, it was 90 bytes a pixel


def test_patches_lie_in_their_places_and_the_rest_is_unknown() -> None:
    image = Image.new("RGB", (48, 40))
    values, shown = np.arange(16.0)[None], np.ones((1, 16), int)
    found = heatmap.assemble(image, MultiCrop(32, 1), values, shown, runs=1, score="mismatch")
    expected = np.full((40, 48), np.nan)
    expected[4:36, 8:40] = np.arange(16).reshape(4, 4).repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(found.values, expected)


def test_the_map_of_the_scored_masks_has_their_mean(detector: Detector) -> None:
    config = detector.trained.settings.detector
    image = scene(0, 40)
    found = detector.lcas_map(image, runs=config.num_runs)
    num_masked = 16 - detector.trained.backbone.config.num_visible(config.mask_ratio)
    assert found.shown.sum() == config.num_runs * num_masked
    assert np.array_equal(np.isnan(found.patches), found.shown == 0)
    (one,) = detector.predict(image)
    batch = {
        "image": detector.transform.cut(Image.fromarray(image)),
        "example_id": np.array([one.example_id], np.uint32),
        "epoch": np.zeros(1, np.int32),
    }
    extract = jax.jit(extraction.make_extract(config, extraction.first_runs(config.num_runs)))
    terms = extract(detector.trained.backbone, detector.trained.mask_key, batch).terms
    mean = lcas.score(terms, config.score, config.mismatch_weight).mean()
    weighted = np.nansum(found.patches * found.shown) / found.shown.sum()
    np.testing.assert_allclose(weighted, mean, rtol=1e-5)


def test_more_runs_mask_every_patch(detector: Detector) -> None:
    (one,) = detector.predict(scene(1, 40))
    found = one.lcas_map(score="mismatch")
    assert found.runs == heatmap.RUNS
    assert found.shown.min() >= 4  # of 16; fewer has probability 4e-6 per patch
    again = detector.lcas_map(scene(1, 40), score="mismatch")
    np.testing.assert_array_equal(again.values, found.values)


def test_invalid_requests_for_a_heat_map_raise(detector: Detector) -> None:
    with pytest.raises(ValueError, match="runs must be 1 or more"):
        detector.lcas_map(scene(0), runs=0)
    with pytest.raises(ValueError, match="use one of context_nll"):
        detector.lcas_map(scene(0), score="colour")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="was not scored: empty file"):
        detector.predict(b"")[0].lcas_map()


def test_the_overlay_is_bright_where_the_score_is_high_and_grey_outside_all_crops(
    detector: Detector,
) -> None:
    found = detector.lcas_map(photo(np.random.default_rng(3), ai=False, side=33), score="mismatch")
    unseen = ~np.isfinite(found.values)  # a border: crops are cut after a resize to 36
    assert unseen.any()
    pixels = np.asarray(found.overlay(), int)
    grey = np.asarray(found.image.convert("L"), int)
    assert (pixels[unseen] == grey[unseen][:, None]).all()
    colour = pixels.sum(axis=-1) - 3 * (1 - heatmap.OVERLAY) * grey  # without the grey image
    order = np.argsort(found.values[~unseen])
    darkest, brightest = np.array_split(colour[~unseen][order], 10)[::9]
    assert darkest.mean() < brightest.mean()
    low, high = found.limits
    assert np.nanmin(found.values) <= low < high <= np.nanmax(found.values)
    assert max(found.overlay(max_side=20).size) == 20


def test_the_figure_explains_itself(detector: Detector, tmp_path: Path) -> None:
    found = detector.lcas_map(scene(2, 60), runs=4, score="mismatch")
    written: list[Any] = found.figure().findobj(lambda artist: hasattr(artist, "get_text"))
    texts = " ".join(artist.get_text() for artist in written)
    assert " ".join(heatmap.STATEMENT.split()) in " ".join(texts.split())
    assert "mean of 4 masking runs" in texts
    found.save(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
    assert [path.name for path in tmp_path.iterdir()] == ["map.png"]


# --- sanity: does the map depend on the model? (Adebayo and others, arXiv 1810.03292) -----------


DEFAULT: Score = "context_nll"
Maps = dict[Score, np.ndarray]


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return weights.load("tiny")


@pytest.fixture(scope="module")
def maps() -> Callable[[Backbone, np.ndarray], Maps]:
    """Maps (N, L) of N images of the tiny backbone's size, in two LCAS variants; compiled once."""
    config = DetectorConfig(num_runs=TINY_RUNS)
    head = HeadState({}, Normalizer(0, 1, 0, 1))  # only a learned λ would matter
    variants = {s: inference.make_maps(config, TINY_RUNS, s) for s in (heatmap.SHOWN, DEFAULT)}

    @jax.jit
    def every(backbone: Backbone, pictures: jax.Array) -> dict:
        def one(numbered: tuple) -> dict:
            picture, number = numbered[0][None], numbered[1]
            key = jax.random.key(0)
            return {s: f(backbone, head, key, picture, number)[0][0] for s, f in variants.items()}

        return jax.lax.map(one, (pictures, jnp.arange(len(pictures), dtype=jnp.uint32)))

    # the hash is static: without it both backbones share one program
    return lambda backbone, pictures: jax.device_get(
        every(dataclasses.replace(backbone, sha256=""), pictures)
    )


def alike(first: np.ndarray, second: np.ndarray) -> float:
    """Mean rank correlation of maps over patches that both have."""
    known = np.isfinite(first) & np.isfinite(second)
    return float(
        np.mean([spearmanr(a[k], b[k])[0] for a, b, k in zip(first, second, known, strict=True)])
    )


def test_random_weights_lose_the_pattern_of_what_is_shown(
    tiny: Backbone, maps: Callable[[Backbone, np.ndarray], Maps]
) -> None:
    pictures = np.stack([scene(i) for i in range(4)])
    trained, untrained = maps(tiny, pictures), maps(random_backbone(tiny.config), pictures)
    # Measured over six such scenes and 16 runs: 0.43 for the reconstruction error, and 0.90
    # for the default score, whose deviation does not use the model. Hence heatmap.SHOWN.
    assert alike(trained[heatmap.SHOWN], untrained[heatmap.SHOWN]) < 0.65
    assert alike(trained[DEFAULT], untrained[DEFAULT]) > 0.8


def test_a_patch_from_another_image_stands_out(
    tiny: Backbone, maps: Callable[[Backbone, np.ndarray], Maps]
) -> None:
    smooth = np.stack([blurred(scene(i)) for i in range(4)])
    pasted = smooth.copy()
    pasted[:, 40:56, 64:80] = scene(9)[48:64, 48:64]  # patches 5-6 by 8-9 of 14
    grid = np.zeros((14, 14), bool)
    grid[5:7, 8:10] = True
    inside = grid.ravel()
    before, after = (maps(tiny, some)[heatmap.SHOWN] for some in (smooth, pasted))
    for old, new in zip(before, after, strict=True):
        bright = np.nanquantile(new[~inside], 0.95)
        assert np.nanmean(new[inside]) > bright > np.nanmean(old[inside])


def blurred(picture: np.ndarray) -> np.ndarray:
    image = Image.fromarray(picture)
    return np.asarray(image.resize((4, 4)).resize(image.size, Image.Resampling.BICUBIC))
