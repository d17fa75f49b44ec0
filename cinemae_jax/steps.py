"""What runs on the devices: features of a batch, the update of the head, the scores.

The frozen side and the trained side are separate arguments of every function; only the trained
one is differentiated, updated and donated.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Key

from cinemae_jax import optim
from cinemae_jax.distributed import AXIS
from cinemae_jax.model import lcas, masking
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.detector import (
    Backbone,
    Features,
    extract_features,
    head_logits,
    statistics,
)
from cinemae_jax.model.head import GLOBAL_PATHWAY, HeadState, Normalizer
from cinemae_jax.model.mae import normalize_images, patchify

INPUTS = ("image", "label", "example_id", "epoch", "valid")
"""Entries of a loader's batch that travel to the devices."""

Batch = dict[str, Array]


@struct.dataclass
class TrainState:
    """All that training changes."""

    params: Any
    opt_state: optax.OptState


@struct.dataclass
class Frozen:
    """All that training does not change.

    Attributes:
      backbone: the masked autoencoder.
      normalizer: of the head's inputs.
      key: base key of the masks.
    """

    backbone: Backbone
    normalizer: Normalizer
    key: Key[Array, ""]


@struct.dataclass
class Scores:
    """Per image.

    Attributes:
      logit: (B,), positive for AI.
      stats: (B, 3), s1–s3 as the head takes them.
      uniform_share: (B,), share of nearly uniform patches.
    """

    logit: Any
    stats: Any
    uniform_share: Any


def batch_features(
    backbone: Backbone, key: Key[Array, ""], batch: Batch, config: DetectorConfig
) -> Features:
    """Features of a batch; epoch e uses the runs e·K … e·K + K-1 of every image.

    So training sees new masks every epoch, evaluation (epoch 0) always the same, and a mask
    depends on nothing but (key, example id, run).
    """
    keys = masking.example_keys(key, batch["example_id"])
    runs = batch["epoch"][:, None] * config.num_runs + jnp.arange(config.num_runs)[None]
    return extract_features(backbone, batch["image"], keys, runs, config)


def make_optimizer(
    schedule: optax.Schedule, *, weight_decay: float, global_weight_decay: float
) -> optax.GradientTransformation:
    """AdamW of the head; the global pathway of ``logit`` fusion has its own weight decay."""

    def pathway(params: Any) -> Any:
        return {
            name: jax.tree.map(lambda _, n=name: n == GLOBAL_PATHWAY, sub)
            for name, sub in params.items()
        }

    def elsewhere(params: Any) -> Any:
        return jax.tree.map(lambda is_global: not is_global, pathway(params))

    def both(first: Any, second: Any) -> Any:
        return jax.tree.map(lambda a, b: a and b, first, second)

    return optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(
            weight_decay, mask=lambda p: both(optim.kernels(p), elsewhere(p))
        ),
        optax.add_decayed_weights(
            global_weight_decay, mask=lambda p: both(optim.kernels(p), pathway(p))
        ),
        optax.scale_by_learning_rate(schedule),
    )


def make_train_step(
    config: DetectorConfig, tx: optax.GradientTransformation
) -> Callable[[TrainState, Frozen, Batch], tuple[TrainState, dict[str, Array]]]:
    """One update of the head on one device's share of a batch.

    Loss and gradient are means over the valid images of all devices, so that any number of
    devices takes the same step.
    """

    def step(
        state: TrainState, frozen: Frozen, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        features = batch_features(frozen.backbone, frozen.key, batch, config)
        stats = statistics(features, config, frozen.backbone.config.num_patches)
        valid = batch["valid"].astype(jnp.float32)
        per_device = jnp.maximum(jax.lax.pmean(valid.sum(), AXIS), 1e-9)

        def loss_of(params: Any) -> Float[Array, ""]:
            head = HeadState(params, frozen.normalizer)
            logit = head_logits(head, features.f_global, stats, config)
            return (binary_cross_entropy(logit, batch["label"]) * valid).sum() / per_device

        loss, grads = jax.value_and_grad(loss_of)(state.params)
        loss, grads = jax.lax.pmean((loss, grads), AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt_state), {"loss": loss}

    return step


def binary_cross_entropy(logit: Float[Array, " b"], label: Array) -> Float[Array, " b"]:
    """Per image; label 1 is AI-generated."""
    return optax.sigmoid_binary_cross_entropy(logit, label.astype(jnp.float32))


def make_score(config: DetectorConfig) -> Callable[[Any, Frozen, Batch], Scores]:
    """Scores of one device's share of a batch, in its order."""

    def score(params: Any, frozen: Frozen, batch: Batch) -> Scores:
        features = batch_features(frozen.backbone, frozen.key, batch, config)
        stats = statistics(features, config, frozen.backbone.config.num_patches)
        head = HeadState(params, frozen.normalizer)
        logit = head_logits(head, features.f_global, stats, config)
        patches = patchify(normalize_images(batch["image"]), frozen.backbone.config.patch_size)
        uniform = jax.vmap(lambda p: lcas.uniform_share(p, config.uniform_variance))(patches)
        return Scores(logit, stats, uniform)

    return score


def make_head_inputs(
    config: DetectorConfig,
) -> Callable[[Backbone, Key[Array, ""], Batch], tuple[Float[Array, "b d"], Float[Array, "b 3"]]]:
    """f_global and statistics of one device's share of a batch, before standardisation."""

    def head_inputs(
        backbone: Backbone, key: Key[Array, ""], batch: Batch
    ) -> tuple[Float[Array, "b d"], Float[Array, "b 3"]]:
        features = batch_features(backbone, key, batch, config)
        return features.f_global, statistics(features, config, backbone.config.num_patches)

    return head_inputs
