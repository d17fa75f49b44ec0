"""The unfrozen ablation: a head and parts of its backbone trained together, on purpose.

Everything else in this package treats the backbone as a constant; here the gradient goes on into
the encoder, the decoder or both, in an optimiser of their own.  Only ``ablate`` uses this.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Key

from cinemae_jax.data import loader
from cinemae_jax.data.order import Order
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import resuming, trained
from cinemae_jax.detector.trained import HeldOut
from cinemae_jax.features import extraction
from cinemae_jax.features.extraction import Extractor, mask_key
from cinemae_jax.features.splits import Data
from cinemae_jax.model import masking
from cinemae_jax.model.cinemae import Backbone, logits, unfrozen_features
from cinemae_jax.model.config import DetectorConfig, MAEConfig
from cinemae_jax.model.head import HeadState, Normalizer
from cinemae_jax.model.mae import normalize_images
from cinemae_jax.runtime import progress
from cinemae_jax.runtime.checkpoints import Checkpoints, Interrupted
from cinemae_jax.runtime.devices import AXIS, Replicas
from cinemae_jax.settings import Settings
from cinemae_jax.training import loop, metrics_log, optim, steps

Part = Literal["encoder", "decoder", "both"]
PARTS: tuple[str, ...] = typing.get_args(Part)
KIND = "unfrozen"
# Of the checkpoints, in that of the run.
FOLDER = "unfrozen"
INPUTS = (*extraction.INPUTS, "label", "valid")

# Scores of the held-out images by a backbone and its heads, and ``validation_*`` of them.
Validate = Callable[[Backbone, HeadState], tuple[HeldOut, dict[str, float]]]


@dataclasses.dataclass(frozen=True)
class Unfrozen:
    """Which part of a backbone is trained, and how: by AdamW, while the head keeps its own.

    Attributes:
      part: ``encoder``, ``decoder`` or ``both``.
      learning_rate: at the peak; warm-up and decay are the head's.
      weight_decay: of the backbone's kernels.
    """

    part: Part
    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"unfreeze is {self.part!r}: use one of {', '.join(PARTS)}")
        for name in ("learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"unfrozen.{name} must be 0 or more, is {getattr(self, name)}")


@struct.dataclass
class State:
    """All that changes: ``params`` and ``opt_state`` have the entries ``head`` and ``backbone``.

    The parameters of the head have a leading axis of one seed, as everywhere.
    """

    params: dict[str, Any]
    opt_state: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a training has made: of its checkpoint with the least validation loss.

    Attributes:
      params: of the whole backbone, NumPy.
      heads: of one seed.
      held_out: scores of the held-out images.
      validation_loss: of those.
      step: of the checkpoint.
    """

    params: dict[str, Any]
    heads: HeadState
    held_out: HeldOut
    validation_loss: float
    step: int


def split(params: Mapping[str, Any], part: Part) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a backbone as (trained, fixed); the mask token belongs to the decoder."""

    def is_trained(name: str) -> bool:
        in_decoder = name.startswith("decoder") or name == "mask_token"
        return part == "both" or in_decoder == (part == "decoder")

    return (
        {name: leaf for name, leaf in params.items() if is_trained(name)},
        {name: leaf for name, leaf in params.items() if not is_trained(name)},
    )


class MovingExtractor(Extractor):
    """An extractor whose backbone may change; still compiled once."""

    def move(self, backbone: Backbone) -> None:
        """Extracts by another backbone of the same architecture from now on."""
        placed = backbone.in_dtype(self.config.detector.dtype)
        self._frozen = self.replicas.replicate((placed, mask_key(self.config)))


def make_step(
    config: DetectorConfig,
    model: MAEConfig,
    optimizers: dict[str, optax.GradientTransformation],
    runs: extraction.Runs,
) -> Callable[..., tuple[State, Float[Array, ""]]]:
    """One update of head and backbone on one device's share of a batch of images.

    As ``steps.make_head_step``, loss and gradient are means over the valid examples of all devices.
    """

    def step(
        state: State,
        fixed: Any,
        normalizer: Normalizer,
        key: Key[Array, ""],
        batch: extraction.DeviceBatch,
    ) -> tuple[State, Float[Array, ""]]:
        num_crops = math.prod(batch["image"].shape[1:-3])
        ids, epoch = (jnp.repeat(batch[name], num_crops) for name in ("example_id", "epoch"))
        pixels = normalize_images(batch["image"].reshape(-1, *batch["image"].shape[-3:]))
        keys = masking.example_keys(key, ids)
        valid = batch["valid"].astype(jnp.float32)
        per_device = jnp.maximum(jax.lax.pmean(valid.sum(), AXIS), 1e-9)

        def loss_of(params: dict[str, Any]) -> Float[Array, ""]:
            backbone = params["backbone"] | fixed
            seen = unfrozen_features(backbone, model, pixels, keys, runs(keys, epoch), config)
            head = jax.tree.map(lambda leaf: leaf[0], HeadState(params["head"], normalizer))
            rows, _ = logits(head, seen, config, model.num_patches)
            crops = rows.reshape(len(valid), -1)
            loss = steps.binary_cross_entropy(crops, batch["label"][:, None]).mean(axis=1)
            return (loss * valid).sum() / per_device

        loss, grads = jax.lax.pmean(jax.value_and_grad(loss_of)(state.params), AXIS)
        grads = optim.without_key_bias(grads)
        params, opt_state = {}, {}
        for name, tx in optimizers.items():
            old = state.params[name]
            updates, opt_state[name] = tx.update(grads[name], state.opt_state[name], old)
            params[name] = optax.apply_updates(old, updates)
        return State(params, opt_state), loss

    return step


def make_optimizers(
    config: Settings, how: Unfrozen, num_steps: int
) -> dict[str, optax.GradientTransformation]:
    """AdamW for the head, as in every training, and another for the backbone."""

    def schedule(peak: float) -> optax.Schedule:
        return optim.warmup_cosine(peak, num_steps, config.train.warmup)

    return {
        "head": steps.make_optimizer(
            schedule(config.train.learning_rate),
            weight_decay=config.train.weight_decay,
            global_weight_decay=config.train.global_weight_decay,
        ),
        "backbone": optim.adamw(schedule(how.learning_rate), weight_decay=how.weight_decay),
    }


def fit(
    config: Settings,
    how: Unfrozen,
    data: Data,
    backbone: Backbone,
    heads: HeadState,
    validate: Validate,
    workdir: Path,
    replicas: Replicas,
    bad: BadImages,
) -> Tuned:
    """Trains, or goes on where it was stopped; every epoch ends with a validated checkpoint.

    Args:
      config: of the run, of one seed.
      how: what is trained besides the head, and how.
      data: the images of the run.
      backbone: to start from; is not changed.
      heads: to start from, of one seed; the normalizer stays as it is.
      validate: scores the held-out images.
      workdir: of the run; checkpoints go to ``FOLDER`` in it.
      replicas: devices that share every batch.
      bad: takes note of the images that cannot be read.

    Raises:
      ValueError: if the loss is no longer finite.
      CheckpointError: if the folder belongs to another run.
      Preempted: when the run was told to stop; its state is saved beside the checkpoints.
    """
    order = Order(len(data.train), config.train.batch_size, config.train.epochs, config.seed)
    optimizers = make_optimizers(config, how, order.num_steps)
    moving, fixed = split(backbone.params, how.part)
    params = {"head": heads.params, "backbone": moving}
    state = State(params, {name: tx.init(params[name]) for name, tx in optimizers.items()})
    metadata = trained.metadata(config, backbone, data.train, data.validation)
    metadata |= {"kind": KIND, "how": dataclasses.asdict(how)}
    with Checkpoints(workdir / FOLDER, best=resuming.validation_score) as checkpoints:
        interrupted = Interrupted(checkpoints)
        start, saved, losses = interrupted.resume(
            {"state": state},
            lambda before: resuming.require_same_run(before, metadata, checkpoints.folder),
        )
        if start:
            state = saved["state"]
            progress.say(f"resumed   at step {start} of {order.num_steps}")
        log = metrics_log.Metrics(workdir)
        log.rewind(start)
        runs = extraction.drawn_runs(config.detector.num_runs, config.features.num_runs, 1)
        step_fn = replicas.pmap_step(
            make_step(config.detector, backbone.config, optimizers, runs),
            replicated=4,
            donate=(0,),
        )
        constant = replicas.replicate((fixed, heads.normalizer, mask_key(config)))
        own = jax.tree.map(np.array, jax.device_get(state))  # steps donate it: no caller's arrays

        def advance(state: State, batch: loader.Batch) -> tuple[State, Any]:
            bad.note(data.train, batch)
            return step_fn(state, *constant, replicas.shard(batch, INPUTS))

        def at_checkpoint(step: int) -> bool:
            return order.ends_epoch(step) or step % config.train.checkpoint_every == 0

        def record(step: int, state: State, loss: float) -> None:
            values = {"loss": loss}
            held_out = HeldOut.unknown(len(data.validation), 1)
            validated = {"validation_loss": math.inf}  # never the best checkpoint
            if order.ends_epoch(step):
                params = state.params["backbone"] | constant[0]
                now = Backbone(params, backbone.config, backbone.sha256)
                held_out, validated = validate(now, HeadState(state.params["head"], constant[1]))
                values |= validated
            log.write(step, **values)
            of_validation = np.asarray(validated["validation_loss"])
            items = {"state": state, "held_out": held_out, "loss": of_validation}
            checkpoints.save(step, items, metadata, validated)

        state = loop.run(
            replicas.replicate(own),
            _batches(config, data, backbone.config.image_size, order, start, replicas),
            advance,
            start=start,
            num_steps=order.num_steps,
            losses=losses,
            at_checkpoint=at_checkpoint,
            record=record,
            keep=lambda step, state, losses: interrupted.save(
                step, {"state": state}, metadata, losses
            ),
            what="train unfrozen",
            rate_field="config.unfrozen.learning_rate",
        )
        return _best(checkpoints, state, fixed, heads.normalizer, len(data.validation))


def _best(
    checkpoints: Checkpoints, state: State, fixed: Any, normalizer: Normalizer, num_held_out: int
) -> Tuned:
    step = checkpoints.best or 0
    unknown = HeldOut.unknown(num_held_out, 1)
    like = {"state": state, "held_out": unknown, "loss": np.zeros(())}
    saved = checkpoints.restore(step, like)
    params = saved["state"].params
    return Tuned(
        jax.tree.map(np.asarray, params["backbone"] | fixed),
        HeadState(params["head"], normalizer),
        saved["held_out"],
        float(saved["loss"]),
        step,
    )


def _batches(
    config: Settings, data: Data, size: int, order: Order, start: int, replicas: Replicas
) -> Iterator[loader.Batch]:
    return loader.train_batches(
        config.data.images(data.train),
        config.data.train_transform(size),
        order,
        seed=config.features.seed,
        start_step=start,
        host=replicas.host,
        num_threads=config.data.num_threads,
        num_views=config.features.num_views,
    )
