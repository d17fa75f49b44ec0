"""Fusion and classifier, their configuration, and standardisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cinemae_jax.model.cinemae import num_statistics
from cinemae_jax.model.config import FUSIONS, DetectorConfig, Fusion
from cinemae_jax.model.head import HeadState, Normalizer, head_of, init_params
from cinemae_jax.training import steps
from tests.conftest import SMALL

WIDTH = 12
KEY = jax.random.key(2)


def inputs(seed: int = 0) -> tuple[jax.Array, jax.Array]:
    f, s = jax.random.split(jax.random.key(seed))
    return jax.random.normal(f, (5, WIDTH)), jax.random.normal(s, (5, 3))


def config_of(fusion: Fusion, hidden: int = 8) -> DetectorConfig:
    """Of a head on three statistics; in the fusions that read it, the frequency follows them."""
    own = fusion in ("hybrid", "frequency")
    return DetectorConfig(fusion=fusion, hidden=hidden, frequency="radial" if own else "none")


def fresh(fusion: Fusion) -> Any:
    config = config_of(fusion)
    return init_params(config, jax.random.key(1), WIDTH, num_statistics(config, SMALL))


def run(fusion: Fusion, f: jax.Array, s: jax.Array, params: Any = None) -> Any:
    return head_of(config_of(fusion)).apply({"params": params or fresh(fusion)}, f, s)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_logit_per_image_and_gradients_to_every_parameter(fusion: Fusion) -> None:
    f, _ = inputs()
    s = jax.random.normal(KEY, (5, num_statistics(config_of(fusion), SMALL)))
    assert run(fusion, f, s).shape == (5,)
    params = fresh(fusion)
    # the last layer of MLP_δ starts at zero, which blocks the gradient of the first for one step
    params = jax.tree.map(lambda x: x + 0.1, params)
    grads = jax.grad(lambda p: (run(fusion, f, s, p) ** 2).sum())(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(np.asarray(leaf)).max() > 0, path


@pytest.mark.parametrize("hidden", [0, 256])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_first_steps_do_not_raise_the_loss(fusion: Fusion, hidden: int) -> None:
    """At the peak learning rate of the default recipe, without its warm-up."""
    config = config_of(fusion, hidden)
    count = num_statistics(config, SMALL)
    params = init_params(config, jax.random.key(0), 192, count)
    f, s = jax.random.normal(jax.random.key(1), (64, 192)), jax.random.normal(KEY, (64, count))
    labels = jnp.arange(64) % 2
    tx = steps.make_optimizer(lambda _: 1e-3, weight_decay=0.01, global_weight_decay=0.01)

    def loss(params: Any) -> jax.Array:
        logit = head_of(config).apply({"params": params}, f, s)
        return steps.binary_cross_entropy(logit, labels).mean()

    @jax.jit
    def step(params: Any, state: Any) -> tuple[jax.Array, Any, Any]:
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = tx.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), state

    losses, state = [], tx.init(params)
    for _ in range(6):
        value, params, state = step(params, state)
        losses.append(float(value))
    assert max(losses[1:]) < losses[0] + 0.01, losses


def test_additive_fusion_starts_as_the_global_feature_alone() -> None:
    f, s = inputs()
    np.testing.assert_array_equal(run("additive", f, s), run("additive", f, s * 9 + 1))


def test_gate_starts_near_the_global_feature() -> None:
    params = init_params(DetectorConfig(fusion="gate", hidden=8), jax.random.key(1), WIDTH, 3)
    gates = jax.nn.sigmoid(params["gate"]["bias"])
    assert float(gates.min()) > 0.85


@pytest.mark.parametrize(("fusion", "ignores"), [("global", 1), ("lcas", 0)])
def test_single_pathways_ignore_the_other(fusion: Fusion, ignores: int) -> None:
    params = init_params(DetectorConfig(fusion=fusion, hidden=8), jax.random.key(1), WIDTH, 3)
    params = jax.tree.map(lambda x: x + jnp.linspace(0, 1, x.size).reshape(x.shape), params)
    (f, s), (other_f, other_s) = inputs(0), inputs(1)
    expected = run(fusion, f, s, params)
    changed = run(fusion, other_f, s, params), run(fusion, f, other_s, params)
    np.testing.assert_array_equal(changed[ignores], expected)
    assert np.abs(np.asarray(changed[1 - ignores] - expected)).max() > 1e-4


def test_logit_fusion_is_the_sum_of_its_pathways() -> None:
    f, s = inputs()
    params = init_params(DetectorConfig(fusion="logit", hidden=8), jax.random.key(1), WIDTH, 3)
    params = jax.tree.map(lambda x: x + 0.1, params)
    none_f, none_s = jnp.zeros_like(f), jnp.zeros_like(s)
    both = run("logit", f, s, params) + run("logit", none_f, none_s, params)
    apart = run("logit", f, none_s, params) + run("logit", none_f, s, params)
    np.testing.assert_allclose(both, apart, atol=1e-5)


def test_every_pathway_of_the_hybrid_starts_at_zero_and_they_add_up() -> None:
    f, s = jax.random.normal(KEY, (5, WIDTH)), jax.random.normal(KEY, (5, 3 + 24))
    params = fresh("hybrid")
    np.testing.assert_array_equal(run("hybrid", f, s, params), np.zeros(5))
    params = jax.tree.map(lambda x: x + jnp.linspace(0, 1, x.size).reshape(x.shape), params)
    total, alone = run("hybrid", f, s, params), 0.0
    parts = (f, None, None), (None, s[:, :3], None), (None, None, s[:, 3:])
    zeros = jnp.zeros((5, WIDTH)), jnp.zeros((5, 3)), jnp.zeros((5, 24))
    for part in parts:
        g, t, q = (z if x is None else x for x, z in zip(part, zeros, strict=True))
        alone += run("hybrid", g, jnp.concatenate([t, q], axis=1), params)
    nothing = run("hybrid", zeros[0], jnp.concatenate(zeros[1:], axis=1), params)
    np.testing.assert_allclose(alone - 2 * nothing, total, atol=1e-3)


def test_normalizer_standardises_and_survives_constant_inputs() -> None:
    f, s = inputs()
    s = s.at[:, 2].set(0.0)  # s3 is 0 when K = 1
    moments = (f.mean(0), f.std(0), s.mean(0), s.std(0))
    g, t = Normalizer(*moments)(f, s)
    np.testing.assert_allclose(g.mean(0), np.zeros(WIDTH), atol=1e-6)
    np.testing.assert_allclose(g.std(0), np.ones(WIDTH), rtol=1e-5)
    assert not np.asarray(t[:, 2]).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fusion": "sum"}, "detector.fusion .*additive"),
        ({"score": "lcas"}, "detector.score .*context_nll"),
        ({"pooling": "max"}, "detector.pooling"),
        ({"num_runs": -1}, "detector.num_runs"),
        ({"num_runs": 0}, "detector.num_runs .*'additive'"),
        ({"frequency": "fourier"}, "detector.frequency .*radial"),
        ({"fusion": "hybrid"}, "detector.frequency"),
        ({"hidden": -1}, "detector.hidden"),
        ({"clip": float("nan")}, "detector.clip"),
        ({"low_context_share": 1.5}, "detector.low_context_share"),
        ({"statistics": ()}, "detector.statistics"),
        ({"statistics": ("variability",) * 2}, "detector.statistics"),
        ({"learn_mismatch_weight": True, "mismatch_weight": 0.0}, "detector.mismatch_weight"),
        ({"learn_mismatch_weight": True, "score": "relative"}, "learn_mismatch_weight .*relative"),
    ],
)
def test_impossible_detectors_are_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorConfig(**fields)


def test_head_state_holds_no_more_than_head_and_normalizer() -> None:
    params = init_params(DetectorConfig(hidden=8), jax.random.key(1), WIDTH, 3)
    normalizer = Normalizer(*(jnp.zeros(n) for n in (WIDTH, WIDTH, 3, 3)))
    count = sum(x.size for x in jax.tree.leaves(HeadState(params, normalizer)))
    mlp = (3 + 1) * 8 + (8 + 1) * WIDTH
    assert count == mlp + 2 * WIDTH + (WIDTH + 1) + 2 * (WIDTH + 3)
