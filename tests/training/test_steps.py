"""The training step: what moves, what does not, and that devices do not matter."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cinemae_jax.detector import scoring
from cinemae_jax.features import extraction
from cinemae_jax.model.cinemae import Backbone, Features, logits, num_params, num_statistics
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.head import (
    FREQUENCY_PATHWAY,
    GLOBAL_PATHWAY,
    HeadState,
    Normalizer,
    init_params,
    learned_weight,
)
from cinemae_jax.model.masking import Masks
from cinemae_jax.runtime.devices import Replicas, merge
from cinemae_jax.training import steps
from tests.conftest import SMALL

CONFIG = DetectorConfig(hidden=8)
RUNS = extraction.drawn_runs(Masks(0, CONFIG.num_runs, 4, 1))
BATCH = 16
KEY = jax.random.key(1)
# Strengths of weight decay, and the pathway that each is for.
DECAYS = {
    "weight_decay": "mlp",
    "global_weight_decay": GLOBAL_PATHWAY,
    "frequency_weight_decay": FREQUENCY_PATHWAY,
}
ONE = Normalizer(*(np.full(n, v, np.float32) for n, v in ((24, 0), (24, 1), (3, 0.5), (3, 2))))


def make_batch(seed: int = 0, size: int = BATCH) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, 2, size).astype(np.int32),
        "example_id": rng.integers(0, 2**32, size, dtype=np.uint32),
        "epoch": np.zeros(size, np.int32),
        "valid": np.ones(size, bool),
    }


def normalizer(num_seeds: int) -> Normalizer:
    return jax.tree.map(lambda x: np.stack([x] * num_seeds), ONE)


def start(
    config: DetectorConfig = CONFIG, num_seeds: int = 1, **decay: float
) -> tuple[optax.GradientTransformation, steps.TrainState]:
    decay = dict.fromkeys(DECAYS, 1e-2) | decay
    tx = steps.make_optimizer(optax.constant_schedule(1e-2), **decay)
    count = num_statistics(config, SMALL)
    heads = [init_params(config, jax.random.key(i), SMALL.width, count) for i in range(num_seeds)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *heads)
    return tx, steps.TrainState(params, jax.vmap(tx.init)(params))


def train(
    backbone: Backbone,
    replicas: Replicas,
    batches: list[dict[str, np.ndarray]],
    config: DetectorConfig = CONFIG,
    num_seeds: int = 1,
    **decay: float,
) -> tuple[steps.TrainState, list[np.ndarray]]:
    """Features on all devices, then the step of the heads, as the main job does it."""
    tx, state = start(config, num_seeds, **decay)
    runs = extraction.drawn_runs(Masks(0, config.num_runs, 4, num_seeds))
    extract = replicas.pmap_map(extraction.make_extract(config, runs), replicated=2)
    step = replicas.pmap_step(
        steps.make_head_step(config, tx, SMALL.num_patches), replicated=2, donate=(0,)
    )
    frozen = replicas.replicate((backbone, KEY))
    state, norm = replicas.replicate((state, normalizer(num_seeds)))
    losses = []
    for batch in batches:
        features = extract(*frozen, replicas.shard(batch, extraction.INPUTS))
        labels = replicas.shard(batch, ("label", "valid"))
        state, loss = step(state, norm, steps.Labelled(features, **labels))
        losses.append(np.asarray(loss))
    return state, losses


def twin(
    backbone: Backbone, batches: list[dict[str, np.ndarray]]
) -> tuple[steps.TrainState, list[float]]:
    """The same training as one jitted program on one device: no pmap, collectives or seeds."""
    tx, state = start()
    params = jax.tree.map(lambda x: x[0], state.params)
    extract = extraction.make_extract(
        CONFIG, extraction.drawn_runs(Masks(0, CONFIG.num_runs, 4, 1))
    )

    @jax.jit
    def step(
        params: object, opt_state: object, batch: dict[str, jax.Array]
    ) -> tuple[object, object, jax.Array]:
        features = extract(backbone, KEY, batch)

        def loss_of(params: object) -> jax.Array:
            logit, _ = logits(HeadState(params, ONE), features, CONFIG, SMALL.num_patches)
            loss = -jax.nn.log_sigmoid(jnp.where(batch["label"] == 1, logit, -logit))
            return (loss * batch["valid"]).sum() / batch["valid"].sum()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    losses, opt_state = [], tx.init(params)
    for batch in batches:
        params, opt_state, loss = step(params, opt_state, jax.tree.map(jnp.asarray, batch))
        losses.append(float(loss))
    return steps.TrainState(jax.tree.map(lambda x: x[None], params), opt_state), losses


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
    state, losses = train(backbone, replicas, batches(5))
    expected, expected_losses = twin(backbone, batches(5))
    np.testing.assert_allclose(np.concatenate(losses), expected_losses, rtol=1e-5)
    # Adam divides by the root of tiny second moments, which magnifies rounding in the gradient
    assert_same(state.params, expected.params, atol=2e-4)


@pytest.mark.parametrize("count", [1, 8])
def test_shard_map_equals_pmap(backbone: Backbone, count: int) -> None:
    """Features, steps with donated state, and scores: the same operations on the same devices.

    XLA may order a sum otherwise in another program, hence float32 rounding and Adam's magnifying
    of it, as in the test above.
    """
    devices = tuple(jax.devices()[:count])
    both = [Replicas(devices), Replicas(devices, "shard_map")]
    (one, losses), (two, twin_losses) = (train(backbone, r, batches(4)) for r in both)
    np.testing.assert_allclose(losses, twin_losses, rtol=1e-6)
    assert_same(one.params, two.params, atol=1e-5)
    for leaf in jax.tree.leaves(two.params):  # replicas hold the same values
        first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        assert len(others) == count - 1
        for other in others:
            np.testing.assert_array_equal(first, other)
    found = []
    for r in both:
        extract = r.pmap_map(extraction.make_extract(CONFIG, RUNS), replicated=2)
        frozen = r.replicate((backbone, KEY))
        found.append(merge(extract(*frozen, r.shard(make_batch(), extraction.INPUTS))))
    assert found[1].f_global.shape == (BATCH, SMALL.width)
    assert_same(found[0], found[1], atol=1e-5)


def test_local_devices_are_mapped_alike() -> None:
    assert Replicas(spmd="shard_map").local.spmd == "shard_map"


def test_all_replicas_hold_the_same_values(backbone: Backbone) -> None:
    replicas = Replicas()
    state, _ = train(backbone, replicas, batches(3))
    for leaf in jax.tree.leaves(state):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == replicas.count == 8
        for shard in shards[1:]:
            np.testing.assert_array_equal(shards[0], shard)


def test_twenty_steps_leave_the_backbone_as_it_was(backbone: Backbone) -> None:
    before = [np.asarray(x).tobytes() for x in jax.tree.leaves(backbone.params)]
    _, losses = train(backbone, Replicas(), batches(2) * 10)
    after = [np.asarray(x).tobytes() for x in jax.tree.leaves(backbone.params)]
    assert before == after
    assert np.mean(losses[-4:]) < np.mean(losses[:4])  # while the head did learn


def test_optimiser_holds_two_moments_of_the_head_and_counters(backbone: Backbone) -> None:
    _, state = start()
    head = num_params(state.params)
    held = num_params(state.opt_state)
    assert 2 * head <= held <= 2 * head + 4
    assert held < num_params(backbone.params) / 5


def test_the_frozen_side_is_not_differentiated(backbone: Backbone) -> None:
    """A loss of the features has no gradient in the backbone, and the head's step no backbone."""
    batch = jax.tree.map(jnp.asarray, make_batch())
    extract = extraction.make_extract(CONFIG, extraction.first_runs(2))

    def loss(params: Any) -> jax.Array:
        features = extract(dataclasses.replace(backbone, params=params), KEY, batch)
        return features.f_global.sum() + features.terms.mismatch.sum()

    gradient = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, backbone.params))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_invalid_examples_do_not_count(backbone: Backbone) -> None:
    replicas = Replicas(tuple(jax.devices()[:1]))
    batch = make_batch()
    batch["valid"][3:] = False
    spoiled = {k: v.copy() for k, v in batch.items()}
    spoiled["image"][3:] = 0
    spoiled["label"][3:] = 1 - spoiled["label"][3:]
    one, two = (train(backbone, replicas, [b])[0] for b in (batch, spoiled))
    assert_same(one.params, two.params, atol=1e-6)


def test_each_crop_is_judged_by_itself(backbone: Backbone) -> None:
    """The loss of two crops is the mean of theirs, not that of their mean logit."""
    replicas = Replicas(tuple(jax.devices()[:1]))
    tx, state = start()
    extract = replicas.pmap_map(
        extraction.make_extract(CONFIG, extraction.drawn_runs(Masks(0, CONFIG.num_runs, 4, 1))),
        replicated=2,
    )
    step = replicas.pmap_step(steps.make_head_step(CONFIG, tx, SMALL.num_patches), replicated=2)
    frozen = replicas.replicate((backbone, KEY))
    features = extract(*frozen, replicas.shard(make_batch(), extraction.INPUTS))
    label = make_batch()["label"][::2]
    losses = []
    for labels in (label, np.repeat(label, 2)):
        known = replicas.split({"label": labels, "valid": np.ones(len(labels), bool)})
        _, loss = step(state, normalizer(1), steps.Labelled(features, **known))
        losses.append(np.asarray(loss))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_batch_without_valid_examples_moves_nothing_by_gradient(backbone: Backbone) -> None:
    batch = make_batch()
    batch["valid"][:] = False
    state, losses = train(backbone, Replicas(), [batch], weight_decay=0.0, global_weight_decay=0.0)
    _, before = start()
    assert losses == [0.0]
    assert_same(state.params, before.params, atol=0)


def test_heads_trained_at_once_are_those_trained_alone(backbone: Backbone) -> None:
    """Seed 0 of three is seed 0 alone, and another seed is another head."""
    replicas = Replicas(tuple(jax.devices()[:2]))
    three, losses = train(backbone, replicas, batches(4), num_seeds=3)
    alone, losses_alone = train(backbone, replicas, batches(4))
    np.testing.assert_allclose(np.stack(losses)[:, :1], np.stack(losses_alone), rtol=1e-5)
    assert_same(jax.tree.map(lambda x: x[:1], three.params), alone.params, atol=2e-4)
    kernel = np.asarray(three.params["mlp"]["Dense_0"]["kernel"])
    assert np.abs(kernel[0] - kernel[1]).max() > 0.1


def features_of(backbone: Backbone, runs: extraction.Runs, **entries: np.ndarray) -> Features:
    batch = jax.tree.map(jnp.asarray, make_batch() | entries)
    return jax.jit(extraction.make_extract(CONFIG, runs))(backbone, KEY, batch)


def test_evaluation_always_uses_the_same_masks(backbone: Backbone) -> None:
    later = np.ones(BATCH, np.int32)
    one, two = (
        features_of(backbone, extraction.first_runs(2), epoch=e) for e in (0 * later, later)
    )
    np.testing.assert_array_equal(one.masked, two.masked)


def test_a_learned_mismatch_weight_moves_and_stays_positive(backbone: Backbone) -> None:
    config = DetectorConfig(hidden=8, learn_mismatch_weight=True, mismatch_weight=0.1)
    state, _ = train(backbone, Replicas(), batches(2) * 4, config)
    weight = float(learned_weight(jax.tree.map(lambda x: x[0], state.params)))
    assert weight > 0
    assert abs(weight - 0.1) > 1e-3


def test_scores_equal_on_any_number_of_devices(backbone: Backbone) -> None:
    results = []
    for count in (1, 8):
        replicas = Replicas(tuple(jax.devices()[:count]))
        _, state = start(num_seeds=2)
        extract = replicas.pmap_map(
            extraction.make_extract(CONFIG, extraction.first_runs(2)), replicated=2
        )
        score = replicas.pmap_map(scoring.make_score(CONFIG, SMALL.num_patches), replicated=1)
        heads, frozen = replicas.replicate(
            (HeadState(state.params, normalizer(2)), (backbone, KEY))
        )
        features = extract(*frozen, replicas.shard(make_batch(), extraction.INPUTS))
        results.append(merge(score(heads, features)))
    assert results[0].logit.shape == (BATCH, 2)
    assert_same(results[0], results[1], atol=1e-5)


@pytest.mark.parametrize("strong", DECAYS)
def test_every_pathway_has_its_own_weight_decay(strong: str) -> None:
    config = DetectorConfig(hidden=8, fusion="hybrid", frequency="radial")
    decay = dict.fromkeys(DECAYS, 0.0) | {strong: 50.0}
    tx, state = start(config, **decay)
    params = jax.tree.map(lambda x: x[0] + 1.0, state.params)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(still, tx.init(params), params)
    moved = {name for name, leaf in updates.items() if jax.tree.leaves(leaf)[-1].any()}
    assert moved == {DECAYS[strong]}


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [(0, "some.field must be 1 or more, is 0"), (12, "some.field 12 is not divisible by the 8")],
)
def test_batches_that_devices_cannot_share_are_refused(batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replicas().check_batch_size(batch_size, "some.field")
