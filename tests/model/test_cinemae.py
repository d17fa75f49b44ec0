"""Features of one image and its logit: independent of batch, device and other runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinemae_jax.model import lcas, mae, masking
from cinemae_jax.model.cinemae import (
    Backbone,
    Features,
    extract_features,
    logits,
    num_statistics,
    random_backbone,
    statistics,
)
from cinemae_jax.model.config import SCORES, DetectorConfig
from cinemae_jax.model.head import HeadState, Normalizer, init_params
from tests.conftest import SMALL

CONFIG = DetectorConfig(num_runs=3, hidden=8)
extract = jax.jit(extract_features, static_argnums=4)


def some_images(count: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def features_of(
    backbone: Backbone,
    images: np.ndarray,
    ids: list[int],
    config: DetectorConfig = CONFIG,
    first_run: int = 0,
) -> Features:
    keys = masking.example_keys(jax.random.key(5), jnp.array(ids, jnp.uint32))
    runs = jnp.tile(first_run + jnp.arange(config.num_runs), (len(ids), 1))
    return extract(backbone, jnp.array(images), keys, runs, config)


def assert_close(one: Features, two: Features, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, two)


def test_features_do_not_depend_on_the_batch_around_an_image(backbone: Backbone) -> None:
    images = some_images()
    together = features_of(backbone, images, [1, 2, 3, 4])
    turned = features_of(backbone, images[::-1], [4, 3, 2, 1])
    assert_close(together, jax.tree.map(lambda x: x[::-1], turned), atol=1e-5)


def test_more_runs_leave_the_first_ones_as_they_are(backbone: Backbone) -> None:
    three = features_of(backbone, some_images(), [1, 2, 3, 4])
    two = features_of(
        backbone, some_images(), [1, 2, 3, 4], dataclasses.replace(CONFIG, num_runs=2)
    )
    np.testing.assert_array_equal(three.masked[:, :2], two.masked)
    np.testing.assert_allclose(three.terms.mismatch[:, :2], two.terms.mismatch, rtol=1e-5)


def test_other_run_numbers_are_other_masks(backbone: Backbone) -> None:
    first = features_of(backbone, some_images(1), [1])
    later = features_of(backbone, some_images(1), [1], first_run=3)
    assert (np.asarray(first.masked) != np.asarray(later.masked)).any()
    np.testing.assert_array_equal(first.f_global, later.f_global)


def test_no_gradient_reaches_the_backbone(backbone: Backbone) -> None:
    def total(b: Backbone) -> jax.Array:
        f = features_of(b, some_images(2), [1, 2])
        return f.f_global.sum() + f.terms.mismatch.sum()

    grads = jax.grad(total)(backbone)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads.params))


def test_terms_are_those_of_the_reconstruction(backbone: Backbone) -> None:
    """R is small exactly where the true patch equals the prediction."""
    zero = jax.tree.map(jnp.zeros_like, backbone.params["decoder_pred"])
    predicts_zero = dataclasses.replace(backbone, params=backbone.params | {"decoder_pred": zero})
    grey = np.full((1, 32, 32, 3), [124, 116, 104], np.uint8)  # ImageNet's mean colour
    assert float(features_of(predicts_zero, grey, [1]).terms.mismatch.max()) < 1e-4
    assert float(features_of(backbone, some_images(1), [1]).terms.mismatch.min()) > 0.1


def degenerate_images() -> np.ndarray:
    half, pixel = np.zeros((2, 32, 32, 3), np.uint8)
    half[16:], pixel[5, 5] = 255, 255
    black, white = np.zeros_like(half), np.full_like(half, 255)
    return np.stack([black, white, half, pixel, some_images(1)[0]])


@pytest.mark.parametrize("target", ["raw", "norm_pix"])
def test_degenerate_images_give_finite_logits(target: str) -> None:
    backbone = random_backbone(dataclasses.replace(SMALL, target=target))
    features = features_of(backbone, degenerate_images(), [1, 2, 3, 4, 5])
    params = init_params(DetectorConfig(hidden=8), jax.random.key(0), SMALL.width, 3)
    head = HeadState(
        jax.tree.map(lambda x: x + 0.1, params),
        Normalizer(jnp.zeros(24), jnp.ones(24), jnp.zeros(3), jnp.ones(3)),
    )
    for score in SCORES:
        config = dataclasses.replace(CONFIG, score=score)
        assert np.isfinite(statistics(features, config, SMALL.num_patches)).all(), score
        logit, _ = logits(head, features, config, SMALL.num_patches)
        assert np.isfinite(logit).all(), score


def test_without_runs_there_are_no_scores_but_a_global_feature(backbone: Backbone) -> None:
    config = DetectorConfig(num_runs=0, fusion="global")
    features = features_of(backbone, some_images(), [1, 2, 3, 4], config)
    assert features.terms.mismatch.shape == (4, 0, 12)
    assert not np.asarray(statistics(features, config, SMALL.num_patches)).any()
    with_runs = features_of(backbone, some_images(), [1, 2, 3, 4])
    np.testing.assert_allclose(features.f_global, with_runs.f_global, atol=1e-5)


def test_pooling_chooses_the_token(backbone: Backbone) -> None:
    cls = features_of(backbone, some_images(1), [1])
    mean = features_of(backbone, some_images(1), [1], dataclasses.replace(CONFIG, pooling="mean"))
    assert np.abs(np.asarray(cls.f_global - mean.f_global)).max() > 1e-2


def test_bfloat16_backbone_keeps_float32_scores_close(backbone: Backbone) -> None:
    """bf16 has 8 bits of precision: 0.4 % a rounding, so a few per cent after four blocks."""
    full = features_of(backbone, some_images(8), list(range(8)))
    half = features_of(
        backbone, some_images(8), list(range(8)), dataclasses.replace(CONFIG, dtype="bfloat16")
    )
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    s_full, s_half = (statistics(f, CONFIG, SMALL.num_patches) for f in (full, half))
    np.testing.assert_allclose(s_half, s_full, atol=0.02)
    np.testing.assert_array_equal(half.terms.deviation, full.terms.deviation)
    assert np.abs(np.asarray(half.terms.mismatch - full.terms.mismatch)).max() > 0


def test_images_of_another_size_are_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match=r"images are \(40, 40, 3\), the backbone takes"):
        features_of(backbone, np.zeros((1, 40, 40, 3), np.uint8), [1])


# --- other masks, and a share of the patches ----------------------------------------------------


@pytest.mark.parametrize("kind", ["disjoint", "stratified"])
def test_masks_beyond_the_paper_belong_to_the_image(backbone: Backbone, kind: str) -> None:
    """Not to its batch, nor to K."""
    config = dataclasses.replace(CONFIG, masking=kind)
    images = some_images()
    together = features_of(backbone, images, [1, 2, 3, 4], config)
    two = dataclasses.replace(config, num_runs=2)
    turned = features_of(backbone, images[::-1], [4, 3, 2, 1], two)
    np.testing.assert_array_equal(together.masked[:, :2], turned.masked[::-1])
    np.testing.assert_allclose(
        together.terms.mismatch[:, :2], turned.terms.mismatch[::-1], atol=1e-5
    )


def test_two_disjoint_runs_score_every_patch(backbone: Backbone) -> None:
    config = dataclasses.replace(CONFIG, masking="disjoint", num_runs=2)
    for masked in np.asarray(features_of(backbone, some_images(), [1, 2, 3, 4], config).masked):
        assert set(masked.reshape(-1).tolist()) == set(range(SMALL.num_patches))


def test_stratified_masks_never_show_flat_patches_alone(backbone: Backbone) -> None:
    """Three quarters of each image are flat: random masks may show nothing else."""
    images = some_images(8)
    images[:, 8:] = 90  # the first row of patches is textured
    config = dataclasses.replace(CONFIG, masking="stratified", num_runs=8)
    masked = np.asarray(features_of(backbone, images, list(range(8)), config).masked)
    assert ((masked < 4).sum(axis=2) == 3).all()  # one of the four is shown
    plain = dataclasses.replace(config, masking="random")
    masked = np.asarray(features_of(backbone, images, list(range(8)), plain).masked)
    assert ((masked < 4).sum(axis=2) == 4).any()


def test_grey_levels_come_back_from_normalised_pixels() -> None:
    levels = some_images(1)
    pixels = mae.normalize_images(jnp.asarray(levels))
    np.testing.assert_array_equal(np.round(mae.grey_levels(pixels)), levels)
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    again = mae.grey_levels(mae.normalize_images(jnp.asarray(every)))
    np.testing.assert_array_equal(np.round(again), every)


@pytest.mark.parametrize("share", [0.5, 0.3])
@pytest.mark.parametrize("sensitivity", ["run", "patch"])
def test_a_share_summarises_the_most_textured_patches(
    backbone: Backbone, share: float, sensitivity: str
) -> None:
    features = features_of(backbone, some_images(), [1, 2, 3, 4])
    config = dataclasses.replace(CONFIG, score="relative", sensitivity=sensitivity)
    own = dataclasses.replace(config, score_share=share)
    found = np.asarray(statistics(features, own, SMALL.num_patches))
    for image in range(4):
        mismatch, variance = (
            np.asarray(getattr(features.terms, name))[image]
            for name in ("mismatch", "patch_variance")
        )
        count = -(-share * mismatch.shape[1] // 1)
        kept = np.argsort(-variance, axis=1, kind="stable")[:, : int(count)]
        scores = np.log(mismatch + 1e-6) - np.log(variance + 1e-6)
        scores = np.take_along_axis(scores, kept, axis=1)
        expected = [scores.std(), scores.mean(), scores.mean(axis=1).std()]
        columns = slice(None) if sensitivity == "run" else slice(2)
        np.testing.assert_allclose(found[image, columns], expected[columns], atol=1e-5)
    whole = statistics(features, dataclasses.replace(config, score_share=1.0), SMALL.num_patches)
    np.testing.assert_array_equal(whole, statistics(features, config, SMALL.num_patches))


def test_the_control_of_a_share_takes_as_many_patches_whatever_their_texture(
    backbone: Backbone,
) -> None:
    features = features_of(backbone, some_images(), [1, 2, 3, 4])
    config = dataclasses.replace(CONFIG, score="mismatch", score_share=0.5, share_by="random")
    before = statistics(features, config, SMALL.num_patches)
    blind = dataclasses.replace(
        features, terms=dataclasses.replace(features.terms, patch_variance=None)
    )
    np.testing.assert_array_equal(statistics(blind, config, SMALL.num_patches), before)
    assert not np.allclose(
        before,
        statistics(features, dataclasses.replace(config, score_share=1.0), SMALL.num_patches),
    )
    textured = dataclasses.replace(config, share_by="texture")
    with pytest.raises(ValueError, match="patch_variance"):
        statistics(blind, textured, SMALL.num_patches)


def test_equal_textures_are_taken_in_order() -> None:
    variance = jnp.array([[1.0, 2.0, 2.0, 0.0, 2.0]])
    assert lcas.most_textured(variance, 0.4).tolist() == [[1, 2]]
    assert lcas.share_of(10, 0.3) == 3
    assert lcas.any_patches(3, 10, 0.3).shape == (3, 3)


def test_a_share_needs_a_target_with_texture() -> None:
    model = dataclasses.replace(SMALL, target="norm_pix")
    config = dataclasses.replace(CONFIG, score_share=0.5)
    with pytest.raises(ValueError, match="score_share"):
        num_statistics(config, model)
    assert num_statistics(dataclasses.replace(config, share_by="random"), model) == 3
    assert num_statistics(config, SMALL) == 3
