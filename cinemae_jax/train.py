"""Trains a detector's head on a frozen MAE and evaluates it: the main job.

    python -m cinemae_jax.train --config configs/sd14.py --workdir runs/sd14 \\
        --config.data.root=/data/GenImage --config.backbone=mae_visualize_vit_large.safetensors

Called again with the same --workdir, it goes on where it was stopped.  Leaves checkpoints (best and
last), metrics.jsonl, bad_images.csv where there were any, and what evaluate writes.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cinemae_jax import cli, evaluate, optim, settings, steps, trained
from cinemae_jax.checkpoint import Checkpoints
from cinemae_jax.data import loader
from cinemae_jax.data.bad import BadImage, BadImages
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.distributed import Replicas, merge
from cinemae_jax.evaluation import metrics
from cinemae_jax.model.detector import Backbone
from cinemae_jax.model.head import HeadState, Normalizer
from cinemae_jax.settings import Settings


@dataclasses.dataclass(frozen=True)
class Data:
    """The images of a run: learned from, validated on, tested on."""

    train: Catalog
    validation: Catalog
    test: Catalog


def read_data(config: Settings) -> Data:
    """Scans the data set and splits it; test images never take part in any choice."""
    everything = config.data.scan()
    cli.say(everything.explain())
    cli.report_skipped(everything)
    learned = everything.select(generators=config.data.train_generators, split="train")
    train, validation = learned.hold_out(config.data.holdout)
    train.require_both_classes("the training split")
    validation.require_both_classes(f"its held-out part ({config.data.holdout:.0%})")
    test = everything.select(generators=config.data.test_generators or None, split="val")
    return Data(train, validation, test)


def train(config: Settings, workdir: Path, replicas: Replicas | None = None) -> list[BadImage]:
    """Runs or resumes a training, then evaluates its best checkpoint.

    Args:
      config: what to do (``configs/sd14.py`` explains every field).
      workdir: where its results go; one run each.
      replicas: devices to share every batch; None means all.

    Returns:
      The images that could not be read.
    """
    replicas = replicas or Replicas()
    replicas.check_batch_size(config.train.batch_size, "config.train.batch_size")
    replicas.check_batch_size(config.eval.batch_size, "config.eval.batch_size")
    data = read_data(config)
    backbone = trained.load_backbone(config)
    cli.say(f"backbone  {trained.describe(backbone)}")
    cli.say(f"train     {data.train.describe()}; held out {len(data.validation)}")
    bad = BadImages(workdir / cli.BAD_IMAGES)
    fit(config, data, backbone, workdir, replicas, bad)
    best = trained.load(workdir, which="best", backbone=config.backbone)
    evaluate.evaluate(best, data.test, workdir, bad, replicas)
    cli.report_bad_images(workdir, bad.listed)
    return bad.listed


MAY_DIFFER = (
    "version",
    "settings.backbone",  # its hash must be the same
    "settings.data.root",  # the images must be the same
    "settings.data.source",
    "settings.data.quarantine",
    "settings.data.test_generators",
    "settings.data.num_threads",
    "settings.train.checkpoint_every",
    "settings.eval.",
)
"""What a resumed run may do otherwise: nothing here changes the head."""


def fit(
    config: Settings,
    data: Data,
    backbone: Backbone,
    workdir: Path,
    replicas: Replicas,
    bad: BadImages,
) -> None:
    """Optimises the head; every epoch ends with a validated checkpoint."""
    images = config.data.images(data.train)
    size = backbone.config.image_size
    num_steps = loader.num_steps(len(images), config.train.epochs, config.train.batch_size)
    schedule = optim.warmup_cosine(config.train.learning_rate, num_steps, config.train.warmup)
    tx = steps.make_optimizer(
        schedule,
        weight_decay=config.train.weight_decay,
        global_weight_decay=config.train.global_weight_decay,
    )
    key = jax.random.key(config.seed)
    metadata = trained.metadata(config, backbone, data.train)

    def batches(start_step: int) -> Any:
        return loader.train_batches(
            images,
            config.data.train_transform(size),
            size=size,
            batch_size=config.train.batch_size,
            epochs=config.train.epochs,
            seed=config.seed,
            start_step=start_step,
            host=replicas.host,
            num_threads=config.data.num_threads,
        )

    head = trained.head_template(config, backbone)
    state = steps.TrainState(head.params, tx.init(head.params))
    log = cli.Metrics(workdir)
    with Checkpoints(workdir / "checkpoints", best=trained.validation_score) as checkpoints:
        start = checkpoints.latest or 0
        if start:
            before = checkpoints.metadata(start)
            trained.require_kind(before, checkpoints.folder)
            trained.require_backbone(before, backbone, checkpoints.folder / str(start))
            cli.require_same(before, metadata, checkpoints.folder, may_differ=MAY_DIFFER)
            saved = checkpoints.restore(start, {"head": head, "opt_state": state.opt_state})
            head, state = saved["head"], steps.TrainState(saved["head"].params, saved["opt_state"])
            cli.say(f"resumed   at step {start} of {num_steps}")
        else:
            bad.forget()
            normalizer = fit_normalizer(config, backbone, key, batches(0), replicas)
            head = HeadState(head.params, normalizer)
        log.rewind(start)
        frozen = replicas.replicate(steps.Frozen(backbone, head.normalizer, key))
        state = replicas.replicate(state)
        step_fn = replicas.pmap_step(
            steps.make_train_step(config.detector, tx), replicated=2, donate=(0,)
        )
        scorer = trained.Scorer(config.detector, replicas)
        losses: list[Any] = []
        for step, batch in cli.progress(batches(start), start, num_steps, "train"):
            bad.note(data.train, batch)
            state, result = step_fn(state, frozen, replicas.shard(batch, steps.INPUTS))
            losses.append(result["loss"])
            epoch_ends = _ends_epoch(step, num_steps, config.train)
            if not epoch_ends and step % config.train.checkpoint_every:
                continue
            values = {
                "epoch": step * config.train.batch_size / len(images),
                "loss": float(np.mean(jax.device_get(losses))),
                "learning_rate": float(schedule(step)),
            }
            cli.require_finite(values["loss"], step, "config.train.learning_rate")
            losses = []
            validated = {"validation_loss": math.inf}  # never the best checkpoint
            if epoch_ends:
                validated = validate(state.params, frozen, data.validation, config, scorer, bad)
                values |= validated
                cli.say(
                    f"step {step} of {num_steps}  loss {values['loss']:.4f}  validation loss "
                    f"{validated['validation_loss']:.4f}  AUC {validated['validation_auc']:.3f}"
                )
            log.write(step, **values)
            saved_head = HeadState(state.params, head.normalizer)
            saved_state = {"head": saved_head, "opt_state": state.opt_state}
            checkpoints.save(step, saved_state, metadata, validated)


def fit_normalizer(
    config: Settings, backbone: Backbone, key: jax.Array, batches: Any, replicas: Replicas
) -> Normalizer:
    """Mean and standard deviation of the head's inputs over the first training images."""
    head_inputs = replicas.pmap_map(steps.make_head_inputs(config.detector), replicated=2)
    backbone, key = replicas.replicate((backbone, key))
    wanted = config.train.standardize_images
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for batch in batches:
        f_global, stats = merge(head_inputs(backbone, key, replicas.shard(batch, steps.INPUTS)))
        seen.append((f_global[batch["valid"]], stats[batch["valid"]]))
        count += len(batch["valid"])
        if count >= wanted:
            break
    f_global, stats = (np.concatenate(part).astype(np.float64) for part in zip(*seen, strict=True))
    if not len(f_global):
        raise ValueError(f"none of the first {count} training images could be read")
    moments = (f_global.mean(0), f_global.std(0), stats.mean(0), stats.std(0))
    return Normalizer(*(jnp.asarray(m, jnp.float32) for m in moments))


def validate(
    params: Any,
    frozen: steps.Frozen,
    held_out: Catalog,
    config: Settings,
    scorer: trained.Scorer,
    bad: BadImages,
) -> dict[str, float]:
    """Loss, accuracy and AUC on the held-out images of the training generators."""
    logits, labels = [], []
    size = frozen.backbone.config.image_size
    for batch, scores in scorer(params, frozen, scorer.batches(held_out, config, size)):
        bad.note(held_out, batch)
        logits.append(scores.logit[batch["valid"]])
        labels.append(batch["label"][batch["valid"]])
    logit, label = np.concatenate(logits), np.concatenate(labels)
    if not len(logit):
        raise ValueError(f"none of the {len(held_out)} held-out images could be read")
    loss = np.asarray(steps.binary_cross_entropy(jnp.asarray(logit), jnp.asarray(label)))
    return {
        "validation_loss": float(loss.mean()),
        "validation_accuracy": metrics.accuracy(label, logit),
        "validation_auc": metrics.auc(label, logit),
    }


def _ends_epoch(step: int, num_steps: int, config: settings.TrainSettings) -> bool:
    """Whether the last full batch of an epoch was this one."""
    return step * config.epochs // num_steps > (step - 1) * config.epochs // num_steps


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> list[BadImage]:
        return train(settings.read(config.to_dict(), Settings), workdir)

    return cli.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
