"""Masks: which patches are visible, and which runs training draws."""

import jax
import jax.numpy as jnp
import numpy as np

from cinemae_jax.model import masking

L, N = 20, 5


def keys(ids: list[int]) -> jax.Array:
    return masking.example_keys(jax.random.key(3), jnp.array(ids, jnp.uint32))


def visible_of(ids: list[int], num_runs: int) -> np.ndarray:
    return np.asarray(jax.vmap(lambda k: masking.visible_ids(k, num_runs, L, N))(keys(ids)))


def test_the_smallest_noise_is_visible_and_ties_keep_their_order() -> None:
    noise = jnp.array([[0.5, 0.1, 0.5, 0.0, 0.1]])
    assert masking.from_noise(noise, 3).tolist() == [[3, 1, 4]]


def test_visible_and_masked_ids_partition_the_patches() -> None:
    visible = visible_of([1, 2, 3], 4)
    masked = np.asarray(masking.masked_ids(jnp.array(visible), L))
    assert masked.shape == (3, 4, L - N)
    both = np.sort(np.concatenate([visible, masked], axis=-1), axis=-1)
    np.testing.assert_array_equal(both, np.broadcast_to(np.arange(L), both.shape))
    np.testing.assert_array_equal(masked, np.sort(masked, axis=-1))


def test_a_mask_depends_on_the_example_not_on_its_place_in_the_batch() -> None:
    np.testing.assert_array_equal(visible_of([7, 8, 9], 2)[::-1], visible_of([9, 8, 7], 2))
    np.testing.assert_array_equal(visible_of([7, 8, 9], 2)[1:2], visible_of([8], 2))


def test_more_runs_do_not_change_the_first_ones() -> None:
    np.testing.assert_array_equal(visible_of([7], 5)[:, :2], visible_of([7], 2))


def test_runs_by_number_are_the_same_runs() -> None:
    key = keys([7])[0]
    some = masking.run_ids(key, jnp.array([4, 1]), L, N)
    np.testing.assert_array_equal(some, np.asarray(masking.visible_ids(key, 5, L, N))[[4, 1]])


def test_masks_of_different_examples_and_runs_differ() -> None:
    visible = np.sort(visible_of([1, 2], 2), axis=-1).reshape(4, N)
    assert len({tuple(row) for row in visible.tolist()}) == 4


def test_every_patch_is_visible_equally_often() -> None:
    visible = visible_of(list(range(2000)), 1)
    share = np.bincount(visible.reshape(-1), minlength=L) / 2000
    # binomial: standard deviation sqrt(p (1 - p) / n) = 0.0097; 4.5 of them for 20 patches
    assert np.abs(share - N / L).max() < 4.5 * np.sqrt(0.25 * 0.75 / 2000)


def draws(epochs: int, **options: int) -> np.ndarray:
    """(epochs, B, S, K)."""
    keys = masking.example_keys(jax.random.key(0), jnp.arange(5, dtype=jnp.uint32))
    return np.stack([masking.draw_runs(keys, jnp.full(5, e), **options) for e in range(epochs)])


def test_an_epoch_draws_different_runs_out_of_the_stored_ones() -> None:
    drawn = draws(40, num_runs=3, num_stored=5, num_seeds=2)
    assert drawn.shape == (40, 5, 2, 3)
    assert all(len(set(runs)) == 3 for runs in drawn.reshape(-1, 3))
    for example in range(5):  # over the epochs, every stored run is drawn
        assert set(drawn[:, example].reshape(-1)) == set(range(5))
    assert (drawn[:, :, 0] != drawn[:, :, 1]).any()  # every head has its own draws


def test_the_draws_of_a_head_do_not_depend_on_the_number_of_heads() -> None:
    for stored in (8, 0):
        one, three = (draws(4, num_runs=2, num_stored=stored, num_seeds=s) for s in (1, 3))
        np.testing.assert_array_equal(one[:, :, 0], three[:, :, 0])


def test_without_stored_runs_none_is_used_twice() -> None:
    drawn = draws(6, num_runs=2, num_stored=0, num_seeds=3)
    for example in range(5):
        assert len(set(drawn[:, example].reshape(-1))) == 6 * 2 * 3
