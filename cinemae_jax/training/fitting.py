"""Trains the heads on frozen features, with checkpoints and validation."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cinemae_jax.data.order import Order
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import resuming, scoring, trained
from cinemae_jax.detector.trained import HeldOut
from cinemae_jax.evaluation import metrics
from cinemae_jax.features.extraction import Featured
from cinemae_jax.features.sources import FeatureSet, Sets
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.head import HeadState, Normalizer
from cinemae_jax.runtime import preemption, progress
from cinemae_jax.runtime.checkpoints import Checkpoints, Interrupted
from cinemae_jax.runtime.devices import Replicas, merge
from cinemae_jax.settings import Settings
from cinemae_jax.training import loop, metrics_log, optim, steps


def fit(
    config: Settings,
    sets: Sets,
    backbone: Backbone,
    workdir: Path,
    replicas: Replicas,
    bad: BadImages,
    checkpoints: Checkpoints,
    metadata: dict[str, Any],
) -> None:
    """Optimises the heads; every epoch ends with a validated checkpoint.

    Raises:
      Preempted: when the run was told to stop; its state is saved beside the checkpoints.
    """
    images = sets.train.images
    order = Order(len(images), config.train.batch_size, config.train.epochs, config.seed)
    num_steps, num_patches = order.num_steps, backbone.config.num_patches
    schedule = optim.warmup_cosine(config.train.learning_rate, num_steps, config.train.warmup)
    tx = steps.make_optimizer(
        schedule,
        weight_decay=config.train.weight_decay,
        global_weight_decay=config.train.global_weight_decay,
    )
    heads = trained.head_template(config, backbone)
    state = steps.TrainState(heads.params, jax.vmap(tx.init)(heads.params))
    interrupted = Interrupted(checkpoints)
    start, saved, losses = interrupted.resume(
        {"head": heads, "opt_state": state.opt_state},
        lambda before: resuming.require_same_run(before, metadata, checkpoints.folder),
    )
    if start:
        heads, state = saved["head"], steps.TrainState(saved["head"].params, saved["opt_state"])
        progress.say(f"resumed   at step {start} of {num_steps}")
    else:
        normalizer = fit_normalizer(config, sets.train, order, heads, num_patches, replicas)
        heads = HeadState(heads.params, normalizer)
    log = metrics_log.Metrics(workdir)
    log.rewind(start)
    state, normalizer = replicas.replicate((state, heads.normalizer))
    step_fn = replicas.pmap_step(
        steps.make_head_step(config.detector, tx, num_patches), replicated=2, donate=(0,)
    )
    scorer = scoring.Scorer(config.detector, num_patches, replicas)

    def advance(state: steps.TrainState, sent: Featured) -> tuple[steps.TrainState, Any]:
        batch, features = sent
        bad.note(images, batch)
        labels = replicas.shard(batch, ("label", "valid"))
        return step_fn(state, normalizer, steps.Labelled(features, **labels))

    def at_checkpoint(step: int) -> bool:
        return order.ends_epoch(step) or step % config.train.checkpoint_every == 0

    def record(step: int, state: steps.TrainState, loss: float) -> None:
        values = {
            "epoch": step * config.train.batch_size / len(images),
            "loss": loss,
            "learning_rate": float(schedule(step)),
        }
        trained_heads = HeadState(state.params, heads.normalizer)
        validated = {"validation_loss": math.inf}  # never the best checkpoint
        held_out = HeldOut.unknown(len(sets.validation.images), config.num_seeds)
        if order.ends_epoch(step):
            held_out = scoring.score_held_out(trained_heads, sets.validation, scorer, bad)
            validated = validate(held_out)
            values |= validated
            progress.say(
                f"step {step} of {num_steps}  loss {values['loss']:.4f}  validation loss "
                f"{validated['validation_loss']:.4f}  AUC {validated['validation_auc']:.3f}"
            )
        log.write(step, **values)
        items = {"head": trained_heads, "opt_state": state.opt_state, "held_out": held_out}
        checkpoints.save(step, items, metadata, validated)

    def keep(step: int, state: steps.TrainState, losses: Sequence[Any]) -> None:
        items = {"head": HeadState(state.params, heads.normalizer), "opt_state": state.opt_state}
        interrupted.save(step, items, metadata, losses)

    loop.run(
        state,
        sets.train.training(order, start),
        advance,
        start=start,
        num_steps=num_steps,
        losses=losses,
        at_checkpoint=at_checkpoint,
        record=record,
        keep=keep,
        what="train",
        rate_field="config.train.learning_rate",
    )


def fit_normalizer(
    config: Settings,
    images: FeatureSet,
    order: Order,
    heads: HeadState,
    num_patches: int,
    replicas: Replicas,
) -> Normalizer:
    """Mean and standard deviation of the heads' inputs over the first training images."""
    head_inputs = replicas.pmap_map(
        steps.make_head_inputs(config.detector, num_patches), replicated=1
    )
    params = replicas.replicate(heads.params)
    wanted = config.train.standardize_images
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for batch, features in images.training(order, 0):
        preemption.check()
        inputs = merge(head_inputs(params, features))
        f_global, stats = (x.reshape(len(batch["row"]), -1, *x.shape[1:]) for x in inputs)
        f_global, stats, valid = replicas.gather((f_global, stats, batch["valid"]))
        seen.append((f_global[valid], stats[valid]))
        count += len(valid)
        if count >= wanted:
            break
    f_global, stats = (np.concatenate(part).astype(np.float64) for part in zip(*seen, strict=True))
    if not len(f_global):
        raise ValueError(f"none of the first {count} training images could be read")
    images_and_crops = (0, 1)
    moments = [f_global.mean(images_and_crops), f_global.std(images_and_crops)]
    same = [np.broadcast_to(m, (config.num_seeds, *m.shape)) for m in moments]
    moments = [*same, stats.mean(images_and_crops), stats.std(images_and_crops)]
    return Normalizer(*(jnp.asarray(m, jnp.float32) for m in moments))


def validate(held_out: HeldOut) -> dict[str, float]:
    """Loss, accuracy and AUC on the held-out images: means over heads.

    Raises:
      ValueError: if no image has a finite score from every head.
    """
    scored = np.isfinite(held_out.logit).all(axis=1)
    logit, label = held_out.logit[scored].T, held_out.label[scored]
    if not scored.any():
        raise ValueError(
            f"none of the {len(scored)} held-out images has a finite score: they cannot be read "
            "(bad_images.csv), or the heads have diverged (lower config.train.learning_rate)"
        )
    loss = np.asarray(steps.binary_cross_entropy(jnp.asarray(logit), jnp.asarray(label[None])))
    return {
        "validation_loss": float(loss.mean()),
        "validation_accuracy": float(np.mean([metrics.accuracy(label, x) for x in logit])),
        "validation_auc": float(np.mean([metrics.auc(label, x) for x in logit])),
    }
