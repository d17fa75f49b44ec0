"""Attention implementations and run layouts: the same features up to rounding."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinemae_jax.model import layers
from cinemae_jax.model.cinemae import BEFORE_THE_HEAD, Backbone, Features, extract_features
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.mae import patchify
from cinemae_jax.model.masking import example_keys

BATCH, NUM_RUNS = 3, 2
PLAIN = DetectorConfig(num_runs=NUM_RUNS)


def features_of(backbone: Backbone, config: DetectorConfig, **options: Any) -> Features:
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    keys = example_keys(jax.random.key(0), jnp.arange(BATCH, dtype=jnp.uint32))
    runs = jnp.broadcast_to(jnp.arange(config.num_runs), (BATCH, config.num_runs))
    extract = jax.jit(functools.partial(extract_features, config=config, **options))
    return extract(backbone.in_dtype(config.dtype), jnp.asarray(images), keys, runs)


def assert_close(one: Features, two: Features, share: float) -> None:
    """Each array differs by at most a share of its largest value; ids are equal."""

    def close(a: jax.Array, b: jax.Array) -> None:
        np.testing.assert_allclose(a, b, atol=share * float(np.abs(a).max()), rtol=0)

    np.testing.assert_array_equal(one.masked, two.masked)
    jax.tree.map(close, one, two)


@pytest.mark.parametrize("layout", ["vmap", "fold"])
@pytest.mark.parametrize("attention", ["plain", "xla"])
def test_features_in_float32_are_the_same(backbone: Backbone, attention: Any, layout: Any) -> None:
    """Four blocks of sums in another order: a few roundings of 6e-8 each."""
    changed = dataclasses.replace(PLAIN, attention=attention, run_layout=layout)
    assert_close(features_of(backbone, PLAIN), features_of(backbone, changed), 5e-6)


def test_folding_keeps_the_runs_of_each_image(backbone: Backbone) -> None:
    """Runs of an image must not land at another: images and masks differ, so that would show."""
    plain = features_of(backbone, PLAIN)
    assert np.abs(plain.terms.mismatch[:, 0] - plain.terms.mismatch[:, 1]).max() > 1e-3
    assert np.abs(plain.terms.mismatch[0] - plain.terms.mismatch[1]).max() > 1e-3


@pytest.mark.parametrize("runs", [0, 1, 4])
def test_any_number_of_runs_can_be_folded(backbone: Backbone, runs: int) -> None:
    fusion: Any = "additive" if runs else "global"
    config = DetectorConfig(num_runs=runs, fusion=fusion)
    folded = dataclasses.replace(config, run_layout="fold")
    assert_close_or_empty(features_of(backbone, config), features_of(backbone, folded))


def assert_close_or_empty(one: Features, two: Features) -> None:
    if one.terms.mismatch.size:
        assert_close(one, two, 5e-6)
    else:
        assert one.terms.mismatch.shape == two.terms.mismatch.shape
        np.testing.assert_array_equal(one.f_global, two.f_global)


def test_folding_works_with_bands_and_with_another_reconstruction(backbone: Backbone) -> None:
    config = dataclasses.replace(PLAIN, anomaly="bands")
    folded = dataclasses.replace(config, run_layout="fold")

    def means(pixels: jax.Array, visible: jax.Array, masked: jax.Array) -> jax.Array:
        """Of the visible patches of each image, as a control would predict every masked one."""
        patches = patchify(pixels, backbone.config.patch_size)
        seen = jnp.take_along_axis(patches, visible[..., None], axis=1)
        return jnp.broadcast_to(seen.mean(1, keepdims=True), (*masked.shape, patches.shape[2]))

    for options in ({}, {"reconstruct": means}):
        one, two = (features_of(backbone, c, **options) for c in (config, folded))
        assert_close(one, two, 5e-6)


def test_bfloat16_attention_rounds_at_another_place(backbone: Backbone) -> None:
    """Weights are rounded after the division, not before: 4e-3 of a value, in four blocks."""
    config = dataclasses.replace(PLAIN, dtype="bfloat16")
    plain = features_of(backbone, config)
    for attention in ("xla", "cudnn"):  # without a GPU, cudnn is computed by xla
        changed = dataclasses.replace(config, attention=attention)
        assert_close(plain, features_of(backbone, changed), 0.03)


def test_library_attention_has_the_same_derivative() -> None:
    qkv = jax.random.normal(jax.random.key(0), (2, 7, 3, 2, 8))

    def loss(attend: Any, x: jax.Array) -> jax.Array:
        return jnp.sin(attend(x)).sum()

    library = functools.partial(layers.library_attend, implementation="xla")
    one, two = (jax.grad(functools.partial(loss, f))(qkv) for f in (layers.attend, library))
    np.testing.assert_allclose(one, two, atol=5e-6)


def test_float32_products_are_exact_in_both() -> None:
    """Every product of float32 operands asks for the highest precision: no TF32 on GPUs."""
    qkv = jax.ShapeDtypeStruct((2, 7, 3, 2, 8), jnp.float32)
    with jax.default_matmul_precision("default"):
        for attend in (layers.attend, lambda x: layers.library_attend(x, "xla")):
            text = jax.jit(attend).lower(qkv).as_text()
            products = [line for line in text.splitlines() if "dot_general" in line]
            assert len(products) == 2
            assert all("HIGHEST" in line for line in products)


def test_cudnn_in_float32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"detector\.attention .*bfloat16"):
        DetectorConfig(attention="cudnn")


@pytest.mark.parametrize("field", ["attention", "run_layout"])
def test_unknown_choices_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"detector.{field}"):
        DetectorConfig(**{field: "fast"})


def test_a_bank_does_not_depend_on_them() -> None:
    assert not {"attention", "run_layout"} & set(BEFORE_THE_HEAD)
