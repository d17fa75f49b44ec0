"""The training step: what moves, what does not, and that devices do not matter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cinemae_jax import steps
from cinemae_jax.distributed import Replicas, merge
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.detector import Backbone, head_logits, num_params, statistics
from cinemae_jax.model.head import GLOBAL_PATHWAY, HeadState, Normalizer, head_of, init_params

from .conftest import SMALL

CONFIG = DetectorConfig(hidden=8)
BATCH = 16


def make_batch(seed: int = 0, size: int = BATCH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, 2, size).astype(np.int32),
        "example_id": rng.integers(0, 2**32, size, dtype=np.uint32),
        "epoch": np.zeros(size, np.int32),
        "valid": np.ones(size, bool),
    }


def start(
    backbone: Backbone, config: DetectorConfig = CONFIG, **decay: float
) -> tuple[optax.GradientTransformation, steps.TrainState, steps.Frozen]:
    decay = {"weight_decay": 1e-2, "global_weight_decay": 1e-2} | decay
    tx = steps.make_optimizer(optax.constant_schedule(1e-2), **decay)
    params = init_params(head_of(config), jax.random.key(0), SMALL.width, 3)
    normalizer = Normalizer(
        *(jnp.full(n, v) for n, v in ((24, 0.0), (24, 1.0), (3, 0.5), (3, 2.0)))
    )
    frozen = steps.Frozen(backbone, normalizer, jax.random.key(1))
    return tx, steps.TrainState(params, tx.init(params)), frozen


def train(
    backbone: Backbone,
    replicas: Replicas,
    batches: list[dict[str, np.ndarray]],
    config: DetectorConfig = CONFIG,
    **decay: float,
) -> tuple[steps.TrainState, list[float], steps.Frozen]:
    tx, state, frozen = start(backbone, config, **decay)
    step = replicas.pmap_step(steps.make_train_step(config, tx), replicated=2, donate=(0,))
    state, frozen = replicas.replicate((state, frozen))
    losses = []
    for batch in batches:
        state, result = step(state, frozen, replicas.shard(batch, steps.INPUTS))
        losses.append(float(result["loss"]))
    return state, losses, frozen


def twin(
    backbone: Backbone, batches: list[dict[str, np.ndarray]]
) -> tuple[steps.TrainState, list[float]]:
    """The same training as one jitted program on one device, without pmap or collectives."""
    tx, state, frozen = start(backbone)

    @jax.jit
    def step(
        state: steps.TrainState, batch: dict[str, jax.Array]
    ) -> tuple[steps.TrainState, jax.Array]:
        features = steps.batch_features(frozen.backbone, frozen.key, batch, CONFIG)
        stats = statistics(features, CONFIG, SMALL.num_patches)

        def loss_of(params: object) -> jax.Array:
            head = HeadState(params, frozen.normalizer)
            logit = head_logits(head, features.f_global, stats, CONFIG)
            loss = -jax.nn.log_sigmoid(jnp.where(batch["label"] == 1, logit, -logit))
            return (loss * batch["valid"]).sum() / batch["valid"].sum()

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return steps.TrainState(optax.apply_updates(state.params, updates), opt_state), loss

    losses = []
    for batch in batches:
        state, loss = step(state, jax.tree.map(jnp.asarray, batch))
        losses.append(float(loss))
    return state, losses


def assert_same(one: object, two: object, atol: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, two)


@functools.cache
def batches(count: int) -> list[dict[str, np.ndarray]]:
    made = [make_batch(seed) for seed in range(count)]
    made[0]["valid"][[1, 2, 11]] = False  # unevenly over the devices
    return made


def test_pmap_equals_the_jit_twin_on_any_number_of_devices(
    backbone: Backbone, replicas: Replicas
) -> None:
    state, losses, _ = train(backbone, replicas, batches(5))
    expected, expected_losses = twin(backbone, batches(5))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    # Adam divides by the root of tiny second moments, which magnifies rounding in the gradient
    assert_same(state.params, expected.params, atol=2e-4)


def test_all_replicas_hold_the_same_values(backbone: Backbone) -> None:
    replicas = Replicas()
    state, _, _ = train(backbone, replicas, batches(3))
    for leaf in jax.tree.leaves(state):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == replicas.count == 8
        for shard in shards[1:]:
            np.testing.assert_array_equal(shards[0], shard)


def test_twenty_steps_leave_the_backbone_as_it_was(backbone: Backbone) -> None:
    before = [np.asarray(x).tobytes() for x in jax.tree.leaves(backbone.params)]
    _, losses, frozen = train(backbone, Replicas(), batches(2) * 10)
    after = [np.asarray(x).tobytes() for x in jax.tree.leaves(frozen.backbone.params)]
    assert before == after
    assert np.mean(losses[-4:]) < np.mean(losses[:4])  # while the head did learn


def test_optimiser_holds_two_moments_of_the_head_and_counters(backbone: Backbone) -> None:
    _, state, _ = start(backbone)
    head = num_params(state.params)
    held = num_params(state.opt_state)
    assert 2 * head <= held <= 2 * head + 4
    assert held < num_params(backbone.params) / 5


def test_a_step_costs_about_a_forward_pass(backbone: Backbone) -> None:
    """Differentiating the backbone would cost three times as much."""
    tx, state, frozen = start(backbone)
    batch = {k: v[None] for k, v in make_batch().items()}

    def flops(function: object, *arguments: object) -> float:
        mapped = jax.vmap(function, axis_name="batch", in_axes=(None, None, 0))
        return jax.jit(mapped).lower(*arguments).compile().cost_analysis()["flops"]

    step = flops(steps.make_train_step(CONFIG, tx), state, frozen, batch)
    forward = flops(steps.make_score(CONFIG), state.params, frozen, batch)
    assert step < 1.1 * forward


def test_invalid_examples_do_not_count(backbone: Backbone) -> None:
    replicas = Replicas(tuple(jax.devices()[:1]))
    batch = make_batch()
    batch["valid"][3:] = False
    spoiled = {k: v.copy() for k, v in batch.items()}
    spoiled["image"][3:] = 0
    spoiled["label"][3:] = 1 - spoiled["label"][3:]
    one, two = (train(backbone, replicas, [b])[0] for b in (batch, spoiled))
    assert_same(one.params, two.params, atol=1e-6)


def test_a_batch_without_valid_examples_moves_nothing_by_gradient(backbone: Backbone) -> None:
    batch = make_batch()
    batch["valid"][:] = False
    state, losses, _ = train(
        backbone, Replicas(), [batch], weight_decay=0.0, global_weight_decay=0.0
    )
    _, before, _ = start(backbone)
    assert losses == [0.0]
    assert_same(state.params, before.params, atol=0)


def test_epochs_use_other_masks_and_evaluation_always_the_same(backbone: Backbone) -> None:
    features = jax.jit(steps.batch_features, static_argnums=3)
    batch = make_batch()
    later = batch | {"epoch": np.ones(BATCH, np.int32)}
    first, again, second = (
        np.asarray(features(backbone, jax.random.key(1), b, CONFIG).masked)
        for b in (batch, batch, later)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()


def test_scores_equal_on_any_number_of_devices(backbone: Backbone) -> None:
    results = []
    for count in (1, 8):
        replicas = Replicas(tuple(jax.devices()[:count]))
        _, state, frozen = start(backbone)
        score = replicas.pmap_map(steps.make_score(CONFIG), replicated=2)
        params, frozen = replicas.replicate((state.params, frozen))
        results.append(merge(score(params, frozen, replicas.shard(make_batch(), steps.INPUTS))))
    assert_same(results[0], results[1], atol=1e-5)


@pytest.mark.parametrize("strong", ["weight_decay", "global_weight_decay"])
def test_the_global_pathway_has_its_own_weight_decay(backbone: Backbone, strong: str) -> None:
    config = DetectorConfig(hidden=8, fusion="logit")
    decay = {"weight_decay": 0.0, "global_weight_decay": 0.0} | {strong: 50.0}
    nothing = make_batch()
    nothing["valid"][:] = False
    state, _, _ = train(backbone, Replicas(), [nothing], config, **decay)
    _, before, _ = start(backbone, config)
    shrunk = {
        name: not np.allclose(
            jax.tree.leaves(state.params[name])[-1], jax.tree.leaves(before.params[name])[-1]
        )
        for name in state.params
    }
    is_global = strong == "global_weight_decay"
    assert shrunk[GLOBAL_PATHWAY] == is_global
    kernel = state.params["mlp"]["Dense_0"]["kernel"]
    same = np.allclose(kernel, before.params["mlp"]["Dense_0"]["kernel"])
    assert same == is_global


@pytest.mark.parametrize("batch_size", [0, 12])
def test_batches_that_devices_cannot_share_are_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"some.field {batch_size} is not divisible by the 8"):
        Replicas().check_batch_size(batch_size, "some.field")
