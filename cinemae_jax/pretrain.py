"""MAE pre-training on a folder of photographs: how a small backbone comes to exist.

    python -m cinemae_jax.pretrain --config configs/pretrain_tiny.py --workdir runs/pretrain \\
        "--config.data.photos=('photos',)"

Writes checkpoints (resumed from when called again), metrics.jsonl, pictures of reconstructions of
held-out photographs, and at the end backbone.safetensors.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from cinemae_jax import cli, optim, weights
from cinemae_jax.checkpoint import Checkpoints
from cinemae_jax.data import catalog, loader
from cinemae_jax.data.bad import BadImage, BadImages
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.decode import Crop, RandomResizedCrop, encode_png
from cinemae_jax.distributed import AXIS, Replicas
from cinemae_jax.model.config import PRESETS, MAEConfig
from cinemae_jax.model.detector import random_backbone
from cinemae_jax.model.mae import MAE
from cinemae_jax.model.reconstruction import masked_loss, pictures

INPUTS = ("image", "example_id", "epoch", "valid")
NUM_PICTURES = 8  # held-out photographs shown in reconstructions


@struct.dataclass
class TrainState:
    """Parameters of the MAE and of its optimiser."""

    params: Any
    opt_state: optax.OptState


def model_config(config: ConfigDict) -> MAEConfig:
    """The architecture that ``config.model`` names: a preset and what differs from it."""
    fields = config.model.to_dict()
    preset = fields.pop("preset")
    if preset not in PRESETS:
        raise ValueError(f"model.preset {preset!r} is unknown: use one of {', '.join(PRESETS)}")
    return PRESETS[preset](**fields)


def make_step(model: MAE, tx: optax.GradientTransformation, mask_ratio: float) -> Any:
    """The update of one device; gradients and loss are means over all valid images."""

    def step(
        state: TrainState, key: Array, batch: dict[str, Array]
    ) -> tuple[TrainState, Float[Array, ""]]:
        count = jnp.maximum(jax.lax.psum(batch["valid"].sum(), AXIS), 1)
        loss, grads = jax.value_and_grad(masked_loss)(
            state.params, batch, key, model=model, mask_ratio=mask_ratio
        )
        loss, grads = jax.tree.map(lambda x: x / count, jax.lax.psum((loss, grads), AXIS))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state), loss

    return step


def make_eval(model: MAE, mask_ratio: float) -> Any:
    """Sum of losses and number of valid images of a batch, over all devices."""

    def evaluate(params: Any, key: Array, batch: dict[str, Array]) -> tuple[Array, Array]:
        loss = masked_loss(params, batch, key, model=model, mask_ratio=mask_ratio)
        return jax.lax.psum((loss, batch["valid"].sum()), AXIS)

    return evaluate


def pretrain(config: ConfigDict, workdir: Path, replicas: Replicas | None = None) -> list[BadImage]:
    """Runs or resumes a pre-training and writes ``backbone.safetensors``.

    Returns:
      The photographs that could not be read.
    """
    replicas = replicas or Replicas()
    replicas.check_batch_size(config.batch_size)
    mae_config = model_config(config)
    model = MAE(mae_config, jnp.dtype(config.dtype))
    photographs, held_out = catalog.photographs(config.data.photos).hold_out(config.data.holdout)
    size = mae_config.image_size
    num_steps = loader.num_steps(len(photographs), config.epochs, config.batch_size)
    schedule = optim.warmup_cosine(config.learning_rate, num_steps, config.warmup)
    tx = optim.adamw(schedule, weight_decay=config.weight_decay, b2=config.b2)
    key = jax.random.key(config.seed)

    params = random_backbone(mae_config, config.seed).params
    state = TrainState(params, tx.init(params))
    metadata = {"model": dataclasses.asdict(mae_config), "num_steps": num_steps}
    step_fn = replicas.pmap_step(make_step(model, tx, config.mask_ratio), replicated=2, donate=(0,))
    eval_fn = replicas.pmap_step(make_eval(model, config.mask_ratio), replicated=2)
    bad = BadImages(photographs)

    def validation_loss(params: Any) -> float:
        total, count = 0.0, 0
        for batch in _eval_batches(held_out, size, config.batch_size, replicas):
            loss, valid = eval_fn(params, key, replicas.shard(batch, INPUTS))
            total, count = total + float(loss), count + int(valid)
        return total / max(count, 1)

    with Checkpoints(workdir / "checkpoints") as checkpoints, cli.Metrics(workdir) as metrics:
        start = checkpoints.latest or 0
        if start:
            cli.require_same(checkpoints.metadata(start), metadata, checkpoints.folder)
            state = checkpoints.restore(start, {"train_state": state})["train_state"]
        metrics.rewind(start)
        state = replicas.replicate(state)
        batches = loader.train_batches(
            loader.from_catalog(photographs),
            RandomResizedCrop(size, tuple(config.data.scale)),
            size=size,
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=config.seed,
            start_step=start,
            host=replicas.host,
            num_threads=config.data.num_threads,
        )
        losses: list[Array] = []
        for step, batch in cli.progress(batches, start, num_steps, "pretrain"):
            bad.note(batch)
            state, loss = step_fn(state, key, replicas.shard(batch, INPUTS))
            losses.append(loss)
            if step % config.checkpoint_every == 0 or step == num_steps:
                values = {
                    "loss": float(np.mean(jax.device_get(losses))),
                    "validation_loss": validation_loss(state.params),
                    "epoch": step * config.batch_size / len(photographs),
                    "learning_rate": float(schedule(step)),
                }
                losses = []
                metrics.write(step, **values)
                cli.say(
                    f"step {step} of {num_steps}  loss {values['loss']:.4f}  "
                    f"validation loss {values['validation_loss']:.4f}"
                )
                checkpoints.save(step, {"train_state": state}, metadata)
                _write_pictures(workdir, state.params, held_out, model, config)
    path = workdir / "backbone.safetensors"
    origin = _origin(config, len(photographs))
    digest = weights.save(path, mae_config, jax.device_get(state.params), origin)
    cli.say(f"{path}  sha256 {digest}")
    return cli.report_bad_images(workdir, bad.listed)


def _eval_batches(
    images: Catalog, size: int, batch_size: int, replicas: Replicas
) -> Iterable[loader.Batch]:
    crop = Crop(size, resize=round(size * 8 / 7))  # MAE's own 256 and 224, in proportion
    return loader.eval_batches(
        loader.from_catalog(images), crop, size=size, batch_size=batch_size, host=replicas.host
    )


def _write_pictures(
    workdir: Path, params: Any, held_out: Catalog, model: MAE, config: ConfigDict
) -> None:
    shown = dataclasses.replace(held_out, table=held_out.table.slice(0, NUM_PICTURES))
    if not len(shown):
        return
    one_device = Replicas((jax.local_devices()[0],))
    batch = next(iter(_eval_batches(shown, model.config.image_size, len(shown), one_device)))
    sheet = pictures(
        jax.device_get(params),
        batch["image"],
        jax.random.key(0),
        model=model,
        mask_ratio=config.mask_ratio,
    )
    (workdir / "reconstructions.png").write_bytes(encode_png(np.asarray(sheet)))


def _origin(config: ConfigDict, count: int) -> dict[str, str]:
    settings = config.to_dict()
    settings["data"]["photos"] = [Path(p).name for p in config.data.photos]
    return {
        "method": "MAE pre-training from scratch by cinemae_jax.pretrain",
        "photographs": str(count),
        "settings": json.dumps(settings, sort_keys=True),
    }


def main(argv: list[str] | None = None) -> int:
    return cli.run_config(sys.argv if argv is None else argv, pretrain)


if __name__ == "__main__":
    sys.exit(main())
