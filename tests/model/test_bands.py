"""LCAS by frequency band."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from cinemae_jax.model import bands
from cinemae_jax.model.cinemae import Backbone, extract_features, num_statistics, statistics
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.masking import example_keys

SIDE, COUNT = 8, 12
D = 3 * SIDE**2


def patches(seed: int = 0, count: int = COUNT) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, D)).astype(np.float32)


def test_the_spectrum_is_scipys_dct_of_luma_and_chroma() -> None:
    found = bands.spectrum(jnp.asarray(patches()))
    pixels = patches().reshape(COUNT, SIDE, SIDE, 3) @ bands.LUMA_CHROMA.T
    expected = scipy.fft.dctn(pixels, axes=(1, 2), norm="ortho")
    expected = np.moveaxis(expected, -1, 1).reshape(COUNT, 3, -1)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def halves(truth: np.ndarray, predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = np.asarray(bands.band_statistics(jnp.asarray(truth), jnp.asarray(predictions)))
    shape = (bands.NUM_STRATA, 3, SIDE, SIDE)
    energy, relative = out.reshape(2, *shape)
    return energy, relative


def test_an_error_in_one_band_shows_in_that_band_alone() -> None:
    truth = patches()
    wave = np.outer(bands.cosine_basis(SIDE)[2], bands.cosine_basis(SIDE)[5])
    grey = np.repeat(wave[..., None], 3, axis=-1).reshape(-1)
    _, exact = halves(truth, truth)
    _, off = halves(truth, truth - grey[None].astype(np.float32))
    changed = np.abs(off - exact) > 1e-2
    assert changed[:, 0, 2, 5].all()
    assert changed.sum() == bands.NUM_STRATA


def test_statistics_do_not_depend_on_contrast_or_the_order_of_patches() -> None:
    """Twice the contrast, far above one grey level, doubles z, r and s alike."""
    truth, predictions = 3 * patches(0), 3 * patches(1)
    one = halves(truth, predictions)
    for other in (
        halves(2 * truth, 2 * predictions),
        halves(truth[::-1].copy(), predictions[::-1].copy()),
    ):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-3)


def test_strata_go_from_smooth_to_textured() -> None:
    """Grain added to the smoothest patches raises the energy of the first stratum alone."""
    truth = patches(count=9) * np.repeat([0.1, 1, 10], 3)[:, None].astype(np.float32)
    grained = truth.copy()
    wave = np.outer(bands.cosine_basis(SIDE)[7], bands.cosine_basis(SIDE)[7])
    grained[:3] += 0.5 * np.repeat(wave[..., None], 3, axis=-1).reshape(-1).astype(np.float32)
    before, _ = halves(truth, truth)
    after, _ = halves(grained, grained)
    rise = (after - before)[:, 0, 7, 7]
    assert rise[0] > 1
    np.testing.assert_allclose(rise[1:], 0, atol=1e-3)


def test_a_uniform_image_stays_finite() -> None:
    flat = np.full((COUNT, D), 0.3, np.float32)
    assert all(np.isfinite(half).all() for half in halves(flat, flat + 1e-4))


@pytest.mark.parametrize("runs", [1, 3])
def test_features_hold_bands_only_if_configured(backbone: Backbone, runs: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    keys = example_keys(jax.random.key(0), jnp.arange(2, dtype=jnp.uint32))
    numbers = jnp.broadcast_to(jnp.arange(runs), (2, runs))
    config = DetectorConfig(num_runs=runs, anomaly="bands", fusion="lcas", hidden=0)
    features = extract_features(backbone, jnp.asarray(images), keys, numbers, config)
    count = num_statistics(config, backbone.config)
    assert features.terms.bands.shape == (2, runs, count) == (2, runs, 6 * D)
    found = statistics(features, config, backbone.config.num_patches)
    np.testing.assert_allclose(found, features.terms.bands.mean(axis=1), rtol=1e-6)
    plain = extract_features(backbone, jnp.asarray(images), keys, numbers, DetectorConfig())
    assert plain.terms.bands is None
    with pytest.raises(ValueError, match="bands"):
        statistics(plain, config, backbone.config.num_patches)
