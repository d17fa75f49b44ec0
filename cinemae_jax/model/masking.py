"""Random masks as MAE draws them: keys or noise in, ids of visible and masked patches out.

The key of run k of an example: ``fold_in(fold_in(base_key, example_id), k)`` (method.md 2).  So the
masks of an image depend neither on its batch, nor on the number of devices or hosts, nor on K.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

# Folded into an example's key to draw its runs; no run has this number.
DRAW = 0x7FFFFFFF
# Where runs are not stored, head s takes runs from s * SEED_STRIDE on.
SEED_STRIDE = 1 << 21


def from_noise(noise: Float[Array, "*batch l"], num_visible: int) -> Int[Array, "*batch n"]:
    """Ids of the ``num_visible`` patches with the smallest noise (stable order, as in MAE)."""
    return jnp.argsort(noise, axis=-1, stable=True)[..., :num_visible].astype(jnp.int32)


def run_ids(
    key: Key[Array, ""], runs: Int[Array, " k"], num_patches: int, num_visible: int
) -> Int[Array, "k n"]:
    """Visible patch ids of the given runs of one example, int32.

    Args:
      key: the example's (``example_keys``).
      runs: run numbers; the mask of run k does not depend on the other runs asked for.
      num_patches: L.
      num_visible: N_vis.
    """

    def one(run: Int[Array, ""]) -> Int[Array, " n"]:
        noise = jax.random.uniform(jax.random.fold_in(key, run), (num_patches,))
        return from_noise(noise, num_visible)

    return jax.vmap(one)(runs)


def visible_ids(
    key: Key[Array, ""], num_runs: int, num_patches: int, num_visible: int
) -> Int[Array, "k n"]:
    """Visible patch ids of runs 0 … K-1 of one example, int32."""
    return run_ids(key, jnp.arange(num_runs), num_patches, num_visible)


def draw_runs(
    keys: Key[Array, " b"],
    epoch: Int[Array, " b"],
    *,
    num_runs: int,
    num_stored: int,
    num_seeds: int = 1,
) -> Int[Array, "b s k"]:
    """Numbers of the masking runs that each head sees of each example in an epoch of training.

    Args:
      keys: one per example (``example_keys``).
      epoch: one per example.
      num_runs: K.
      num_stored: R, runs to choose from: every example, epoch and head draws K different ones of
        0 … R-1.  With 0, no run is used twice.
      num_seeds: S, heads trained at once; the draws of a head do not depend on S.
    """
    seeds = jnp.arange(num_seeds)
    if not num_stored:
        first = epoch[:, None] * num_runs + SEED_STRIDE * seeds[None]
        return first[:, :, None] + jnp.arange(num_runs)[None, None]

    def one(key: Key[Array, ""], e: Int[Array, ""], seed: Int[Array, ""]) -> Int[Array, " k"]:
        draw = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, DRAW), seed), e)
        return from_noise(jax.random.uniform(draw, (num_stored,)), num_runs)

    return jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))(keys, epoch, seeds)


def masked_ids(visible: Int[Array, "*batch n"], num_patches: int) -> Int[Array, "*batch m"]:
    """The complement of ``visible``, ascending, int32."""
    batch, num_visible = visible.shape[:-1], visible.shape[-1]

    def one(ids: Int[Array, " n"]) -> Int[Array, " m"]:
        is_visible = jnp.zeros(num_patches, bool).at[ids].set(True)
        return jnp.argsort(is_visible, stable=True)[: num_patches - num_visible].astype(jnp.int32)

    flat = jax.vmap(one)(visible.reshape(-1, num_visible))
    return flat.reshape(*batch, num_patches - num_visible)


def example_keys(base_key: Key[Array, ""], example_ids: UInt32[Array, " b"]) -> Key[Array, " b"]:
    """One key per example: ``fold_in(base_key, example_id)``."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(base_key, example_ids)


@dataclasses.dataclass(frozen=True)
class Masks:
    """Which masking runs an image gets.

    Attributes:
      seed: of the base key.
      num_runs: K, runs that a score rests on.
      num_stored: R, runs that a bank holds and epochs of training draw from; 0 for new ones each
        time.
      num_seeds: S, heads that draw their own runs in training.
    """

    seed: int
    num_runs: int
    num_stored: int
    num_seeds: int = 1

    @property
    def key(self) -> Key[Array, ""]:
        """The base key of all masks."""
        return jax.random.key(self.seed)
