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
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.head import HeadState, Normalizer
from cinemae_jax.runtime import preemption, progress
from cinemae_jax.runtime.checkpoints import Checkpoints, Interrupted
from cinemae_jax.runtime.devices import Replicas, merge
from cinemae_jax.settings import Settings, TrainSettings
from cinemae_jax.training import optim, steps
from cinemae_jax.training.loop import Loop
from cinemae_jax.training.metrics_log import Metrics


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
    learned, held_out = sets.train, sets.validation
    order = Order(len(learned.images), config.train.batch_size, config.train.epochs, config.seed)
    schedule, tx = _optimizer(config.train, order.num_steps)
    interrupted = Interrupted(checkpoints)
    heads = trained.head_template(config, backbone)
    start, untold, heads, state = _resumed(heads, tx, interrupted, metadata)
    if not start:
        wanted = config.train.standardize_images
        normalizer = fit_normalizer(config.detector, heads, learned, order, run.replicas, wanted)
        heads = HeadState(heads.params, normalizer)
    log = Metrics(run.workdir, start)
    state, normalizer = run.replicas.replicate((state, heads.normalizer))
    step = steps.make_head_step(config.detector, tx, learned.num_patches)
    step_fn = run.replicas.pmap_step(step, replicated=2, donate=(0,))
    scorer = scoring.Scorer(config.detector, learned.num_patches, run.replicas)
    loop = Loop(start, order.num_steps, untold, rate_field="config.train.learning_rate")

    def items() -> dict[str, Any]:
        head = HeadState(state.params, heads.normalizer)
        return {"head": head, "opt_state": state.opt_state}

    def is_recorded(step: int) -> bool:
        return order.ends_epoch(step) or step % config.train.checkpoint_every == 0

    def record() -> None:
        loss, step = loop.mean_loss(), loop.step
        epoch = step * config.train.batch_size / len(learned.images)
        values = {"epoch": epoch, "loss": loss, "learning_rate": float(schedule(step))}
        validated = {"validation_loss": math.inf}  # never the best checkpoint
        scores = HeldOut.unknown(len(held_out.images), config.num_seeds)
        if order.ends_epoch(step):
            scores = scoring.score_held_out(items()["head"], held_out, scorer, run.unread)
            validated = validate(scores)
            progress.say(f"step {step} of {order.num_steps}  {_in_words(loss, validated)}")
            values |= validated
        log.write(step, **values)
        checkpoints.save(step, items() | {"held_out": scores}, metadata, validated)

    with loop.saved_when_stopped(items, interrupted, metadata):
        batches = learned.training(order, start)
        for _, (batch, features) in loop.steps(batches, "train", is_recorded, record):
            run.unread.note(learned.images, batch)
            labels = run.replicas.shard(batch, ("label", "valid"))
            state, loss = step_fn(state, normalizer, steps.Labelled(features, **labels))
            loop.untold.append(loss)
    checkpoints.require(order.num_steps)


def _optimizer(
    config: TrainSettings, num_steps: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    schedule = optim.warmup_cosine(config.learning_rate, num_steps, config.warmup)
    return schedule, steps.make_optimizer(
        schedule,
        weight_decay=config.weight_decay,
        global_weight_decay=config.global_weight_decay,
        frequency_weight_decay=config.frequency_weight_decay,
    )


def _resumed(
    heads: HeadState,
    tx: optax.GradientTransformation,
    interrupted: Interrupted,
    metadata: dict[str, Any],
) -> tuple[int, list[np.ndarray], HeadState, steps.TrainState]:
    """Steps taken before, losses that no record has told, heads and their training state."""
    folder = interrupted.regular.folder
    opt_state = jax.vmap(tx.init)(heads.params)
    start, saved, untold = interrupted.resume(
        {"head": heads, "opt_state": opt_state},
        lambda before: resuming.require_same_run(before, metadata, folder),
    )
    if start:
        heads, opt_state = saved["head"], saved["opt_state"]
        progress.say(f"resumed   at step {start}")
    return start, untold, heads, steps.TrainState(heads.params, opt_state)


def _in_words(loss: float, validated: dict[str, float]) -> str:
    return (
        f"loss {loss:.4f}  validation loss {validated['validation_loss']:.4f}  "
        f"AUC {validated['validation_auc']:.3f}"
    )


def fit_normalizer(
    config: DetectorConfig,
    heads: HeadState,
    images: FeatureSet,
    order: Order,
    replicas: Replicas,
    num_images: int,
) -> Normalizer:
    """Mean and standard deviation of the heads' inputs over the first training images.

    Args:
      config: of the detector.
      heads: fresh, with a leading axis of seeds.
      images: training images.
      order: in which they come.
      replicas: devices that share every batch.
      num_images: how many, at least; whole batches are taken.

    Raises:
      ValueError: if none of them can be read.
    """
    head_inputs = replicas.pmap_map(
        steps.make_head_inputs(config, images.num_patches), replicated=1
    )
    params = replicas.replicate(heads.params)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for batch, features in images.training(order, 0):
        preemption.check()
        inputs = merge(head_inputs(params, features))
        f_global, stats = (x.reshape(len(batch["row"]), -1, *x.shape[1:]) for x in inputs)
        f_global, stats, valid = replicas.gather((f_global, stats, batch["valid"]))
        seen.append((f_global[valid], stats[valid]))
        count += len(valid)
        if count >= num_images:
            break
    f_global, stats = (np.concatenate(part).astype(np.float64) for part in zip(*seen, strict=True))
    if not len(f_global):
        raise ValueError(f"none of the first {count} training images could be read")
    images_and_crops = (0, 1)
    num_seeds = len(jax.tree.leaves(heads.params)[0])
    moments = [f_global.mean(images_and_crops), f_global.std(images_and_crops)]
    same = [np.broadcast_to(m, (num_seeds, *m.shape)) for m in moments]
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
