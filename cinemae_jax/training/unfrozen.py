"""The unfrozen ablation: a head and parts of its backbone trained together, on purpose.

Everything else in this package treats the backbone as a constant; here the gradient goes on into
the encoder, the decoder or both, in an optimiser of their own.  Only ``ablate`` uses this.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Key

from cinemae_jax.data import collection, loader
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.order import Order
from cinemae_jax.detector import resuming, scoring, trained
from cinemae_jax.detector.trained import HeldOut
from cinemae_jax.features import extraction
from cinemae_jax.features.extraction import Masks
from cinemae_jax.features.run import Run
from cinemae_jax.features.sources import OnlineSet
from cinemae_jax.features.splits import Data
from cinemae_jax.model import masking
from cinemae_jax.model.cinemae import Backbone, logits, unfrozen_features
from cinemae_jax.model.config import DetectorConfig, MAEConfig
from cinemae_jax.model.head import HeadState, Normalizer
from cinemae_jax.model.mae import normalize_images
from cinemae_jax.runtime import progress
from cinemae_jax.runtime.checkpoints import Checkpoints, Interrupted
from cinemae_jax.runtime.devices import AXIS, Replicas
from cinemae_jax.settings import Settings, TrainSettings
from cinemae_jax.training import fitting, metrics_log, optim, steps
from cinemae_jax.training.loop import Loop

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


def split(params: dict[str, Any], part: Part) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a backbone as (trained, fixed); the mask token belongs to the decoder."""

    def is_trained(name: str) -> bool:
        in_decoder = name.startswith("decoder") or name == "mask_token"
        return part == "both" or in_decoder == (part == "decoder")

    return (
        {name: leaf for name, leaf in params.items() if is_trained(name)},
        {name: leaf for name, leaf in params.items() if not is_trained(name)},
    )


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
    config: TrainSettings, how: Unfrozen, num_steps: int
) -> dict[str, optax.GradientTransformation]:
    """AdamW for the head, as in every training, and another for the backbone."""

    def schedule(peak: float) -> optax.Schedule:
        return optim.warmup_cosine(peak, num_steps, config.warmup)

    return {
        "head": steps.make_optimizer(
            schedule(config.learning_rate),
            weight_decay=config.weight_decay,
            global_weight_decay=config.global_weight_decay,
        ),
        "backbone": optim.adamw(schedule(how.learning_rate), weight_decay=how.weight_decay),
    }


def validator(images: OnlineSet, detector: DetectorConfig, run: Run) -> Validate:
    """Scores held-out images by a backbone and its heads; moves the images' extractor to it."""
    scorer = scoring.Scorer(detector, images.num_patches, run.replicas)

    def validate(now: Backbone, heads: HeadState) -> tuple[HeldOut, dict[str, float]]:
        images.extractor.use(now)
        scores = scoring.score_held_out(heads, images, scorer, run.unread)
        return scores, fitting.validate(scores)

    return validate


def fit(
    config: Settings,
    how: Unfrozen,
    data: Data,
    backbone: Backbone,
    heads: HeadState,
    validate: Validate,
    run: Run,
) -> Tuned:
    """Trains, or resumes; every epoch ends with a validated checkpoint.

    Args:
      config: of the run, of one seed.
      how: what is trained besides the head, and how.
      data: images of the run.
      backbone: to start from; is not changed.
      heads: to start from, of one seed; the normalizer stays as it is.
      validate: scores the held-out images.
      run: checkpoints go to ``FOLDER`` in its folder.

    Raises:
      ValueError: if the loss is no longer finite.
      CheckpointError: if the folder belongs to another run.
      Preempted: when the run was told to stop; its state is saved beside the checkpoints.
    """
    replicas = run.replicas
    order = Order(len(data.train), config.train.batch_size, config.train.epochs, config.seed)
    optimizers = make_optimizers(config.train, how, order.num_steps)
    moving, fixed = split(backbone.params, how.part)
    metadata = trained.metadata(config, backbone, data)
    metadata |= {"kind": KIND, "how": dataclasses.asdict(how)}
    masks = Masks.of(config)
    step = make_step(config.detector, backbone.config, optimizers, masks.drawn)
    step_fn = replicas.pmap_step(step, replicated=4, donate=(0,))
    constant = replicas.replicate((fixed, heads.normalizer, masks.key))
    with Checkpoints(run.workdir / FOLDER, best=resuming.validation_score) as checkpoints:
        interrupted = Interrupted(checkpoints)
        first = _first_state({"head": heads.params, "backbone": moving}, optimizers)
        start, saved, untold = interrupted.resume(
            {"state": first},
            lambda before: resuming.require_same_run(before, metadata, checkpoints.folder),
        )
        if start:
            progress.say(f"resumed   at step {start} of {order.num_steps}")
        own = jax.tree.map(np.array, jax.device_get(saved.get("state", first)))  # steps donate it
        state = replicas.replicate(own)
        log = metrics_log.Metrics(run.workdir)
        log.rewind(start)
        loop = Loop(start, order.num_steps, untold, rate_field="config.unfrozen.learning_rate")

        def is_recorded(step: int) -> bool:
            return order.ends_epoch(step) or step % config.train.checkpoint_every == 0

        def record() -> None:
            loss, values = loop.mean_loss(), {"validation_loss": math.inf}  # never the best one
            scores = HeldOut.unknown(len(data.validation), 1)
            if order.ends_epoch(loop.step):
                now = Backbone(
                    state.params["backbone"] | constant[0], backbone.config, backbone.sha256
                )
                scores, values = validate(now, HeadState(state.params["head"], constant[1]))
            log.write(loop.step, **{"loss": loss} | (values if len(values) > 1 else {}))
            of_validation = np.asarray(values["validation_loss"])
            items = {"state": state, "held_out": scores, "loss": of_validation}
            checkpoints.save(loop.step, items, metadata, values)

        with loop.saved_when_stopped(
            lambda: interrupted.save(loop.step, {"state": state}, metadata, loop.untold)
        ):
            batches = _batches(
                config, data.train, backbone.config.image_size, order, start, replicas
            )
            for _, batch in loop.steps(
                batches, "train unfrozen", is_recorded=is_recorded, record=record
            ):
                run.unread.note(data.train, batch)
                state, loss = step_fn(state, *constant, replicas.shard(batch, INPUTS))
                loop.untold.append(loss)
        return _best(checkpoints, state, fixed, heads.normalizer, len(data.validation))


def _first_state(
    params: dict[str, Any], optimizers: dict[str, optax.GradientTransformation]
) -> State:
    return State(params, {name: tx.init(params[name]) for name, tx in optimizers.items()})


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
    config: Settings, images: Catalog, size: int, order: Order, start: int, replicas: Replicas
) -> Iterator[loader.Batch]:
    return loader.train_batches(
        collection.open_images(images, source=config.data.source),
        config.data.train_transform(size),
        order,
        seed=config.features.seed,
        start_step=start,
        host=replicas.host,
        num_threads=config.data.num_threads,
        num_views=config.features.num_views,
    )
