"""The paper's model size (ViT-L/16) with random weights, on the CPU."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinemae_jax.features import extraction
from cinemae_jax.model import mae
from cinemae_jax.model.cinemae import Backbone, num_params
from cinemae_jax.model.config import DetectorConfig, vit_large
from cinemae_jax.model.head import Normalizer, init_params
from cinemae_jax.model.masking import Masks
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.training import steps

pytestmark = pytest.mark.slow


def vit_large_backbone() -> Backbone:
    """Weights from one small block of random numbers: drawing 330 million takes seconds and GBs."""
    config = vit_large()
    shapes = jax.eval_shape(lambda: mae.initial_variables(config, jax.random.key(0))["params"])
    block = 0.02 * np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> jax.Array:
        is_scale = path[-1].key == "scale"
        return jnp.asarray(np.resize(block, shape.shape) + np.float32(is_scale))

    return Backbone(jax.tree.map_with_path(leaf, shapes), config, "random")


def test_vit_large_runs_forward_and_steps_its_head() -> None:
    config, replicas = DetectorConfig(), Replicas(tuple(jax.devices()[:1]))
    backbone = vit_large_backbone()
    width, num_patches = backbone.config.width, backbone.config.num_patches
    params = init_params(config, jax.random.key(0), width, 3)
    one = Normalizer(
        *(np.full(n, v, np.float32) for n, v in ((width, 0), (width, 1), (3, 0), (3, 1)))
    )
    heads = jax.tree.map(lambda x: x[None], (params, one))  # one seed
    tx = steps.make_optimizer(lambda _: 1e-5, weight_decay=0.01, global_weight_decay=0.01)
    state = steps.TrainState(heads[0], jax.vmap(tx.init)(heads[0]))
    state, normalizer = replicas.replicate((state, heads[1]))
    frozen = replicas.replicate((backbone, jax.random.key(0)))
    before = np.asarray(frozen[0].params["encoder_23"]["fc2"]["kernel"]).tobytes()
    batch = {
        "image": np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8),
        "label": np.array([1], np.int32),
        "example_id": np.array([1], np.uint32),
        "epoch": np.zeros(1, np.int32),
        "valid": np.ones(1, bool),
    }
    runs = extraction.drawn_runs(Masks(0, config.num_runs, 8, 1))
    extract = replicas.pmap_map(extraction.make_extract(config, runs), replicated=2)
    head_step = replicas.pmap_step(
        steps.make_head_step(config, tx, num_patches), replicated=2, donate=(0,)
    )
    losses = []
    for _ in range(2):
        features = extract(*frozen, replicas.shard(batch, extraction.INPUTS))
        labels = replicas.shard(batch, ("label", "valid"))
        state, loss = head_step(state, normalizer, steps.Labelled(features, **labels))
        losses.append(float(loss[0]))
    assert losses[0] > losses[1]  # a small step goes downhill
    assert before == np.asarray(frozen[0].params["encoder_23"]["fc2"]["kernel"]).tobytes()
    assert num_params(state) < 0.01 * num_params(backbone.params)
