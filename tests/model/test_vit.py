"""Image encoders without files: sizes, positions, precision, and configs that are refused."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinemae_jax.model import vit
from cinemae_jax.model.vit import ViT, ViTConfig, resize_matrix, rope_angles

SIZES: dict[str, Any] = {"patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 48}
CONFIGS = {
    "clip": ViTConfig("clip", 16, **SIZES, layer_norm_eps=1e-5, projection=6),
    "dinov2": ViTConfig("dinov2", 16, **SIZES, layer_norm_eps=1e-6, num_registers=2),
    "dinov3": ViTConfig("dinov3", 16, **SIZES, layer_norm_eps=1e-5, num_registers=2),
    "siglip": ViTConfig("siglip", 16, **SIZES, layer_norm_eps=1e-6, activation="tanh_gelu"),
}
FAMILIES = sorted(CONFIGS)


def pixels(height: int = 16, width: int = 16, batch: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, height, width, 3))


def variables(config: ViTConfig, spread: float = 0.3) -> Any:
    """Parameters of which none is zero or one, so that everything matters."""
    fresh = vit.initial_variables(config, jax.random.key(0))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [x + spread * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


def apply(config: ViTConfig, images: jax.Array, method: str, dtype: Any = jnp.float32) -> Any:
    return ViT(config, dtype).apply(variables(config), images, method=method)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_feature_per_image_that_depends_on_it_alone(family: str) -> None:
    config = CONFIGS[family]
    together = apply(config, pixels(batch=3), "global_feature")
    assert together.shape == (3, config.feature_width)
    assert together.dtype == jnp.float32
    alone = apply(config, pixels(batch=3)[1:2], "global_feature")
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_stages_have_names_and_one_token_per_patch_and_prefix(family: str) -> None:
    config = CONFIGS[family]
    stages = apply(config, pixels(12, 20), "stages")
    assert list(stages) == ["embed", "block_0", "block_1", "norm", "feature"]
    tokens = (2, config.num_prefix + 3 * 5, config.width)
    assert stages["embed"].shape == stages["block_0"].shape == tokens
    assert stages["norm"].shape == ((2, config.width) if family == "clip" else tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close_to_float32(family: str) -> None:
    """Eight bits of mantissa through two blocks: a few per cent of the feature's length."""
    config = CONFIGS[family]
    exact, rounded = (
        np.asarray(apply(config, pixels(), "global_feature", dtype))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert 0 < np.linalg.norm(rounded - exact) < 0.05 * np.linalg.norm(exact)
    stages = apply(config, pixels(), "stages", jnp.bfloat16)
    assert stages["block_1"].dtype == jnp.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_patches_do_not_divide_are_refused_with_the_nearest(family: str) -> None:
    with pytest.raises(ValueError, match=r"18 × 23 pixels.*patches of 4.*resize them to 16 × 24"):
        apply(CONFIGS[family], pixels(18, 23), "global_feature")


# --- positions ----------------------------------------------------------------------------------

RESAMPLINGS = ("bicubic", "bicubic_antialias", "bilinear_antialias")


@pytest.mark.parametrize("resampling", RESAMPLINGS)
@pytest.mark.parametrize("new", [1, 3, 5, 7, 12])
def test_resizing_keeps_constants_and_mirrors(resampling: Any, new: int) -> None:
    matrix = resize_matrix(7, new, resampling)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-6)


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_resizing_to_the_same_size_changes_nothing(resampling: Any) -> None:
    np.testing.assert_allclose(resize_matrix(7, 7, resampling), np.eye(7), atol=1e-6)


def test_the_position_table_is_used_as_it_is_at_its_own_size() -> None:
    """At other sizes a constant table is still that constant."""
    config = CONFIGS["siglip"]
    params = variables(config)
    shift = params["params"]["pos_embed"][:1]
    constant = {"params": params["params"] | {"pos_embed": jnp.broadcast_to(shift, (16, 16))}}
    zero = {"params": params["params"] | {"pos_embed": jnp.zeros((16, 16))}}
    for size in ((16, 16), (12, 24)):
        moved, plain = (
            ViT(config).apply(v, pixels(*size), method="stages")["embed"] for v in (constant, zero)
        )
        np.testing.assert_allclose(moved - plain, jnp.broadcast_to(shift, moved.shape), atol=1e-5)


def test_rope_does_not_turn_the_prefix_and_scales_with_the_grid() -> None:
    config = CONFIGS["dinov3"]
    angles = rope_angles(config, 2, 3)
    assert angles.shape == (config.num_prefix + 6, 4)
    assert not angles[: config.num_prefix].any()
    by_row, by_column = np.split(angles[config.num_prefix :].reshape(2, 3, 4), 2, axis=-1)
    np.testing.assert_array_equal(by_row[:, 0], by_row[:, 2])
    np.testing.assert_array_equal(by_column[0], by_column[1])
    np.testing.assert_allclose(by_row[:, 0, 0], [-np.pi, np.pi], rtol=1e-6)  # centres at ∓1/2
    np.testing.assert_allclose(by_column[0, :, 0], [-4 / 3 * np.pi, 0, 4 / 3 * np.pi], atol=1e-6)


def test_registers_have_no_position() -> None:
    """Another position table moves every token but the registers."""
    config = CONFIGS["dinov2"]
    params = variables(config)
    moved = {"params": params["params"] | {"pos_embed": params["params"]["pos_embed"] + 1}}
    before, after = (
        ViT(config).apply(v, pixels(), method="stages")["embed"] for v in (params, moved)
    )
    changed = np.abs(after - before).max(axis=(0, 2)) > 0.5
    assert changed.tolist() == [True, False, False] + [True] * 16


# --- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("clip", {"family": "mae"}, "family"),
        ("clip", {"activation": "relu"}, "activation"),
        ("dinov2", {"resampling": "nearest"}, "resampling"),
        ("clip", {"image_size": 18}, "image_size 18"),
        ("clip", {"depth": 0}, "depth"),
        ("clip", {"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ("clip", {"num_heads": 3}, "num_heads 3"),
        ("dinov3", {"num_heads": 8}, "num_heads 8"),  # two channels a head: no four to turn
        ("clip", {"projection": 0}, "projection must be positive"),
        ("siglip", {"projection": 6}, "projection must be 0"),
        ("siglip", {"num_registers": 4}, "num_registers"),
    ],
)
def test_impossible_configs_are_refused(family: str, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(CONFIGS[family], **changes)


def test_every_preset_cuts_its_images_into_whole_patches() -> None:
    assert {config.family for config in vit.PRESETS.values()} == set(CONFIGS)
    for name, config in vit.PRESETS.items():
        assert config.image_size % config.patch_size == 0, name
        assert config.width // config.num_heads == 64, name
