"""Masks: keys or noise in, ids of visible and masked patches out.

Random masks as MAE draws them, and two kinds beyond the paper: disjoint and stratified ones.  The
key of run k of an example: ``fold_in(fold_in(base_key, example_id), k)`` (method.md 2).  So the
masks of an image depend neither on its batch, nor on the number of devices or hosts, nor on K.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

# Folded into an example's key to draw its runs; no run has this number.
DRAW = 0x7FFFFFFF
# Likewise for the permutations of disjoint masks.
GROUP = 0x7FFFFFFE
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


def disjoint_ids(
    key: Key[Array, ""],
    runs: Int[Array, " k"],
    num_patches: int,
    num_visible: int,
    group_size: int,
) -> Int[Array, "k n"]:
    """Visible patch ids of runs whose visible sets do not overlap within a group, int32.

    Run k shows slice k mod G of the permutation of group k // G (method.md 2, beyond the paper).
    With G ≥ 2, any two runs of a group mask every patch at least once.

    Args:
      key: the example's (``example_keys``).
      runs: run numbers; the mask of run k does not depend on the other runs asked for.
      num_patches: L.
      num_visible: N_vis.
      group_size: G, at most L // N_vis.
    """

    def one(run: Int[Array, ""]) -> Int[Array, " n"]:
        group, place = jnp.divmod(run, group_size)
        own = jax.random.fold_in(jax.random.fold_in(key, GROUP), group)
        return slice_of(jax.random.uniform(own, (num_patches,)), place, num_visible)

    return jax.vmap(one)(runs)


def slice_of(
    noise: Float[Array, " l"], place: int | Int[Array, ""], num_visible: int
) -> Int[Array, " n"]:
    """The ``place``-th ``num_visible`` ids in ascending (stable) order of the noise, int32."""
    order = from_noise(noise, len(noise))
    return jax.lax.dynamic_slice_in_dim(order, place * num_visible, num_visible)


def stratified_ids(
    key: Key[Array, ""],
    runs: Int[Array, " k"],
    texture: Float[Array, " l"],
    num_visible: int,
    temperature: float,
) -> Int[Array, "k n"]:
    """Visible patch ids of runs that show one patch of every stratum of texture, int32.

    Args:
      key: the example's (``example_keys``).
      runs: run numbers; the mask of run k does not depend on the other runs asked for.
      texture: of the patches (``lcas.texture``).
      num_visible: N_vis, number of strata.
      temperature: τ (``one_per_stratum``).
    """

    def one(run: Int[Array, ""]) -> Int[Array, " n"]:
        noise = jax.random.gumbel(jax.random.fold_in(key, run), (len(texture),))
        return one_per_stratum(texture, noise, num_visible, temperature)

    return jax.vmap(one)(runs)


def one_per_stratum(
    texture: Float[Array, " l"], noise: Float[Array, " l"], num_visible: int, temperature: float
) -> Int[Array, " n"]:
    """One patch id of every stratum of texture, from the least textured stratum up, int32.

    Patches are sorted by texture (stably) and split into ``num_visible`` strata whose sizes differ
    by at most one.  Each gives the patch with the largest log(texture + 1) / τ + noise: with Gumbel
    noise, a patch is drawn with probability ∝ (texture + 1)^(1/τ).

    Args:
      texture: 0 or more.
      noise: standard Gumbel.
      num_visible: number of strata.
      temperature: τ, above 0.
    """
    edges = np.arange(num_visible + 1) * len(texture) // num_visible
    ranks = edges[:-1, None] + np.arange(np.diff(edges).max())[None]
    inside = ranks < edges[1:, None]
    members = from_noise(texture, len(texture))[np.where(inside, ranks, 0)]
    chances = jnp.where(inside, (jnp.log(texture + 1) / temperature + noise)[members], -jnp.inf)
    best = jnp.argmax(chances, axis=1)
    return jnp.take_along_axis(members, best[:, None], axis=1)[:, 0]


def visible_ids(
    key: Key[Array, ""], num_runs: int, num_patches: int, num_visible: int
) -> Int[Array, "k n"]:
    """Visible patch ids of runs 0 … K-1 of one example, int32."""
    return run_ids(key, jnp.arange(num_runs), num_patches, num_visible)


def first_runs(num_runs: int, *, num_draws: int = 1, group_size: int = 1) -> Int[Array, "n k"]:
    """Run numbers of draws of K runs each, of which the first is that of evaluation: 0 … K-1.

    Args:
      num_runs: K.
      num_draws: n.
      group_size: G; every draw starts with another group of disjoint masks.
    """
    stride = whole_groups(num_runs, group_size)
    return jnp.arange(num_draws)[:, None] * stride + jnp.arange(num_runs)[None]


def whole_groups(num_runs: int, group_size: int) -> int:
    """Number of runs, rounded up to whole groups."""
    return -(-num_runs // group_size) * group_size


def draw_runs(
    keys: Key[Array, " b"],
    epoch: Int[Array, " b"],
    *,
    num_runs: int,
    num_stored: int,
    num_seeds: int = 1,
    group_size: int = 1,
) -> Int[Array, "b s k"]:
    """Numbers of the masking runs that each head sees of each example in an epoch of training.

    With disjoint masks, a draw takes runs of one group in random order, and of a second one only
    after those of the first, and so on.

    Args:
      keys: one per example (``example_keys``).
      epoch: one per example.
      num_runs: K.
      num_stored: R, runs to choose from: every example, epoch and head draws K different ones of
        0 … R-1.  With 0, no run is used twice.
      num_seeds: S, heads trained at once; the draws of a head do not depend on S.
      group_size: G; with ``num_stored``, a divisor of it.
    """
    seeds = jnp.arange(num_seeds)
    if not num_stored:
        stride = whole_groups(num_runs, group_size)
        first = epoch[:, None] * stride + whole_groups(SEED_STRIDE, group_size) * seeds[None]
        return first[:, :, None] + jnp.arange(num_runs)[None, None]

    def one(key: Key[Array, ""], e: Int[Array, ""], seed: Int[Array, ""]) -> Int[Array, " k"]:
        draw = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, DRAW), seed), e)
        noise = jax.random.uniform(draw, (num_stored,))
        if group_size == 1:
            return from_noise(noise, num_runs)
        by_group = noise.reshape(-1, group_size)  # its maximum does not depend on its order
        groups = from_noise(by_group.max(axis=1), len(by_group))
        within = from_noise(by_group, group_size)[groups]
        return (groups[:, None] * group_size + within).reshape(-1)[:num_runs]

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
      group_size: G, runs of a group of disjoint masks; 1 for other masks.
      num_draws: draws of K runs that an image is scored with; only audits need more than one.
    """

    seed: int
    num_runs: int
    num_stored: int
    num_seeds: int = 1
    group_size: int = 1
    num_draws: int = 1

    @property
    def key(self) -> Key[Array, ""]:
        """The base key of all masks."""
        return jax.random.key(self.seed)
