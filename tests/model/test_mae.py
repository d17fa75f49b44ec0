"""The masked autoencoder, its presets, and the derivatives of its layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinemae_jax.model import layers, mae
from cinemae_jax.model.cinemae import Backbone, num_params, random_backbone
from cinemae_jax.model.config import MAEConfig
from cinemae_jax.model.mae import MAE
from tests.conftest import SMALL

apply = jax.jit(MAE.apply, static_argnums=0, static_argnames="method")


def random_images(count: int = 2, size: int = 32, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count, size, size, 3))


def test_patch_values_are_ordered_row_column_channel() -> None:
    images = jnp.arange(4 * 4 * 3, dtype=jnp.float32).reshape(1, 4, 4, 3)
    patches = mae.patchify(images, 2)
    expected = np.asarray(images)[0, 0:2, 2:4].reshape(-1)  # second patch: upper right
    np.testing.assert_array_equal(patches[0, 1], expected)


def test_unpatchify_inverts_patchify() -> None:
    images = random_images()
    np.testing.assert_array_equal(mae.unpatchify(mae.patchify(images, 8), 8), images)


def test_norm_pix_uses_the_unbiased_variance() -> None:
    patch = np.random.default_rng(0).normal(3, 2, (1, 12)).astype(np.float32)
    target = np.asarray(mae.to_target(jnp.array(patch), "norm_pix"))
    expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    np.testing.assert_allclose(target, expected, rtol=1e-5)
    assert abs(target.var(ddof=1) - 1) < 1e-5


def test_position_table_encodes_column_first_and_leaves_the_cls_row_zero() -> None:
    table = mae.sincos_position_table(8, 3)
    assert table.shape == (10, 8)
    assert not table[0].any()
    second_column = table[2]  # patch (0, 1)
    expected = [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01), 0, 0, 1, 1]
    np.testing.assert_allclose(second_column, expected, atol=1e-6)


def test_order_of_visible_ids_only_permutes_tokens(backbone: Backbone) -> None:
    model, variables = MAE(SMALL), {"params": backbone.params}
    ids = jnp.array([[3, 0, 7, 12]])
    images = random_images(1)
    tokens = apply(model, variables, images, ids, method="encode")
    turned = apply(model, variables, images, ids[:, ::-1], method="encode")
    np.testing.assert_allclose(tokens[:, 0], turned[:, 0], atol=1e-5)
    np.testing.assert_allclose(tokens[:, 1:], turned[:, :0:-1], atol=1e-5)


def test_prediction_does_not_see_masked_pixels(backbone: Backbone) -> None:
    model, variables = MAE(SMALL), {"params": backbone.params}
    visible, masked = jnp.array([[1, 5, 6, 9]]), jnp.array([[0, 2, 3, 4, 7, 8, *range(10, 16)]])
    images = random_images(1)
    patches = mae.patchify(images, 8)
    spoiled = mae.unpatchify(patches.at[:, masked[0]].set(9.0), 8)
    one = apply(model, variables, images, visible, masked)
    two = apply(model, variables, spoiled, visible, masked)
    np.testing.assert_array_equal(one, two)
    moved = apply(model, variables, mae.unpatchify(patches.at[:, 1].set(9.0), 8), visible, masked)
    assert np.abs(np.asarray(moved - one)).max() > 1e-3  # visible pixels do count


def test_position_tables_get_no_gradient(backbone: Backbone) -> None:
    visible, masked = jnp.arange(4)[None], jnp.arange(4, 16)[None]

    def loss(params: Any) -> jax.Array:
        return (MAE(SMALL).apply({"params": params}, random_images(1), visible, masked) ** 2).sum()

    grads = jax.jit(jax.grad(loss))(backbone.params)
    assert not np.asarray(grads["pos_embed"]).any()
    assert not np.asarray(grads["decoder_pos_embed"]).any()
    assert np.asarray(grads["mask_token"]).any()


@pytest.mark.parametrize(("preset", "millions"), [("vit_base", 111.7), ("vit_large", 329.2)])
def test_presets_have_the_published_number_of_parameters(preset: str, millions: float) -> None:
    shapes = jax.eval_shape(lambda: random_backbone(mae.PRESETS[preset]()).params)
    assert num_params(shapes) / 1e6 == pytest.approx(millions, abs=0.5)


@pytest.mark.parametrize(("size", "patch"), [(28, 14), (48, 16), (24, 8)])
def test_any_multiple_of_the_patch_size_is_an_image_size(size: int, patch: int) -> None:
    config = mae.vit_tiny(image_size=size, patch_size=patch, depth=1, decoder_depth=1)
    backbone = random_backbone(config)
    tokens = apply(
        MAE(config), {"params": backbone.params}, random_images(1, size), method="encode"
    )
    assert tokens.shape == (1, 1 + (size // patch) ** 2, 192)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 33),
        ("num_heads", 5),
        ("decoder_num_heads", 3),
        ("decoder_num_heads", 0),
        ("width", 27),
        ("decoder_width", 18),
        ("depth", 0),
        ("target", "x"),
    ],
)
def test_impossible_architectures_are_refused_by_name(field: str, value: object) -> None:
    fields = SMALL.__dict__ | {field: value}
    with pytest.raises(ValueError, match=field):
        MAEConfig(**fields)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99])
def test_masks_need_visible_and_masked_patches(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio"):
        SMALL.num_visible(ratio)


def softmax_attention(qkv: jax.Array) -> jax.Array:
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, axis=-1), v)


def standardised(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    normal = centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return normal * scale[None, None] + bias[None, None]


DERIVATIVES: dict[str, tuple[Any, Any, tuple[tuple[int, ...], ...]]] = {
    "affine, narrow to wide": (
        layers.affine,
        lambda x, kernel, bias: x @ kernel + bias[None, None],
        ((2, 5, 8), (8, 24), (24,)),
    ),
    "affine, wide to narrow": (
        layers.affine,
        lambda x, kernel, bias: x @ kernel + bias[None, None],
        ((2, 5, 24), (24, 8), (8,)),
    ),
    "gelu": (layers.gelu, lambda x: x * (1 + jax.scipy.special.erf(x / 2**0.5)) / 2, ((4, 50),)),
    "layer norm": (
        lambda *given: layers.layer_norm(*given, 1e-6),
        standardised,
        ((2, 5, 24), (24,), (24,)),
    ),
    "attention": (layers.attend, softmax_attention, ((2, 7, 3, 2, 8),)),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_are_those_of_the_plain_form_in_float64(name: str) -> None:
    """Float32 rounds to 6e-8 of a value; sums of about 30 terms of size 3 stay below 1e-5."""
    own, plain, shapes = DERIVATIVES[name]
    rng = np.random.default_rng(0)
    given = [rng.normal(0, 2, shape) for shape in shapes]
    with jax.enable_x64():
        exact, pull = jax.vjp(jax.jit(plain), *given)
        along = rng.normal(0, 1, exact.shape)
        expected = pull(along)
    values, pull = jax.vjp(jax.jit(own), *(jnp.asarray(x, jnp.float32) for x in given))
    found = pull(jnp.asarray(along, jnp.float32))
    assert exact.dtype == np.float64
    for a, b in zip((values, *found), (exact, *expected), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("name", DERIVATIVES)
def test_bfloat16_derivatives_round_only_the_operands_of_products(name: str) -> None:
    """At most three products follow each other; each rounds to 4e-3 of the largest value."""
    own, plain, shapes = DERIVATIVES[name]
    rng = np.random.default_rng(1)
    given = [jnp.asarray(rng.normal(0, 1, shape), jnp.bfloat16) for shape in shapes]
    values, pull = jax.vjp(jax.jit(own), *given)
    along = jnp.asarray(rng.normal(0, 1, values.shape), values.dtype)
    found = jax.jit(pull)(along)
    exact, pull = jax.vjp(jax.jit(plain), *(x.astype(jnp.float32) for x in given))
    expected = pull(along.astype(jnp.float32))
    for a, b in zip((values, *found), (exact, *expected), strict=True):
        gap = np.abs(np.asarray(a, np.float32) - np.asarray(b))
        assert gap.max() < 0.012 * np.abs(np.asarray(b)).max()


def test_gelu_keeps_its_tails() -> None:
    """Far from 0, value and slope are those of 0 or of x; x φ(x) is 3e-31 at -12."""
    ends = jnp.array([-40.0, -12.0, 12.0, 40.0])
    values, pull = jax.vjp(layers.gelu, ends)
    np.testing.assert_array_equal(values, [0, 0, 12, 40])
    np.testing.assert_allclose(pull(jnp.ones(4))[0], [0, 0, 1, 1], rtol=0, atol=1e-30)
