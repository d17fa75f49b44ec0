"""Kernels in few bits: round trip, error bounds, layout."""

import numpy as np
import pytest

from cinemae_jax.model import quantised
from cinemae_jax.model.quantised import GROUP, Bits


def kernel(inputs: int = 3 * GROUP, outputs: int = 5) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.02, (inputs, outputs)).astype(np.float32)


@pytest.mark.parametrize(("bits", "most"), [(4, 0.11), (8, 0.008)])
def test_the_error_is_that_of_so_many_bits(bits: Bits, most: float) -> None:
    before = kernel()
    codes, scales = quantised.quantise(before, bits)
    assert codes.nbytes == before.size * bits // 8
    assert scales.dtype == np.float16
    assert scales.shape == (3, 5)
    after = quantised.dequantise(codes, scales, bits)
    assert after.dtype == np.float32
    assert np.sqrt(((after - before) ** 2).mean()) < most * before.std()


@pytest.mark.parametrize("bits", [4, 8])
def test_values_on_the_grid_come_back_exactly(bits: Bits) -> None:
    """Every code in every place, so that a swapped half-byte or group would show."""
    levels = np.random.default_rng(0).integers(1 - 2 ** (bits - 1), 2 ** (bits - 1), (2 * GROUP, 4))
    levels[[0, GROUP]] = -(2 ** (bits - 1))  # the largest value of a group sets its scale
    before = (levels * np.array([0.5, 2, 1, 0.25])).astype(np.float32)
    after = quantised.dequantise(*quantised.quantise(before, bits), bits)
    np.testing.assert_array_equal(after, before)


def test_zeros_stay_zeros() -> None:
    zeros = np.zeros((GROUP, 2), np.float32)
    np.testing.assert_array_equal(quantised.dequantise(*quantised.quantise(zeros, 4), 4), zeros)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        quantised.quantise(kernel(GROUP + 1), 4)


def test_deflated_codes_come_back_and_damage_is_refused() -> None:
    codes, _ = quantised.quantise(kernel(outputs=500), 4)
    packed = quantised.deflate(codes)
    assert packed.nbytes < codes.nbytes
    np.testing.assert_array_equal(quantised.inflate(packed, 3 * GROUP, 500, 4), codes)
    for damaged, inputs in ((packed[:-6], 3 * GROUP), (packed, GROUP), (packed[::-1], 3 * GROUP)):
        with pytest.raises(ValueError, match="codes"):
            quantised.inflate(damaged, inputs, 500, 4)
