"""MAE pre-training on a folder of photographs: how a small backbone comes to exist.

    python -m cinemae_jax.pretrain --config configs/pretrain_tiny.py --workdir runs/pretrain \\
        "--config.data.photos=('photos',)"

Writes checkpoints (resumed from when called again), metrics.jsonl, pictures of reconstructions of
held-out photographs, and at the end backbone.safetensors.
"""

import dataclasses
import functools
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from cinemae_jax import cli, optim, weights
from cinemae_jax.checkpoint import Checkpoints
from cinemae_jax.data import catalog, loader
from cinemae_jax.data.decode import Crop, RandomResizedCrop, encode_png
from cinemae_jax.distributed import AXIS, Replicas
from cinemae_jax.model import masking
from cinemae_jax.model.detector import random_backbone
from cinemae_jax.model.mae import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAE,
    PRESETS,
    MAEConfig,
    normalize_images,
    patchify,
    to_target,
    unpatchify,
)

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


def masked_loss(
    params: Any,
    batch: dict[str, Array],
    key: Array,
    *,
    model: MAE,
    mask_ratio: float,
) -> Float[Array, ""]:
    """Sum over valid images of the mean squared error on masked patches (MAE, section 3).

    The mask of an image depends on its id and epoch alone.
    """
    config = model.config
    num_visible = config.num_visible(mask_ratio)
    keys = masking.example_keys(key, batch["example_id"])
    ids = functools.partial(
        masking.run_ids, num_patches=config.num_patches, num_visible=num_visible
    )
    visible = jax.vmap(ids)(keys, batch["epoch"][:, None])[:, 0]
    masked = masking.masked_ids(visible, config.num_patches)
    pixels = normalize_images(batch["image"])
    target = to_target(patchify(pixels, config.patch_size), config.target)
    truth = jnp.take_along_axis(target, masked[..., None], axis=1)
    predictions = model.apply({"params": params}, pixels, visible, masked).astype(jnp.float32)
    per_image = ((predictions - truth) ** 2).mean(axis=(1, 2))
    return (per_image * batch["valid"]).sum()


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


@functools.partial(jax.jit, static_argnames=("model", "mask_ratio"))
def pictures(
    params: Any, images: UInt8[Array, "b h w 3"], key: Array, *, model: MAE, mask_ratio: float
) -> UInt8[Array, "rows columns 3"]:
    """A sheet with one row an image: original, what the encoder saw, reconstruction.

    For a ``norm_pix`` target the prediction is shown with the statistics of the true patch, which
    the model does not know: good for looking at, useless for a score.
    """
    config = model.config
    num_visible = config.num_visible(mask_ratio)
    keys = masking.example_keys(key, jnp.arange(len(images), dtype=jnp.uint32))
    visible = jax.vmap(lambda k: masking.visible_ids(k, 1, config.num_patches, num_visible)[0])(
        keys
    )
    masked = masking.masked_ids(visible, config.num_patches)
    patches = patchify(normalize_images(images), config.patch_size)
    predictions = model.apply({"params": params}, normalize_images(images), visible, masked)
    if config.target == "norm_pix":
        truth = jnp.take_along_axis(patches, masked[..., None], axis=1)
        mean, var = truth.mean(-1, keepdims=True), truth.var(-1, keepdims=True, ddof=1)
        predictions = predictions * jnp.sqrt(var + 1e-6) + mean
    rows = jnp.arange(len(images))[:, None]
    hidden = patches.at[rows, masked].set(0.0)
    filled = patches.at[rows, masked].set(predictions.astype(patches.dtype))
    columns = [unpatchify(p, config.patch_size) for p in (patches, hidden, filled)]
    sheet = jnp.concatenate(columns, axis=2).reshape(-1, 3 * config.image_size, 3)
    mean, std = (jnp.array(v)[None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    sheet = (sheet * std + mean) * 255.0
    return sheet.round().clip(0, 255).astype(jnp.uint8)


def pretrain(config: ConfigDict, workdir: Path, replicas: Replicas | None = None) -> Path:
    """Runs or resumes a pre-training; returns the backbone file."""
    replicas = replicas or Replicas()
    replicas.check_batch_size(config.batch_size)
    mae_config = model_config(config)
    model = MAE(mae_config, jnp.dtype(config.dtype))
    images, held_out = _photographs(config)
    size = mae_config.image_size
    num_steps = loader.num_steps(len(images), config.epochs, config.batch_size)
    schedule = optim.warmup_cosine(config.learning_rate, num_steps, config.warmup)
    tx = optim.adamw(schedule, weight_decay=config.weight_decay, b2=config.b2)
    key = jax.random.key(config.seed)

    params = random_backbone(mae_config, config.seed).params
    state = TrainState(params, tx.init(params))
    metadata = {"model": dataclasses.asdict(mae_config), "num_steps": num_steps}
    step_fn = replicas.pmap_step(make_step(model, tx, config.mask_ratio), replicated=2, donate=(0,))
    eval_fn = replicas.pmap_step(make_eval(model, config.mask_ratio), replicated=2)

    def validation_loss(params: Any) -> float:
        total, count = 0.0, 0
        batches = loader.eval_batches(
            held_out,
            Crop(size, resize=round(size * 8 / 7)),
            size=size,
            batch_size=config.batch_size,
            host=replicas.host,
        )
        for batch in batches:
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
            images,
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
            state, loss = step_fn(state, key, replicas.shard(batch, INPUTS))
            losses.append(loss)
            if step % config.checkpoint_every == 0 or step == num_steps:
                metrics.write(
                    step,
                    loss=float(np.mean(jax.device_get(losses))),
                    validation_loss=validation_loss(state.params),
                    epoch=step * config.batch_size / len(images),
                    learning_rate=float(schedule(step)),
                )
                losses = []
                checkpoints.save(step, {"train_state": state}, metadata)
                _write_pictures(workdir, state.params, held_out, model, config)
    path = workdir / "backbone.safetensors"
    digest = weights.save(path, mae_config, jax.device_get(state.params), _origin(config, images))
    cli.say(f"{path}  sha256 {digest}")
    return path


def _photographs(config: ConfigDict) -> tuple[loader.Images, loader.Images]:
    if not config.data.photos:
        raise ValueError("config.data.photos is empty: name folders of photographs")
    paths = catalog.photographs(config.data.photos)
    names = [f"{path.parent.name}/{path.name}" for path in paths]
    ids = np.array([catalog.example_id(name) for name in names], np.uint64)
    held = (ids >> np.uint64(32)) < np.uint64(config.data.holdout * 2**32)
    parts = [
        loader.from_paths(list(itertools.compress(paths, mask)), ids[mask])
        for mask in (~held, held)
    ]
    return parts[0], parts[1]


def _write_pictures(
    workdir: Path, params: Any, held_out: loader.Images, model: MAE, config: ConfigDict
) -> None:
    if not len(held_out):
        return
    size = model.config.image_size
    shown = loader.Images(
        held_out.paths[:NUM_PICTURES],
        held_out.labels[:NUM_PICTURES],
        held_out.example_ids[:NUM_PICTURES],
    )
    crop = Crop(size, resize=round(size * 8 / 7))
    batch = next(loader.eval_batches(shown, crop, size=size, batch_size=len(shown)))
    params = jax.device_get(params)
    sheet = pictures(
        params, batch["image"], jax.random.key(0), model=model, mask_ratio=config.mask_ratio
    )
    (workdir / "reconstructions.png").write_bytes(encode_png(np.asarray(sheet)))


def _origin(config: ConfigDict, images: loader.Images) -> dict[str, str]:
    settings = config.to_dict()
    settings["data"]["photos"] = [Path(p).name for p in config.data.photos]
    return {
        "method": "MAE pre-training from scratch by cinemae_jax.pretrain",
        "photographs": str(len(images)),
        "settings": json.dumps(settings, sort_keys=True),
    }


def main(argv: list[str] | None = None) -> int:

    def job(config: ConfigDict, workdir: Path) -> list[str]:
        pretrain(config, workdir)
        return []

    return cli.run_config(sys.argv if argv is None else argv, job)


if __name__ == "__main__":
    sys.exit(main())
