"""Masks: which patches are visible, and which runs training draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cinemae_jax.model import lcas, masking

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


def test_random_masks_have_the_bits_of_the_first_version() -> None:
    """Scores of existing detectors and banks rest on them."""
    key = masking.example_keys(jax.random.key(3), jnp.array([7], jnp.uint32))[0]
    assert masking.visible_ids(key, 2, L, N).tolist() == [[18, 12, 15, 19, 2], [9, 4, 5, 6, 12]]
    drawn = draws(1, num_runs=2, num_stored=8, num_seeds=2)[0, 0]
    assert drawn.tolist() == [[7, 2], [5, 1]]


# --- disjoint -----------------------------------------------------------------------------------

G = L // N


def disjoint_of(runs: list[int], example: int = 7) -> np.ndarray:
    key = keys([example])[0]
    return np.asarray(masking.disjoint_ids(key, jnp.array(runs), L, N, G))


def test_runs_of_a_group_show_different_patches_and_together_all() -> None:
    for first in (0, G):
        shown = disjoint_of(list(range(first, first + G)))
        assert sorted(shown.reshape(-1).tolist()) == list(range(L))


def test_two_disjoint_runs_mask_every_patch_at_least_once() -> None:
    masked = masking.masked_ids(jnp.asarray(disjoint_of([0, 1])), L)
    assert set(np.asarray(masked).reshape(-1).tolist()) == set(range(L))
    random = masking.masked_ids(jnp.asarray(visible_of([7], 2)), L)
    assert set(np.asarray(random).reshape(-1).tolist()) != set(range(L))


def test_groups_examples_and_random_masks_differ() -> None:
    first, other_group = (set(disjoint_of([k])[0].tolist()) for k in (0, G))
    other_example = set(disjoint_of([0], example=8)[0].tolist())
    random = set(visible_of([7], 1)[0, 0].tolist())
    assert len({frozenset(ids) for ids in (first, other_group, other_example, random)}) == 4


def test_a_disjoint_run_does_not_depend_on_the_other_runs() -> None:
    np.testing.assert_array_equal(disjoint_of([5, 2]), disjoint_of(list(range(8)))[[5, 2]])


def test_every_patch_is_visible_equally_often_in_any_disjoint_run() -> None:
    many = keys(list(range(2000)))
    for run in (0, 1):
        runs = jnp.array([run])
        shown = jax.vmap(lambda k, r=runs: masking.disjoint_ids(k, r, L, N, G))(many)
        share = np.bincount(np.asarray(shown).reshape(-1), minlength=L) / 2000
        assert np.abs(share - N / L).max() < 4.5 * np.sqrt(0.25 * 0.75 / 2000)


@pytest.mark.parametrize("num_runs", [2, 4, 6])
def test_an_epoch_draws_runs_of_one_group_before_another(num_runs: int) -> None:
    drawn = draws(30, num_runs=num_runs, num_stored=8, num_seeds=2, group_size=G)
    rows = drawn.reshape(-1, num_runs)
    for runs in rows:
        assert len(set(runs.tolist())) == num_runs
        assert len(set((runs[:G] // G).tolist())) == 1
        assert len(set((runs[G:] // G).tolist())) <= 1
    assert set(rows.reshape(-1).tolist()) == set(range(8))
    assert len({tuple(sorted(runs)) for runs in rows.tolist()}) > (2 if num_runs == 2 else 1)


def test_fresh_draws_start_with_a_group_and_use_no_run_twice() -> None:
    drawn = draws(6, num_runs=2, num_stored=0, num_seeds=3, group_size=3)
    assert (drawn[..., 0] % 3 == 0).all()
    assert (drawn[..., 0] // 3 == drawn[..., 1] // 3).all()
    for example in range(5):
        assert len(set(drawn[:, example].reshape(-1))) == 6 * 2 * 3


@pytest.mark.parametrize(
    ("num_runs", "group_size", "expected"),
    [
        (2, 1, [[0, 1], [2, 3]]),
        (2, 4, [[0, 1], [4, 5]]),
        (5, 4, [[0, 1, 2, 3, 4], [8, 9, 10, 11, 12]]),
    ],
)
def test_a_second_draw_starts_in_another_group(
    num_runs: int, group_size: int, expected: list[list[int]]
) -> None:
    assert masking.first_runs(num_runs, num_draws=2, group_size=group_size).tolist() == expected


# --- stratified ---------------------------------------------------------------------------------


def strata_of(texture: np.ndarray, num_visible: int) -> list[set[int]]:
    order = np.argsort(texture, kind="stable")
    edges = np.arange(num_visible + 1) * len(texture) // num_visible
    return [set(order[a:b].tolist()) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(("length", "num_visible"), [(20, 5), (22, 5), (7, 3), (9, 8)])
@pytest.mark.parametrize("flat", [False, True])
def test_every_stratum_shows_one_patch(length: int, num_visible: int, flat: bool) -> None:
    texture = np.random.default_rng(0).exponential(300, length).astype(np.float32) * (not flat)
    shown = np.asarray(
        masking.stratified_ids(keys([7])[0], jnp.arange(6), jnp.asarray(texture), num_visible, 1.0)
    )
    strata = strata_of(texture, num_visible)
    assert {len(one) for one in strata} <= {length // num_visible, -(-length // num_visible)}
    for ids in shown.tolist():
        assert [len(set(ids) & one) for one in strata] == [1] * num_visible
    assert len({tuple(ids) for ids in shown.tolist()}) > 1


def test_a_stratified_run_does_not_depend_on_the_other_runs() -> None:
    texture = jnp.asarray(np.random.default_rng(1).exponential(300, L), jnp.float32)
    some, all_ = (
        np.asarray(masking.stratified_ids(keys([7])[0], jnp.array(runs), texture, N, 1.0))
        for runs in ([5, 2], range(8))
    )
    np.testing.assert_array_equal(some, all_[[5, 2]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1e9])
def test_temperature_gives_the_documented_probabilities(temperature: float) -> None:
    texture = jnp.array([0.0, 3.0, 8.0, 15.0])  # one stratum
    runs = jnp.arange(4000)
    shown = np.asarray(masking.stratified_ids(keys([1])[0], runs, texture, 1, temperature))
    share = np.bincount(shown[:, 0], minlength=4) / 4000
    expected = (np.asarray(texture) + 1) ** (1 / temperature)
    expected /= expected.sum()
    # binomial: a standard deviation is at most sqrt(0.25 / 4000) = 0.008
    assert np.abs(share - expected).max() < 4.5 * 0.008


def test_texture_orders_exactly_and_ignores_colour() -> None:
    rng = np.random.default_rng(2)
    noise = rng.integers(-9, 10, (16, 16, 1)).repeat(3, axis=2)
    patches = np.stack(
        [np.full((16, 16, 3), 40), 128 + noise, np.array([60, 120, 180]) + noise, 128 + 2 * noise]
    )
    texture = np.asarray(lcas.texture(jnp.asarray(patches.reshape(4, -1))))
    assert texture[0] == 0
    assert texture[1] == texture[2]
    # the rounding of the mean adds at most a quarter of a squared level
    assert texture[3] == pytest.approx(4 * noise.var(), abs=0.25)
    loudest = np.where(rng.random((1, 16 * 16 * 3)) < 0.5, 0, 255)
    expected = loudest.reshape(-1, 3).var(axis=0).mean()
    assert float(lcas.texture(jnp.asarray(loudest))[0]) == pytest.approx(expected, rel=1e-4)
