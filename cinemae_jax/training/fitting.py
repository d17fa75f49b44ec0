"""Trains the heads on frozen features, with checkpoints and validation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cinemae_jax.data.order import Order
from cinemae_jax.detector import resuming, scoring, trained
from cinemae_jax.detector.trained import HeldOut
from cinemae_jax.evaluation import metrics
from cinemae_jax.features.run import Run
from cinemae_jax.features.sources import FeatureSet, Sets
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.head import HeadState, Normalizer
from cinemae_jax.runtime import preemption, progress
from cinemae_jax.runtime.checkpoints import Checkpoints, Interrupted
from cinemae_jax.runtime.devices import Replicas, merge
from cinemae_jax.settings import Settings, TrainSettings
from cinemae_jax.training import metrics_log, optim, steps
from cinemae_jax.training.loop import Loop


def fit(
    config: Settings,
    sets: Sets,
    backbone: Backbone,
    run: Run,
    checkpoints: Checkpoints,
    metadata: dict[str, Any],
) -> None:
    """Optimises the heads; every epoch ends with a validated checkpoint.

    Raises:
      Preempted: when the run was told to stop; its state is saved beside the checkpoints.
    """
    order = Order(len(sets.train.images), config.train.batch_size, config.train.epochs, config.seed)
    schedule, tx = _optimizer(config.train, order.num_steps)
    interrupted = Interrupted(checkpoints)
    start, untold, heads, state = _first_or_resumed(config, backbone, tx, interrupted, metadata)
    if start:
        progress.say(f"resumed   at step {start} of {order.num_steps}")
    else:
        normalizer = fit_normalizer(config, sets.train, heads, order, run.replicas)
        heads = HeadState(heads.params, normalizer)
    log = metrics_log.Metrics(run.workdir)
    log.rewind(start)
    num_patches = backbone.config.num_patches
    state, normalizer = run.replicas.replicate((state, heads.normalizer))
    step_fn = run.replicas.pmap_step(
        steps.make_head_step(config.detector, tx, num_patches), replicated=2, donate=(0,)
    )
    scorer = scoring.Scorer(config.detector, num_patches, run.replicas)
    loop = Loop(start, order.num_steps, untold, rate_field="config.train.learning_rate")

    def items() -> dict[str, Any]:
        head = HeadState(state.params, heads.normalizer)
        return {"head": head, "opt_state": state.opt_state}

    def is_recorded(step: int) -> bool:
        return order.ends_epoch(step) or step % config.train.checkpoint_every == 0

    def record() -> None:
        loss, step = loop.mean_loss(), loop.step
        epoch = step * config.train.batch_size / len(sets.train.images)
        values = {"epoch": epoch, "loss": loss, "learning_rate": float(schedule(step))}
        validated = {"validation_loss": math.inf}  # never the best checkpoint
        held_out = HeldOut.unknown(len(sets.validation.images), config.num_seeds)
        if order.ends_epoch(step):
            held_out = scoring.score_held_out(items()["head"], sets.validation, scorer, run.unread)
            validated = validate(held_out)
            progress.say(f"step {step} of {order.num_steps}  {_in_words(loss, validated)}")
            values |= validated
        log.write(step, **values)
        checkpoints.save(step, items() | {"held_out": held_out}, metadata, validated)

    with loop.saved_when_stopped(
        lambda: interrupted.save(loop.step, items(), metadata, loop.untold)
    ):
        batches = sets.train.training(order, start)
        for _, (batch, features) in loop.steps(
            batches, "train", is_recorded=is_recorded, record=record
        ):
            run.unread.note(sets.train.images, batch)
            labels = run.replicas.shard(batch, ("label", "valid"))
            state, loss = step_fn(state, normalizer, steps.Labelled(features, **labels))
            loop.untold.append(loss)


def _optimizer(
    config: TrainSettings, num_steps: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    schedule = optim.warmup_cosine(config.learning_rate, num_steps, config.warmup)
    return schedule, steps.make_optimizer(
        schedule,
        weight_decay=config.weight_decay,
        global_weight_decay=config.global_weight_decay,
    )


def _first_or_resumed(
    config: Settings,
    backbone: Backbone,
    tx: optax.GradientTransformation,
    interrupted: Interrupted,
    metadata: dict[str, Any],
) -> tuple[int, list[np.ndarray], HeadState, steps.TrainState]:
    """Steps taken, losses not yet told, heads and their training state."""
    heads = trained.head_template(config, backbone)
    opt_state = jax.vmap(tx.init)(heads.params)
    start, saved, untold = interrupted.resume(
        {"head": heads, "opt_state": opt_state},
        lambda before: resuming.require_same_run(before, metadata, interrupted.regular.folder),
    )
    if start:
        heads, opt_state = saved["head"], saved["opt_state"]
    return start, untold, heads, steps.TrainState(heads.params, opt_state)


def _in_words(loss: float, validated: dict[str, float]) -> str:
    return (
        f"loss {loss:.4f}  validation loss {validated['validation_loss']:.4f}  "
        f"AUC {validated['validation_auc']:.3f}"
    )


def fit_normalizer(
    config: Settings, images: FeatureSet, heads: HeadState, order: Order, replicas: Replicas
) -> Normalizer:
    """Mean and standard deviation of the heads' inputs over the first training images."""
    head_inputs = replicas.pmap_map(
        steps.make_head_inputs(config.detector, images.num_patches), replicated=1
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
