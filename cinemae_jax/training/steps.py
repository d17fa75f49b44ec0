"""The update of the heads on the devices, from features of a batch.

Heads of several seeds have a leading axis S in every parameter; vmap trains and scores them
together.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from cinemae_jax.model import lcas
from cinemae_jax.model.arrays import AnyArray, Params
from cinemae_jax.model.cinemae import Features, logits, statistics
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.head import (
    FREQUENCY_PATHWAY,
    GLOBAL_PATHWAY,
    HeadState,
    Normalizer,
    learned_weight,
)
from cinemae_jax.runtime.devices import AXIS
from cinemae_jax.training import optim


@struct.dataclass
class TrainState:
    """Everything that training changes; every leaf has a leading axis S, one head per seed."""

    params: Params
    opt_state: optax.OptState


@struct.dataclass
class Labelled:
    """Features of a batch and their labels.

    Attributes:
      features: of B examples, n crops of one in n rows; in training with the runs of all seeds,
        (B·n, S·K, M).
      label: (B,), 1 for AI.
      valid: (B,), False for padding and unread images.
    """

    features: Features
    label: Int[AnyArray, "*devices b"]
    valid: Bool[AnyArray, "*devices b"]


def make_optimizer(
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    global_weight_decay: float,
    frequency_weight_decay: float = 1e-2,
) -> optax.GradientTransformation:
    """AdamW of the head; pathways that read f_global or q alone have their own weight decay."""
    own = {GLOBAL_PATHWAY: global_weight_decay, FREQUENCY_PATHWAY: frequency_weight_decay}

    def decay(pathway: str, strength: float) -> optax.GradientTransformation:
        """Of one pathway; '' stands for all modules without a strength of their own."""

        def mask(params: Any) -> Any:
            return {
                name: jax.tree.map(lambda is_kernel, n=name: is_kernel and meant(n), kernels)
                for name, kernels in optim.kernels(params).items()
            }

        def meant(name: str) -> bool:
            return (name if name in own else "") == pathway

        return optax.add_decayed_weights(strength, mask=mask)

    return optax.chain(
        optax.scale_by_adam(),
        *(decay(pathway, strength) for pathway, strength in {"": weight_decay, **own}.items()),
        optax.scale_by_learning_rate(schedule),
    )


def make_head_step(
    config: DetectorConfig, tx: optax.GradientTransformation, num_patches: int
) -> Callable[[TrainState, Normalizer, Labelled], tuple[TrainState, Float[Array, " s"]]]:
    """One update of all heads on one device's share of a batch; also returns their losses.

    Loss and gradient are means over the valid examples of all devices, so that any number of
    devices takes the same step.  Each crop of an image is judged by itself.
    """

    def step(
        state: TrainState, normalizer: Normalizer, batch: Labelled
    ) -> tuple[TrainState, Float[Array, " s"]]:
        valid = batch.valid.astype(jnp.float32)
        per_device = jnp.maximum(jax.lax.pmean(valid.sum(), AXIS), 1e-9)

        def loss_of(params: Any, normalizer: Normalizer, features: Features) -> Float[Array, ""]:
            rows, _ = logits(HeadState(params, normalizer), features, config, num_patches)
            crops = rows.reshape(len(batch.label), -1)
            loss = binary_cross_entropy(crops, jnp.asarray(batch.label)[:, None]).mean(axis=1)
            mean: Float[Array, ""] = (loss * valid).sum() / per_device
            return mean

        def gradient(head: HeadState, features: Features) -> tuple[Float[Array, ""], Any]:
            return jax.value_and_grad(loss_of)(head.params, head.normalizer, features)

        heads = HeadState(state.params, normalizer)
        loss, grads = jax.lax.pmean(per_head(gradient)(heads, batch.features), AXIS)
        update = over_heads(tx.update, in_axes=(0, 0, 0))
        updates, opt_state = update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), loss

    return step


def make_head_inputs(
    config: DetectorConfig, num_patches: int
) -> Callable[[Any, Features], tuple[Float[Array, "b d"], Float[Array, "b s n"]]]:
    """f_global and every head's statistics of a batch of training, before standardisation."""

    def head_inputs(
        params: Any, features: Features
    ) -> tuple[Float[Array, "b d"], Float[Array, "b s n"]]:
        def of_head(params: Any, features: Features) -> Float[Array, "b n"]:
            return statistics(features, config, num_patches, learned_weight(params))

        f_global = jnp.asarray(features.f_global)
        return f_global, per_head(of_head, out_axes=1)(params, features)

    return head_inputs


def binary_cross_entropy(logit: Float[Array, "*b"], label: Array) -> Float[Array, "*b"]:
    """Per logit; label 1 is AI-generated."""
    loss: Float[Array, "*b"] = optax.sigmoid_binary_cross_entropy(logit, label.astype(jnp.float32))
    return loss


def per_head(
    function: Callable[[Any, Features], Any], *, out_axes: int = 0
) -> Callable[[Any, Features], Any]:
    """vmap over heads, each with its own runs out of those of all, (B, S·K, M).

    Args:
      function: takes what belongs to one head, and features of its K runs.
      out_axes: where its results get the axis S.
    """

    def mapped(heads: Any, features: Features) -> Any:
        num_seeds = len(jax.tree.leaves(heads)[0])

        def apart(leaf: Array) -> Array:
            return leaf.reshape(len(leaf), num_seeds, leaf.shape[1] // num_seeds, *leaf.shape[2:])

        def one(head: Any, terms: lcas.Terms, masked: Any) -> Any:
            return function(head, dataclasses.replace(features, terms=terms, masked=masked))

        runs = jax.tree.map(apart, (features.terms, features.masked))
        return over_heads(one, in_axes=(0, 1, 1), out_axes=out_axes)(heads, *runs)

    return mapped


def over_heads(
    function: Callable[..., Any], *, in_axes: tuple[int, ...], out_axes: int = 0
) -> Callable[..., Any]:
    """vmap, but a single head skips it: on CPU, XLA is then twice as fast."""
    together = jax.vmap(function, in_axes, out_axes)

    def mapped(*arguments: Any) -> Any:
        if len(jax.tree.leaves(arguments[0])[0]) > 1:
            return together(*arguments)
        alone = [
            jax.tree.map(lambda leaf, axis=axis: jnp.squeeze(leaf, axis), argument)
            for argument, axis in zip(arguments, in_axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, out_axes), function(*alone))

    return mapped
