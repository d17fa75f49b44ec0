"""The frequency of whole images: known spectra, what each kind sees, and what heads read of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from jax.typing import ArrayLike

from cinemae_jax.detector import inference
from cinemae_jax.features import extraction
from cinemae_jax.model import frequency
from cinemae_jax.model.bands import cosine_basis
from cinemae_jax.model.cinemae import Backbone, num_statistics, statistics
from cinemae_jax.model.config import DetectorConfig, Frequency, Fusion
from cinemae_jax.model.frequency import COLUMNS, NUM_COLUMNS, ROUNDING
from cinemae_jax.model.head import HeadState, Normalizer, init_params
from tests.conftest import SMALL

SIDE = 96


def described(image: ArrayLike) -> dict[str, np.ndarray]:
    values = np.asarray(frequency.describe(jnp.asarray(image)))
    assert values.shape == (NUM_COLUMNS,)
    return {kind: values[columns] for kind, columns in COLUMNS.items()}


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2).astype(np.float32)


def test_white_noise_has_its_variance_in_every_ring_and_coefficient() -> None:
    noise = np.random.default_rng(0).normal(128, 10, (SIDE, SIDE))
    found = described(grey(noise))
    for values in (found["radial"][2:], found["blocks"]):  # the first rings hold few frequencies
        assert np.abs(values - np.log(100)).max() < 0.5
        assert abs(values.mean() - np.log(100)) < 0.05


def test_a_flat_image_has_nothing_but_rounding() -> None:
    for kind, values in described(np.full((SIDE, SIDE, 3), 77.0, np.float32)).items():
        np.testing.assert_allclose(values, np.log(ROUNDING), atol=1e-3, err_msg=kind)


def test_a_wave_shows_in_its_ring_alone() -> None:
    wave = 40 * np.cos(2 * np.pi * 0.26 * np.arange(SIDE))  # cycles per pixel; rings are 1/48 wide
    rings = described(grey(np.broadcast_to(wave, (SIDE, SIDE))))["radial"]
    assert rings.argmax() == int(0.26 * 48)
    assert np.sort(rings)[-4] < rings.max() - 5  # Hann leaks into the neighbours


def test_upsampling_by_repetition_empties_the_residual_only() -> None:
    small = np.random.default_rng(1).normal(128, 30, (SIDE // 2, SIDE // 2))
    found = described(grey(small.repeat(2, axis=0).repeat(2, axis=1)))
    np.testing.assert_allclose(found["residual"], np.log(ROUNDING), atol=1e-3)
    assert found["radial"].min() > np.log(ROUNDING)


def test_blocks_see_a_coefficient_of_their_grid() -> None:
    """The variance over blocks of one coefficient, random in every block."""
    basis = np.outer(cosine_basis(8)[2], cosine_basis(8)[5])
    strength = np.random.default_rng(2).normal(0, 20, (SIDE // 8, SIDE // 8))
    found = described(grey(np.kron(strength, basis)))["blocks"].reshape(8, 8)
    assert abs(found[2, 5] - np.log(strength.var())) < 1e-2
    assert np.delete(found.ravel(), 2 * 8 + 5).max() < np.log(ROUNDING) + 1e-2


def test_odd_sides_lose_a_pixel_and_gradients_are_finite() -> None:
    image = np.random.default_rng(3).integers(0, 256, (43, 43, 3)).astype(np.float32)
    assert np.isfinite(frequency.describe(jnp.asarray(image))).all()
    for flat in (image, np.zeros_like(image)):
        gradient = jax.grad(lambda x: frequency.describe(x).sum())(jnp.asarray(flat))
        assert np.isfinite(gradient).all()


# --- what is computed, and what heads read ------------------------------------------------------


def extracted(backbone: Backbone, config: DetectorConfig) -> tuple:
    batch = {
        "image": jnp.asarray(np.random.default_rng(4).integers(0, 256, (2, 32, 32, 3), np.uint8)),
        "example_id": jnp.arange(2, dtype=jnp.uint32),
        "epoch": jnp.zeros(2, jnp.int32),
    }
    runs = extraction.first_runs(config.num_runs)
    program = jax.jit(extraction.make_extract(config, runs))
    arguments = backbone, jax.random.key(0), batch
    flops = program.lower(*arguments).compile().cost_analysis()["flops"]
    return program(*arguments), flops


@pytest.mark.parametrize("kind", ["radial", "blocks", "residual"])
def test_additive_heads_read_it_behind_the_statistics(backbone: Backbone, kind: Frequency) -> None:
    config = DetectorConfig(frequency=kind)
    features, _ = extracted(backbone, config)
    read = statistics(features, config, SMALL.num_patches)
    assert read.shape == (2, num_statistics(config, SMALL))
    np.testing.assert_array_equal(read[:, 3:], features.frequency[:, COLUMNS[kind]])
    plain = statistics(features, DetectorConfig(), SMALL.num_patches)
    np.testing.assert_array_equal(read[:, :3], plain)


def test_what_a_head_does_not_read_is_not_computed(backbone: Backbone) -> None:
    def cost(fusion: Fusion, kind: Frequency = "none") -> float:
        config = DetectorConfig(fusion=fusion, frequency=kind)
        return extracted(backbone, config)[1]

    spectrum = cost("logit", "blocks") - cost("logit")
    assert cost("frequency", "blocks") == pytest.approx(spectrum, rel=0.05)  # no backbone
    assert cost("global", "blocks") == cost("global")
    assert cost("lcas") < cost("lcas", "blocks") < cost("hybrid", "blocks")


@pytest.mark.parametrize("fusion", ["hybrid", "frequency"])
def test_an_exported_program_takes_any_number_of_images(backbone: Backbone, fusion: Fusion) -> None:
    config = DetectorConfig(fusion=fusion, frequency="residual", hidden=8)
    count = num_statistics(config, SMALL)
    params = init_params(config, jax.random.key(0), SMALL.width, count)
    moments = (np.full(n, value, np.float32) for n in (SMALL.width, count) for value in (0, 1))
    head = HeadState(jax.tree.map(lambda x: x + 0.1, params), Normalizer(*moments))
    score = inference.make_logits(config)

    def program(images: jax.Array, ids: jax.Array) -> jax.Array:
        return score(backbone, head, jax.random.key(0), images, ids).logit

    (batch,) = jax_export.symbolic_shape("b")
    shapes = (
        jax.ShapeDtypeStruct((batch, 1, 32, 32, 3), np.uint8),
        jax.ShapeDtypeStruct((batch,), np.uint32),
    )
    exported = jax_export.export(jax.jit(program), platforms=("cpu", "cuda", "tpu"))(*shapes)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32, 3), np.uint8)
    ids = np.arange(3, dtype=np.uint32)
    np.testing.assert_allclose(exported.call(images, ids), program(images, ids), atol=1e-3)


def test_features_without_it_are_refused(backbone: Backbone) -> None:
    features, _ = extracted(backbone, DetectorConfig())
    with pytest.raises(ValueError, match="blocks"):
        statistics(features, DetectorConfig(frequency="blocks"), SMALL.num_patches)
