"""Every stage of the JAX detector on fixed inputs, and their comparison with a reference.

Needs no torch: golden tests compare with stored outputs of ``torch_reference``, ``verify`` with
live ones.  The unmasked pass and masked run 0 are kept block by block.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from cinemae_jax.model import frequency, lcas, masking
from cinemae_jax.model.cinemae import Backbone, Features, head_logits, statistics
from cinemae_jax.model.config import DetectorConfig, Fusion, MAEConfig, Score, Sensitivity
from cinemae_jax.model.head import HeadState, Normalizer
from cinemae_jax.model.mae import MAE, grey_levels, normalize_images, patchify, to_target
from cinemae_jax.training import optim, steps
from weights_convert import mapping

MASK_RATIO = 0.75
GROUP_SIZE = DetectorConfig(masking="disjoint", mask_ratio=MASK_RATIO).group_size
NUM_STEPS, PEAK, WARMUP = 20, 1e-3, 0.05
WEIGHT_DECAY, GLOBAL_WEIGHT_DECAY = 1e-2, 1.0
NORMALIZER = ("global_mean", "global_std", "stats_mean", "stats_std")

Stages = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of both sides.

    Attributes:
      images: uint8 (B, H, W, 3).
      noise: of the masks, float32 (B, K, L).
      labels: (B,), 1 for ai.
      head: initial parameters, by the names of ``torch_reference.Head``.
      normalizer: arrays by the names ``NORMALIZER``.
      fusion, variant: of the head, of the score.
    """

    images: np.ndarray
    noise: np.ndarray
    labels: np.ndarray
    head: Mapping[str, np.ndarray]
    normalizer: Mapping[str, np.ndarray]
    fusion: Fusion
    variant: Score

    @property
    def hidden(self) -> int:
        return len(self.head["mlp.0.bias"]) if "mlp.0.bias" in self.head else 1


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one stage: largest |ours - reference|, alone and divided by ``scale``, max |reference|."""

    stage: str
    absolute: float
    relative: float
    scale: float

    def exceeds(self, bound: float) -> bool:
        """Whether the difference is above ``bound`` times the larger of 1 and the stage's scale.

        The bound grows with the values because their rounding does.  NaN exceeds every bound.
        """
        return not self.absolute <= bound * max(1.0, self.scale)


def random_inputs(
    config: MAEConfig,
    *,
    batch: int = 2,
    num_runs: int = 2,
    seed: int = 0,
    fusion: Fusion = "additive",
    variant: Score = "context_nll",
    hidden: int = 256,
) -> Inputs:
    """Images of blocks and grain, mask noise, and a head without a layer near zero."""
    rng = np.random.default_rng(seed)
    size, width = config.image_size, config.width
    coarse = rng.normal(128, 50, (batch, 4, 4, 3)).repeat(-(-size // 4), 1).repeat(-(-size // 4), 2)
    grain = rng.normal(0, 20, (batch, size, size, 3))
    images = (coarse[:, :size, :size] + grain).clip(0, 255).astype(np.uint8)
    normalizer = {
        "global_mean": rng.normal(0, 0.1, width),
        "global_std": rng.uniform(0.5, 1.5, width),
        "stats_mean": rng.normal(0, 0.5, 3),
        "stats_std": rng.uniform(0.5, 1.5, 3),
    }
    return Inputs(
        images=images,
        noise=rng.random((batch, num_runs, config.num_patches), np.float32),
        labels=np.arange(batch) % 2,
        head=_random_head(rng, width, fusion, hidden),
        normalizer={k: v.astype(np.float32) for k, v in normalizer.items()},
        fusion=fusion,
        variant=variant,
    )


def _random_head(
    rng: np.random.Generator, width: int, fusion: str, hidden: int
) -> dict[str, np.ndarray]:
    out = 1 if fusion == "logit" else width
    fused = 2 * width if fusion == "concat" else width
    shapes = {"mlp.0.weight": (hidden, 3), "mlp.2.weight": (out, hidden)}
    if fusion == "global":
        shapes = {}
    if fusion == "gate":
        shapes["gate.weight"] = (width, 2 * width)
    if fusion == "logit":
        shapes["global_classifier.weight"] = (1, width)
    else:
        shapes["classifier.weight"] = (1, fused)
    head = {name: rng.normal(0, s[1] ** -0.5, s) for name, s in shapes.items()}
    head |= {n.replace("weight", "bias"): rng.normal(0, 0.1, s[0]) for n, s in shapes.items()}
    if fusion != "logit":
        head |= {"norm.weight": rng.uniform(0.5, 1.5, fused), "norm.bias": rng.normal(0, 1, fused)}
    return {name: value.astype(np.float32) for name, value in head.items()}


def jax_stages(backbone: Backbone, inputs: Inputs) -> Stages:
    """Every stage of the JAX detector in float32, matrix products at the highest precision."""
    with jax.default_matmul_precision("highest"):
        features, out = backbone_stages(backbone, inputs)
        out |= _statistics_stages(features, backbone.config)
        out |= mask_stages(backbone.config, inputs)
        out |= head_stages(features, backbone.config, inputs)
        return {name: np.asarray(value) for name, value in out.items()}


def backbone_stages(backbone: Backbone, inputs: Inputs) -> tuple[Features, dict[str, jax.Array]]:
    """Features of all runs, and every stage up to the LCAS terms."""
    config, variables = backbone.config, {"params": backbone.params}
    model = MAE(config)
    pixels = normalize_images(jnp.asarray(inputs.images))
    patches = patchify(pixels, config.patch_size)
    target = to_target(patches, config.target)
    visible = masking.from_noise(jnp.asarray(inputs.noise), config.num_visible(MASK_RATIO))
    masked = masking.masked_ids(visible, config.num_patches)

    encode = jax.jit(
        lambda v, x: model.apply(v, x, method="encode", capture_intermediates=_is_stage)
    )
    tokens, seen = encode(variables, pixels)
    traced = {"target": target} | _trace("global", seen)

    @jax.jit
    def run(v: Any, x: jax.Array, i: jax.Array, j: jax.Array) -> tuple[lcas.Terms, jax.Array, Any]:
        predictions, seen = model.apply(v, x, i, j, capture_intermediates=_is_stage)
        return jax.vmap(lcas.run_terms)(target, predictions, i, j), predictions, seen

    runs = []
    for k in range(inputs.noise.shape[1]):
        terms, predictions, seen = run(variables, pixels, visible[:, k], masked[:, k])
        runs.append(terms)
        if k == 0:
            traced |= _trace("masked", seen) | {"masked/prediction": predictions}
    terms = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *runs)
    for field in dataclasses.fields(terms):
        if (term := getattr(terms, field.name)) is not None:  # no bands here
            traced[f"terms/{field.name}"] = term
    threshold = DetectorConfig().uniform_variance
    uniform = jax.vmap(lambda image: lcas.uniform_share(image, threshold))(patches)
    spectra = jax.jit(jax.vmap(frequency.describe))(grey_levels(pixels))
    traced["frequency"] = spectra
    return Features(tokens[:, 0], terms, masked, uniform, spectra), traced


def _is_stage(module: object, method: str) -> bool:
    name = str(getattr(module, "name", None))
    is_block = name.startswith(("encoder_", "decoder_"))
    last = name in ("decoder_norm", "decoder_pred")  # masked patches only, as the prediction
    return method == "__call__" and (name == "patch_embed" or is_block) and not last


def _trace(prefix: str, seen: Mapping) -> dict[str, jax.Array]:
    captured = seen["intermediates"]
    return {f"{prefix}/{name}": captured[name]["__call__"][0] for name in captured}


@functools.partial(jax.jit, static_argnums=1)
def _statistics_stages(features: Features, config: MAEConfig) -> dict[str, jax.Array]:
    """The three statistics of every score, with both kinds of sensitivity."""
    return {
        statistics_name(variant, sensitivity, share): statistics(
            features,
            DetectorConfig(score=variant, sensitivity=sensitivity, score_share=share),
            config.num_patches,
        )
        for share in shares(config.target == "raw")
        for variant in get_args(Score)
        for sensitivity in get_args(Sensitivity)
    }


def shares(raw: bool) -> tuple[float, ...]:
    """Shares of the patches that statistics summarise; patches of raw pixels alone have texture."""
    return (1.0, 0.5) if raw else (1.0,)


def statistics_name(variant: str, sensitivity: str, share: float) -> str:
    """Name of a stage."""
    return f"statistics/{variant}/{sensitivity}" + (f"/{share:g}" if share < 1 else "")


def mask_stages(config: MAEConfig, inputs: Inputs) -> dict[str, jax.Array]:
    """Visible ids of the masks beyond the paper: disjoint and stratified."""
    noise, num_visible = jnp.asarray(inputs.noise), config.num_visible(MASK_RATIO)
    levels = patchify(jnp.asarray(inputs.images, jnp.int32), config.patch_size)
    textures = jax.vmap(lcas.texture)(levels)

    def disjoint(own: jax.Array) -> jax.Array:
        return jnp.stack([masking.slice_of(own, k, num_visible) for k in range(GROUP_SIZE)])

    def stratified(texture: jax.Array, own: jax.Array) -> jax.Array:
        draw = functools.partial(masking.one_per_stratum, num_visible=num_visible, temperature=1.0)
        return jax.vmap(draw, in_axes=(None, 0))(texture, -jnp.log(-jnp.log(own)))

    return {
        "masks/texture": textures,
        "masks/disjoint": jax.vmap(disjoint)(noise[:, 0]),
        "masks/stratified": jax.vmap(stratified)(textures, noise),
    }


def head_stages(features: Features, config: MAEConfig, inputs: Inputs) -> dict[str, jax.Array]:
    """Logits, loss, gradients, and the head after ``NUM_STEPS`` steps on the same batch."""
    detector = DetectorConfig(score=inputs.variant, fusion=inputs.fusion, hidden=inputs.hidden)
    normalizer = Normalizer(**{k: jnp.asarray(inputs.normalizer[k]) for k in NORMALIZER})
    params = traverse_util.unflatten_dict(mapping.head_to_flax(inputs.head), sep="/")
    labels = jnp.asarray(inputs.labels)
    tx = steps.make_optimizer(
        optim.warmup_cosine(PEAK, NUM_STEPS, WARMUP),
        weight_decay=WEIGHT_DECAY,
        global_weight_decay=GLOBAL_WEIGHT_DECAY,
    )

    def logits(params: Any, features: Features) -> jax.Array:
        stats = statistics(features, detector, config.num_patches)
        head, f_global = HeadState(params, normalizer), jnp.asarray(features.f_global)
        return head_logits(head, f_global, stats, detector)

    def loss(params: Any, features: Features) -> jax.Array:
        return steps.binary_cross_entropy(logits(params, features), labels).mean()

    @jax.jit
    def run(params: Any, features: Features) -> tuple[jax.Array, jax.Array, Any, Any]:
        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, features), state, params)
            return (optax.apply_updates(params, updates), state), None

        value, gradients = jax.value_and_grad(loss)(params, features)
        (trained, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=NUM_STEPS)
        return logits(params, features), value, gradients, trained

    out, value, gradients, trained = run(jax.tree.map(jnp.asarray, params), features)
    flat = {f"gradients/{k}": v for k, v in _flat(gradients).items()}
    flat |= {f"trained/{k}": v for k, v in _flat(trained).items()}
    return {"logits": out, "loss": value[None]} | flat


def _flat(tree: dict) -> dict[str, jax.Array]:
    return traverse_util.flatten_dict(tree, sep="/")


def compare(
    reference: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]
) -> list[Difference]:
    """One row per stage, in the order of the reference.

    Raises:
      ValueError: naming the stages that only one side has, or whose shapes differ.
    """
    differ = sorted(
        {n for n in reference if n not in ours or ours[n].shape != reference[n].shape}
        | set(ours) - set(reference)
    )
    if differ:
        raise ValueError(f"stages or their shapes differ: {', '.join(differ)}")
    rows = []
    for name, wanted in reference.items():
        scale = float(np.abs(wanted).max())
        gap = float(np.abs(ours[name].astype(np.float64) - wanted.astype(np.float64)).max())
        rows.append(Difference(name, gap, gap / max(scale, 1e-30), scale))
    return rows
