"""Cost of a step in units that do not depend on the machine: FLOPs, compilations, transfers.

FLOPs are XLA's count before optimisation, 2 per multiply-add; docs/method.md 7.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from cinemae_jax.data.order import Order
from cinemae_jax.detector import loading
from cinemae_jax.features import extraction, filling, splits
from cinemae_jax.features.run import Run
from cinemae_jax.model import mae
from cinemae_jax.model.cinemae import Backbone, extract_features, random_backbone
from cinemae_jax.model.config import DetectorConfig, MAEConfig
from cinemae_jax.model.mae import MAE
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.training import optim, pretraining
from tests.conftest import SMALL
from tests.helpers.small_run import small_settings

LARGE = mae.vit_large()
VISIBLE = 49
# ViT-L's width in few blocks: it is traced, not run, but K times.
SHORT = dataclasses.replace(LARGE, depth=2, decoder_depth=1)


def shapes_of(config: MAEConfig) -> Any:
    return jax.eval_shape(lambda: mae.initial_variables(config, jax.random.key(0)))


def gflop(function: Any, *arguments: Any) -> float:
    """Cost of a function that is lowered for abstract arguments, not compiled."""
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"] / 1e9


def ids(count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, count), jnp.int32)


def pixels(config: MAEConfig) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)


def test_vit_large_costs_what_the_method_says() -> None:
    model, variables, images = MAE(LARGE), shapes_of(LARGE), pixels(LARGE)
    seen, hidden = ids(VISIBLE), ids(LARGE.num_patches - VISIBLE)

    def encode(v: Any, x: Any, i: Any = None) -> Any:
        return model.apply(v, x, i, method="encode")

    def decode(v: Any, t: Any, i: Any, j: Any) -> Any:
        return model.apply(v, t, i, j, method="decode")

    tokens = jax.ShapeDtypeStruct((1, 1 + VISIBLE, LARGE.width), jnp.float32)
    assert gflop(encode, variables, images) == pytest.approx(122.8, rel=0.05)
    assert gflop(encode, variables, images, seen) == pytest.approx(30.4, rel=0.05)
    assert gflop(decode, variables, tokens, seen, hidden) == pytest.approx(10.8, rel=0.05)


def features_gflop(num_runs: int) -> float:
    backbone = Backbone(shapes_of(SHORT)["params"], SHORT)
    config = DetectorConfig(num_runs=num_runs, fusion="additive" if num_runs else "global")
    return gflop(
        lambda b, images, keys, runs: extract_features(b, images, keys, runs, config),
        backbone,
        jax.ShapeDtypeStruct((1, SHORT.image_size, SHORT.image_size, 3), jnp.uint8),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)),
        ids(num_runs),
    )


def test_cost_is_linear_in_the_number_of_runs() -> None:
    costs = [features_gflop(k) for k in range(5)]
    slopes = np.diff(costs)
    encoder = 2 * (12 * SHORT.width**2 * 50 + 2 * 50**2 * SHORT.width) * SHORT.depth
    width, length = SHORT.decoder_width, SHORT.num_patches + 1
    decoder = 2 * (12 * width**2 * length + 2 * length**2 * width) * SHORT.decoder_depth
    ends = 2 * (50 * SHORT.width * width + (length - 50) * width * SHORT.patch_dim)
    embed = 2 * SHORT.num_patches * SHORT.patch_dim * SHORT.width  # of all runs, once
    np.testing.assert_allclose(slopes[1:], (encoder + decoder + ends) / 1e9, rtol=0.05)
    np.testing.assert_allclose(slopes[0] - slopes[1], embed / 1e9, rtol=0.05)
    np.testing.assert_allclose(slopes[1:], slopes[1], rtol=0.01)


def compiled_gflop(fusion: Any, *, whole: bool = False) -> float:
    config = DetectorConfig(num_runs=2, fusion=fusion)
    batch = {
        "image": jax.ShapeDtypeStruct((1, SMALL.image_size, SMALL.image_size, 3), jnp.uint8),
        "example_id": jax.ShapeDtypeStruct((1,), jnp.uint32),
        "epoch": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    extract = extraction.make_extract(config, extraction.first_runs(2), whole=whole)
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = jax.jit(extract).lower(Backbone(shapes_of(SMALL)["params"], SMALL), key, batch)
    return lowered.compile().cost_analysis()["flops"] / 1e9


def test_a_head_without_the_global_feature_does_not_pay_for_it() -> None:
    model, images = MAE(SMALL), pixels(SMALL)
    unmasked = gflop(lambda v, x: model.apply(v, x, method="encode"), shapes_of(SMALL), images)
    saved = compiled_gflop("additive") - compiled_gflop("lcas")
    assert saved == pytest.approx(unmasked, rel=0.2)  # masked runs share the embedding
    assert compiled_gflop("lcas", whole=True) == compiled_gflop("additive", whole=True)


def test_a_training_step_costs_three_forward_passes() -> None:
    """The gradients of a layer's input and of its kernel cost as much as its product, each."""
    model, variables = MAE(SHORT), shapes_of(SHORT)
    arguments = (variables, pixels(SHORT), ids(VISIBLE), ids(SHORT.num_patches - VISIBLE))

    def loss(v: Any, x: Any, i: Any, j: Any) -> jax.Array:
        return (model.apply(v, x, i, j) ** 2).sum()

    ratio = gflop(jax.grad(loss), *arguments) / gflop(loss, *arguments)
    assert ratio == pytest.approx(3, rel=0.05)


def test_pretraining_compiles_once_and_transfers_nothing_implicitly() -> None:
    replicas = Replicas(tuple(jax.devices()[:2]))
    model, tx = MAE(SMALL), optax.sgd(1e-3)
    params = random_backbone(SMALL).params
    state = replicas.replicate(pretraining.PretrainState(params, tx.init(params)))
    key = replicas.replicate(jax.random.key(0))
    step = replicas.pmap_step(pretraining.make_step(model, tx, 0.75), replicated=2, donate=(0,))
    rng = np.random.default_rng(0)

    def batch(first: int) -> dict[str, jax.Array]:
        return replicas.shard(
            {
                "image": rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8),
                "example_id": np.arange(first, first + 4, dtype=np.uint32),
                "epoch": np.full(4, first, np.int32),
                "valid": np.array([True, True, True, first == 0]),
            },
            pretraining.INPUTS,
        )

    batches = [batch(i) for i in range(4)]
    state, _ = step(state, key, batches[0])
    with jax.transfer_guard("disallow"), jax.log_compiles(False), no_compilation():
        for later in batches[1:]:
            state, loss = step(state, key, later)
    assert np.isfinite(loss)


class no_compilation:  # noqa: N801
    """Fails if XLA compiles anything inside."""

    def __enter__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration: float, **_: object) -> None:
        self.count += event == "/jax/core/compile/backend_compile_duration"

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)
        assert self.count == 0, f"{self.count} compilations after the first step"


def test_epochs_from_a_bank_compile_nothing_new(
    data_set: Path, backbone_file: Path, tmp_path: Path
) -> None:
    config, replicas = small_settings(data_set, backbone_file), Replicas(tuple(jax.devices()[:2]))
    data, run = splits.read_data(config.data), Run.start(tmp_path, replicas)
    frozen = loading.load_backbone(config)
    sets = filling.open_sets(config, data, frozen, run)
    batches = sets.train.training(Order(len(sets.train.images), 8, 3, 0), 0)
    next(batches)
    with no_compilation():
        assert len(list(batches)) > 2 * len(sets.train.images) // 8 > 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_take_the_models_dtype_and_return_float32(dtype: Any) -> None:
    """Every matrix product rounds its operands once and accumulates in float32."""
    model = MAE(SMALL, dtype)
    arguments = (shapes_of(SMALL), pixels(SMALL), ids(4), ids(12))
    jaxpr = jax.make_jaxpr(model.apply)(*arguments)
    products = list(dots(jaxpr.jaxpr))
    assert len(products) == 3 + 6 * (SMALL.depth + SMALL.decoder_depth)
    for equation in products:
        assert {v.aval.dtype for v in equation.invars} == {np.dtype(dtype)}
        assert {v.aval.dtype for v in equation.outvars} == {np.dtype(np.float32)}


def dots(jaxpr: Any) -> Any:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from dots(inner)


def test_bfloat16_stays_close_to_float32(backbone: Backbone) -> None:
    """A bfloat16 rounding is 4e-3 of a value; two blocks and two decoder blocks add up to < 10."""
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    seen, hidden = jnp.tile(jnp.arange(4), (2, 1)), jnp.tile(jnp.arange(4, 16), (2, 1))
    exact, rounded = (
        jax.jit(MAE(SMALL, dtype).apply)({"params": backbone.params}, images, seen, hidden)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    gap = np.abs(np.asarray(rounded, np.float32) - np.asarray(exact))
    assert 0 < gap.max() < 0.04 * np.abs(np.asarray(exact)).max()


def test_kernels_rounded_once_give_the_features_of_kernels_rounded_in_each_call(
    backbone: Backbone,
) -> None:
    """For parameters from files (NumPy) and on devices; float32 changes nothing."""
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8),
        "example_id": np.arange(2, dtype=np.uint32),
        "epoch": np.zeros(2, np.int32),
    }
    config = DetectorConfig(num_runs=2, dtype="bfloat16")
    extract, key = (
        jax.jit(extraction.make_extract(config, extraction.first_runs(2))),
        jax.random.key(0),
    )
    expected = extract(backbone, key, batch)
    read = dataclasses.replace(backbone, params=jax.device_get(backbone.params))
    for placed in (backbone.in_dtype("bfloat16"), read.in_dtype("bfloat16")):
        kernels = jax.tree.map(lambda x: x.dtype == jnp.bfloat16, placed.params)
        assert kernels == optim.kernels(backbone.params)
        jax.tree.map(np.testing.assert_array_equal, extract(placed, key, batch), expected)
    same = jax.tree.map(lambda a, b: a is b, read.in_dtype("float32").params, read.params)
    assert all(jax.tree.leaves(same))
