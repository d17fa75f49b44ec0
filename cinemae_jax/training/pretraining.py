"""MAE pre-training on photographs: the step, the loop, the backbone file."""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float

from cinemae_jax import weights
from cinemae_jax.data import catalog, loader
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.decode import encode_png
from cinemae_jax.data.order import Order
from cinemae_jax.data.transforms import Crop, RandomResizedCrop
from cinemae_jax.data.unread import BadImage
from cinemae_jax.features import splits
from cinemae_jax.features.run import Run
from cinemae_jax.model.arrays import Params
from cinemae_jax.model.cinemae import random_backbone
from cinemae_jax.model.mae import MAE
from cinemae_jax.model.reconstruction import masked_loss, pictures
from cinemae_jax.runtime import collectives, differences, preemption, progress
from cinemae_jax.runtime.checkpoints import Checkpoints, Interrupted
from cinemae_jax.runtime.devices import AXIS, Replicas
from cinemae_jax.settings import PretrainSettings
from cinemae_jax.training import optim
from cinemae_jax.training.loop import Loop
from cinemae_jax.training.metrics_log import Metrics

INPUTS = ("image", "example_id", "epoch", "valid")
# What a resumed run may do otherwise; the photographs themselves must be the same.
MAY_DIFFER = ("settings.data.photos", "settings.data.num_threads", "settings.checkpoint_every")
# Images of a step that a CPU takes at a time: more than its caches hold made each of them slower,
# and memory fresh from the system at every step has its price too (docs/performance.md).
CHUNK = 8
NUM_PICTURES = 8  # held-out photographs shown in reconstructions


@struct.dataclass
class PretrainState:
    """Parameters of the MAE and of its optimiser."""

    params: Params
    opt_state: optax.OptState


def make_step(
    model: MAE, tx: optax.GradientTransformation, mask_ratio: float, chunk: int | None = None
) -> Any:
    """The update of one device; gradients and loss are means over all valid images.

    Args:
      model: to be trained.
      tx: optimiser.
      mask_ratio: share of patches masked.
      chunk: images at a time, their gradients summed; None takes ``CHUNK`` on a CPU and all
        elsewhere.  Where it does not divide a device's share of a batch, their common divisor.
    """
    loss_and_grads = jax.value_and_grad(
        functools.partial(masked_loss, model=model, mask_ratio=mask_ratio)
    )
    if chunk is None and jax.default_backend() == "cpu":
        chunk = CHUNK

    def summed(params: Any, batch: dict[str, Array], key: Array) -> tuple[Float[Array, ""], Any]:
        size = len(batch["valid"])
        at_once = math.gcd(size, chunk or size)
        if at_once == size:
            return loss_and_grads(params, batch, key)
        chunks = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), batch)

        def add(total: Any, part: dict[str, Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, loss_and_grads(params, part, key)), None

        zero = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zero, chunks)[0]

    def step(
        state: PretrainState, key: Array, batch: dict[str, Array]
    ) -> tuple[PretrainState, Float[Array, ""]]:
        count = jnp.maximum(jax.lax.psum(batch["valid"].sum(), AXIS), 1)
        loss, grads = summed(state.params, batch, key)
        loss, grads = jax.tree.map(lambda x: x / count, jax.lax.psum((loss, grads), AXIS))
        grads = optim.without_key_bias(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return PretrainState(optax.apply_updates(state.params, updates), opt_state), loss

    return step


def make_eval(model: MAE, mask_ratio: float) -> Any:
    """Sum of losses and number of valid images of a batch, over all devices."""

    def evaluate(params: Any, key: Array, batch: dict[str, Array]) -> tuple[Array, Array]:
        loss = masked_loss(params, batch, key, model=model, mask_ratio=mask_ratio)
        loss, count = jax.lax.psum((loss, batch["valid"].sum()), AXIS)
        return loss, count

    return evaluate


def pretrain(
    config: PretrainSettings, workdir: Path, replicas: Replicas | None = None
) -> list[BadImage]:
    """Runs or resumes a pre-training and writes ``backbone.safetensors``.

    Returns:
      The photographs that could not be read.
    """
    run = Run.start(workdir, replicas)
    run.replicas.check_batch_size(config.batch_size, "config.batch_size")
    photographs, held_out = catalog.photographs(config.data.photos).hold_out(config.data.holdout)
    metadata = {
        "kind": "pretraining",
        "photographs": photographs.fingerprint,
        "settings": dataclasses.asdict(config),
    }
    collectives.require_equal(metadata)
    params = fit(config, photographs, held_out, run, metadata)
    if run.replicas.host.index == 0:
        path, origin = workdir / "backbone.safetensors", _origin(config, len(photographs))
        digest = weights.save(path, config.model, jax.device_get(params), origin)
        progress.say(f"{path}  sha256 {digest}")
    collectives.barrier("the backbone is written")
    splits.share_unread(run.unread)
    splits.report_unread(workdir, run.unread.listed)
    return run.unread.listed


def fit(
    config: PretrainSettings,
    photographs: Catalog,
    held_out: Catalog,
    run: Run,
    metadata: dict[str, Any],
) -> Any:
    """Optimises an MAE on photographs and returns its parameters, on the devices.

    Raises:
      Preempted: when the run was told to stop; its state is saved beside the checkpoints.
    """
    model, replicas = MAE(config.model, jnp.dtype(config.dtype)), run.replicas
    order = Order(len(photographs), config.batch_size, config.epochs, config.seed)
    schedule = optim.warmup_cosine(config.learning_rate, order.num_steps, config.warmup)
    tx = optim.adamw(schedule, weight_decay=config.weight_decay, b2=config.b2)
    key, params = jax.random.key(config.seed), first_params(config)
    step_fn = replicas.pmap_step(make_step(model, tx, config.mask_ratio), replicated=2, donate=(0,))
    validation_loss = _validation(model, held_out, config, run)

    def require_same(before: dict[str, Any]) -> None:
        differences.require_same(before, metadata, checkpoints.folder, may_differ=MAY_DIFFER)

    def is_recorded(step: int) -> bool:
        return step % config.checkpoint_every == 0 or step == order.num_steps

    def record() -> None:
        step, loss = loop.step, loop.mean_loss()
        values = {
            "loss": loss,
            "validation_loss": validation_loss(state.params),
            "epoch": step * config.batch_size / len(photographs),
            "learning_rate": float(schedule(step)),
        }
        log.write(step, **values)
        validated = f"validation loss {values['validation_loss']:.4f}"
        progress.say(f"step {step} of {order.num_steps}  loss {loss:.4f}  {validated}")
        checkpoints.save(step, {"train_state": state}, metadata)
        if replicas.host.index == 0:
            _write_pictures(run.workdir, state.params, held_out, model, config)

    with Checkpoints(run.workdir / "checkpoints") as checkpoints:
        interrupted = Interrupted(checkpoints)
        first = PretrainState(params, tx.init(params))
        start, saved, untold = interrupted.resume({"train_state": first}, require_same)
        if not start:
            run.unread.forget()
        log = Metrics(run.workdir, start)
        state = replicas.replicate(saved.get("train_state", first))
        loop = Loop(start, order.num_steps, untold, rate_field="config.learning_rate")
        batches = _train_batches(photographs, order, start, config, replicas)
        with loop.saved_when_stopped(lambda: {"train_state": state}, interrupted, metadata):
            for _, batch in loop.steps(batches, "pretrain", is_recorded, record):
                run.unread.note(photographs, batch)
                state, loss = step_fn(state, key, replicas.shard(batch, INPUTS))
                loop.untold.append(loss)
        checkpoints.require(order.num_steps)
    return state.params


def _validation(
    model: MAE, held_out: Catalog, config: PretrainSettings, run: Run
) -> Callable[[Any], float]:
    """Parameters to the loss on the held-out photographs; NaN if none could be read."""
    eval_fn = run.replicas.pmap_step(make_eval(model, config.mask_ratio), replicated=2)
    key, size = jax.random.key(config.seed), config.model.image_size

    def validation_loss(params: Any) -> float:
        total, count = 0.0, 0
        batches = _eval_batches(held_out, size, config.batch_size, run.replicas)
        for batch in preemption.checked(batches):
            run.unread.note(held_out, batch)
            loss, valid = eval_fn(params, key, run.replicas.shard(batch, INPUTS))
            total, count = total + float(loss), count + int(valid)
        return total / count if count else math.nan

    return validation_loss


def _train_batches(
    photographs: Catalog, order: Order, start: int, config: PretrainSettings, replicas: Replicas
) -> Iterable[loader.Batch]:
    shown = loader.Loader(
        loader.from_catalog(photographs),
        RandomResizedCrop(config.model.image_size, config.data.scale, native=config.data.native),
        seed=config.seed,
        host=replicas.host,
        num_threads=config.data.num_threads,
    )
    return shown.train_batches(order, start_step=start)


def first_params(config: PretrainSettings) -> Any:
    """Random parameters, or those of the backbone that training goes on from.

    Raises:
      ValueError: if that backbone is of another architecture.
    """
    if not config.init:
        return random_backbone(config.model, config.seed).params
    backbone = weights.load(config.init)
    if backbone.config != config.model:
        raise ValueError(
            f"config.init {config.init} is {backbone.config}, and config.model asks for "
            f"{config.model}: make them the same"
        )
    return backbone.params


def _eval_batches(
    images: Catalog, size: int, batch_size: int, replicas: Replicas
) -> Iterable[loader.Batch]:
    crop = Crop(size, resize=round(size * 8 / 7))  # MAE's own 256 and 224, in proportion
    shown = loader.Loader(loader.from_catalog(images), crop, host=replicas.host)
    return shown.eval_batches(batch_size=batch_size)


def _write_pictures(
    workdir: Path, params: Any, held_out: Catalog, model: MAE, config: PretrainSettings
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


def _origin(config: PretrainSettings, count: int) -> dict[str, str]:
    used = dataclasses.asdict(config)
    used["data"]["photos"] = [Path(p).name for p in config.data.photos]
    return {
        "method": "MAE pre-training from scratch by cinemae_jax.pretrain",
        "photographs": str(count),
        "settings": json.dumps(used, sort_keys=True),
    }
