"""The paper's model size (ViT-L/16) with random weights, on the CPU."""

import resource
import time

import jax
import numpy as np
import pytest

from cinemae_jax.features import extraction
from cinemae_jax.model.cinemae import num_params, random_backbone
from cinemae_jax.model.config import DetectorConfig, vit_large
from cinemae_jax.model.head import Normalizer, init_params
from cinemae_jax.model.masking import Masks
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.training import steps


@pytest.mark.slow
def test_vit_large_runs_forward_and_steps_its_head() -> None:
    config, replicas = DetectorConfig(), Replicas(tuple(jax.devices()[:1]))
    backbone = random_backbone(vit_large())
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
        "image": np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8),
        "label": np.array([0, 1], np.int32),
        "example_id": np.array([1, 2], np.uint32),
        "epoch": np.zeros(2, np.int32),
        "valid": np.ones(2, bool),
    }
    runs = extraction.drawn_runs(Masks(0, config.num_runs, 8, 1))
    extract = replicas.pmap_map(extraction.make_extract(config, runs), replicated=2)
    head_step = replicas.pmap_step(
        steps.make_head_step(config, tx, num_patches), replicated=2, donate=(0,)
    )
    losses, seconds = [], []
    for _ in range(3):
        begin = time.perf_counter()
        features = extract(*frozen, replicas.shard(batch, extraction.INPUTS))
        labels = replicas.shard(batch, ("label", "valid"))
        state, loss = head_step(state, normalizer, steps.Labelled(features, **labels))
        losses.append(float(loss[0]))
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\nViT-L/16: {num_params(backbone.params) / 1e6:.0f} M parameters, first step "
        f"{seconds[0]:.1f} s, then {min(seconds[1:]):.1f} s for 2 images; peak {peak:.1f} GiB"
    )
    assert losses[0] > losses[1] > losses[2]  # small steps go downhill
    assert before == np.asarray(frozen[0].params["encoder_23"]["fc2"]["kernel"]).tobytes()
    assert num_params(state) < 0.01 * num_params(backbone.params)
