"""The unfrozen ablation: a head and parts of its backbone trained together, on purpose.

Everything else in this package treats the backbone as a constant.  Here the gradient reaches the
encoder, the decoder or both, which have their own optimiser.  Only ``ablate`` uses this.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
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
from cinemae_jax.features.run import Run
from cinemae_jax.features.sources import OnlineSet
from cinemae_jax.features.splits import Data
from cinemae_jax.model import masking
from cinemae_jax.model.cinemae import Backbone, logits, unfrozen_features
from cinemae_jax.model.config import DetectorConfig, MAEConfig
from cinemae_jax.model.head import HeadState, Normalizer
from cinemae_jax.model.mae import normalize_images
from cinemae_jax.model.masking import Masks
from cinemae_jax.runtime import progress
from cinemae_jax.runtime.checkpoints import Checkpoints, Interrupted
from cinemae_jax.runtime.devices import AXIS, Replicas
from cinemae_jax.runtime.shard import Shard
from cinemae_jax.settings import DataSettings, FeatureSettings, Settings, TrainSettings
from cinemae_jax.training import fitting, optim, steps
from cinemae_jax.training.loop import Loop
from cinemae_jax.training.metrics_log import Metrics

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
            frequency_weight_decay=config.frequency_weight_decay,
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
      backbone, heads: to start from; the normalizer stays as it is.
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
    step_fn = _step_on_devices(config.detector, config.masks, backbone.config, optimizers, replicas)
    constant = replicas.replicate((fixed, heads.normalizer, config.masks.key))
    metadata = trained.metadata(config, backbone, data)
    metadata |= {"kind": KIND, "how": dataclasses.asdict(how)}

    def is_recorded(step: int) -> bool:
        return order.ends_epoch(step) or step % config.train.checkpoint_every == 0

    def record() -> None:
        values, validated = {"loss": loop.mean_loss()}, {"validation_loss": math.inf}  # never best
        scores = HeldOut.unknown(len(data.validation), 1)
        if order.ends_epoch(loop.step):
            now = dataclasses.replace(backbone, params=state.params["backbone"] | constant[0])
            scores, validated = validate(now, HeadState(state.params["head"], constant[1]))
            values |= validated
        log.write(loop.step, **values)
        loss = np.asarray(validated["validation_loss"])
        items = {"state": state, "held_out": scores, "loss": loss}
        checkpoints.save(loop.step, items, metadata, validated)

    with Checkpoints(run.workdir / FOLDER, best=resuming.validation_score) as checkpoints:
        interrupted = Interrupted(checkpoints)
        params = {"head": heads.params, "backbone": moving}
        start, untold, state = _resumed(params, optimizers, interrupted, metadata, replicas)
        log = Metrics(run.workdir, start)
        loop = Loop(start, order.num_steps, untold, rate_field="config.unfrozen.learning_rate")
        images = data.train, order, start, replicas.host
        batches = _batches(config.data, config.features, backbone.config.image_size, *images)
        with loop.saved_when_stopped(lambda: {"state": state}, interrupted, metadata):
            for _, batch in loop.steps(batches, "train unfrozen", is_recorded, record):
                run.unread.note(data.train, batch)
                state, loss = step_fn(state, *constant, replicas.shard(batch, INPUTS))
                loop.untold.append(loss)
        return _best(checkpoints, state, fixed, heads.normalizer, len(data.validation))


def _step_on_devices(
    detector: DetectorConfig,
    masks: Masks,
    model: MAEConfig,
    optimizers: dict[str, optax.GradientTransformation],
    replicas: Replicas,
) -> Callable[..., tuple[State, Any]]:
    step = make_step(detector, model, optimizers, extraction.drawn_runs(masks))
    return replicas.pmap_step(step, replicated=4, donate=(0,))


def _resumed(
    params: dict[str, Any],
    optimizers: dict[str, optax.GradientTransformation],
    interrupted: Interrupted,
    metadata: dict[str, Any],
    replicas: Replicas,
) -> tuple[int, list[np.ndarray], State]:
    """Steps taken before, losses that no record has told, and the state on the devices."""
    first = State(params, {name: tx.init(params[name]) for name, tx in optimizers.items()})
    folder = interrupted.regular.folder
    start, saved, untold = interrupted.resume(
        {"state": first}, lambda before: resuming.require_same_run(before, metadata, folder)
    )
    if start:
        progress.say(f"resumed   at step {start}")
    own = jax.tree.map(np.array, jax.device_get(saved.get("state", first)))  # steps donate it
    return start, untold, replicas.replicate(own)


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
    data: DataSettings,
    features: FeatureSettings,
    size: int,
    images: Catalog,
    order: Order,
    start: int,
    host: Shard,
) -> Iterator[loader.Batch]:
    shown = loader.Loader(
        collection.open_images(images, source=data.source),
        data.train_transform(size),
        seed=features.seed,
        host=host,
        num_threads=data.num_threads,
    )
    return shown.train_batches(order, start_step=start, num_views=features.num_views)
