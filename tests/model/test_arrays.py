"""Run-time checks of array fields: what the test suite's import hook accepts and refuses."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from cinemae_jax.model import bands, reconstruction
from cinemae_jax.model.cinemae import Features
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.head import Normalizer
from cinemae_jax.model.lcas import Terms
from cinemae_jax.model.mae import MAE
from tests.conftest import SMALL


def features() -> Features:
    rng = np.random.default_rng(0)
    names = ("deviation", "reconstruction_deviation", "mismatch", "patch_variance")
    of_patches = {name: jnp.asarray(rng.random((2, 3, 5), np.float32)) for name in names}
    terms = Terms(**of_patches, context_variance=jnp.ones((2, 3, 3)))
    return Features(jnp.ones((2, 7)), terms, jnp.zeros((2, 3, 5), jnp.int32), jnp.ones(2))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deviation", np.ones((2, 3, 6), np.float32)),  # another M than the other terms
        ("mismatch", np.ones((2, 2, 5), np.float32)),  # another K
        ("patch_variance", np.ones((2, 3, 5), int)),
        ("context_variance", np.ones(3, np.float32)),
        ("bands", [1.0]),
    ],
)
def test_terms_of_other_shapes_or_dtypes_are_refused(field: str, value: Any) -> None:
    terms = features().terms
    with pytest.raises(TypeCheckError, match=field):
        dataclasses.replace(terms, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("f_global", np.ones((3, 7), np.float32)),  # another B than the other fields
        ("masked", np.ones((2, 3, 5), np.float32)),
        ("uniform_share", None),
        ("terms", {}),
    ],
)
def test_features_of_other_shapes_or_types_are_refused(field: str, value: Any) -> None:
    with pytest.raises(TypeCheckError, match=field):
        dataclasses.replace(features(), **{field: value})


def test_statistics_of_a_normalizer_belong_together() -> None:
    with pytest.raises(TypeCheckError):
        Normalizer(np.zeros(7), np.ones(8), np.zeros(3), np.ones(3))
    with pytest.raises(TypeCheckError):
        Normalizer(np.zeros(7), np.ones(7), np.zeros((2, 3)), np.ones((2, 3)))


def test_jax_rebuilds_trees_with_any_leaves_and_axes() -> None:
    one = features()
    names = jax.tree.map(lambda leaf: str(leaf.shape), one)
    assert names.terms.mismatch == "(2, 3, 5)"
    assert jax.tree.map(lambda _: None, one).f_global is None
    assert jax.eval_shape(lambda: one).masked.shape == (2, 3, 5)
    stacked = jax.vmap(lambda f: f)(jax.tree.map(lambda leaf: leaf[None], one))
    assert stacked.uniform_share.shape == (1, 2)
    host = jax.device_get(one)
    assert isinstance(host.f_global, np.ndarray)


def test_configurations_check_themselves_first() -> None:
    with pytest.raises(ValueError, match=r"detector\.fusion"):
        DetectorConfig(fusion="sum")  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError, match="hidden"):
        DetectorConfig(hidden=0.5)  # type: ignore[arg-type]


def test_every_module_is_checked() -> None:
    with pytest.raises(TypeCheckError, match="patches"):
        bands.spectrum(jnp.ones(12))
    with pytest.raises(TypeCheckError, match="images"):
        reconstruction.pictures(
            {}, jnp.ones((1, 32, 32, 3)), jax.random.key(0), model=MAE(SMALL), mask_ratio=0.75
        )
