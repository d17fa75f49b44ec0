"""White-box attacks on the frozen pipeline: projected gradient descent through JAX's gradients.

In: uint8 crops, a trained head and its frozen backbone.  Out: uint8 crops that differ by at most
ε grey levels per value and whose logit, or mean anomaly, moves as wanted (Madry et al.,
arXiv 1706.06083).  Gradients are averaged over masks (Athalye et al., arXiv 1707.07397).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from cinemae_jax.model import lcas, masking
from cinemae_jax.model.cinemae import Backbone, logits, pixel_features
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.head import HeadState, learned_weight
from cinemae_jax.model.mae import IMAGENET_STD, normalize_images

# First masking run of an attack: no score uses these runs, and no bank holds them.
FIRST_RUN = 1 << 20
# Step size in units of ε / steps: as in Madry et al., enough to reach any corner of the box.
STRIDE = 2.5


@dataclasses.dataclass(frozen=True)
class Attack:
    """How thoroughly to search the box of half-width ε.

    Attributes:
      steps: gradient steps.
      draws: scorings that each gradient averages, each with K fresh masks.
    """

    steps: int = 10
    draws: int = 4

    def __post_init__(self) -> None:
        if min(self.steps, self.draws) < 1:
            raise ValueError(f"steps and draws must be 1 or more, are {self.steps}, {self.draws}")


# (backbone, head, pixels, keys, runs, config, draws) to one number per image, over all draws.
Objective = Callable[..., Float[Array, " b"]]
Attacker = Callable[..., tuple[UInt8[Array, "b h w 3"], Bool[Array, " b"]]]


def mean_nll(
    backbone: Backbone,
    head: HeadState,
    pixels: Float[Array, "b h w 3"],
    keys: Key[Array, " b"],
    runs: Int[Array, "b r"],
    config: DetectorConfig,
    draws: int,
) -> Float[Array, " b"]:
    """Mean anomaly s2 of the score ``context_nll`` over all runs, whatever the head reads."""
    features = pixel_features(backbone, pixels, keys, runs, config)
    learned = learned_weight(head.params)
    weight = config.mismatch_weight if learned is None else learned
    return lcas.score(features.terms, "context_nll", weight).mean(axis=(1, 2))


def make_attack(
    config: DetectorConfig, attack: Attack, objective: Objective | None = None
) -> Attacker:
    """Builds the attack on one device's share of a batch of crops.

    Args:
      config: of the detector; static.
      attack: static.
      objective: static; ``mean_logit`` (the default) or ``mean_nll``, which needs masked runs.

    Returns:
      A function of (backbone, one head without an axis of seeds, base key of the masks, images
      (B, H, W, 3) uint8, example ids, labels, ε in grey levels).  It returns the changed images
      and (B,) whether any gradient of the image was undefined; such a gradient counts as zero.
      The objective falls for AI images, towards nature, and rises for nature images.  Changes are
      whole grey levels, at most ⌊ε⌋.
    """
    wanted = objective or mean_logit
    draws = attack.draws if config.num_runs else 1  # without masks all draws are the same

    def push(
        backbone: Backbone,
        head: HeadState,
        key: Key[Array, ""],
        images: UInt8[Array, "b h w 3"],
        example_ids: Int[Array, " b"],
        labels: Int[Array, " b"],
        epsilon: Float[Array, ""],
    ) -> tuple[UInt8[Array, "b h w 3"], Bool[Array, " b"]]:
        clean, levels = normalize_images(images), images.astype(jnp.float32)
        keys = masking.example_keys(key, example_ids)
        towards = jnp.where(labels == 1, -1.0, 1.0)
        std = 255 * jnp.array(IMAGENET_STD)[None, None, None]

        def aim(delta: Float[Array, "b h w 3"], runs: Int[Array, " r"]) -> Float[Array, ""]:
            shared = jnp.broadcast_to(runs, (len(keys), len(runs)))
            value = wanted(backbone, head, clean + delta / std, keys, shared, config, draws)
            return (towards * value).sum()

        def step(
            i: Int[Array, ""], state: tuple[Float[Array, "b h w 3"], Bool[Array, " b"]]
        ) -> tuple[Float[Array, "b h w 3"], Bool[Array, " b"]]:
            delta, undefined = state
            gradient = jax.grad(aim)(delta, fresh_runs(config, i, draws))
            broken = ~jnp.isfinite(gradient).all(axis=(1, 2, 3))
            gradient = jnp.where(broken[:, None, None, None], 0.0, gradient)
            delta = delta + STRIDE * epsilon / attack.steps * jnp.sign(gradient)
            delta = jnp.clip(delta, -epsilon, epsilon)
            return jnp.clip(delta, -levels, 255 - levels), undefined | broken

        start = jnp.zeros_like(clean), jnp.zeros(len(images), bool)
        delta, undefined = jax.lax.fori_loop(0, attack.steps, step, start)
        whole = jnp.floor(epsilon)
        delta = jnp.clip(jnp.round(delta), -whole, whole)
        return (levels + delta).astype(jnp.uint8), undefined

    return push


def fresh_runs(config: DetectorConfig, step: Int[Array, ""], draws: int) -> Int[Array, " r"]:
    """Numbers of the runs of a step: K for each of its draws."""
    size = config.group_size
    runs = masking.first_runs(config.num_runs, num_draws=draws, group_size=size)
    start = masking.whole_groups(FIRST_RUN, size)
    return start + step * draws * masking.whole_groups(config.num_runs, size) + runs.reshape(-1)


def mean_logit(
    backbone: Backbone,
    head: HeadState,
    pixels: Float[Array, "b h w 3"],
    keys: Key[Array, " b"],
    runs: Int[Array, "b r"],
    config: DetectorConfig,
    draws: int,
) -> Float[Array, " b"]:
    """Mean logit of AI over ``draws`` scorings, which split ``runs`` evenly; differentiable."""
    features = pixel_features(backbone, pixels, keys, runs, config)

    def apart(leaf: Array) -> Array:
        return leaf.reshape(len(leaf), draws, config.num_runs, *leaf.shape[2:])

    def one(terms: lcas.Terms, masked: Int[Array, "b k m"]) -> Float[Array, " b"]:
        own = dataclasses.replace(features, terms=terms, masked=masked)
        return logits(head, own, config, backbone.config.num_patches)[0]

    by_draw = jax.tree.map(apart, (features.terms, features.masked))
    return jax.vmap(one, in_axes=1)(*by_draw).mean(axis=0)
