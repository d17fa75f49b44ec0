"""Kernels stored in 4 or 8 bits: rounded in groups, each with a scale of its own; NumPy.

The inputs of a column are cut into groups of ``GROUP``.  A value of a group is an integer code
times the group's scale: the one of some candidates that gives the smallest squared error.  Small
codes are more frequent than large ones, so ``deflate`` takes another tenth off them.
"""

import zlib
from typing import Literal

import numpy as np
from jaxtyping import Float, Float16, UInt8

GROUP = 64
Bits = Literal[4, 8]
# Candidates for a group's scale, as shares of the scale at which no value is clipped.
SHRINK = np.linspace(0.7, 1.0, 16, dtype=np.float32)


def quantise(
    kernel: Float[np.ndarray, "i o"], bits: Bits
) -> tuple[UInt8[np.ndarray, "c o"], Float16[np.ndarray, "g o"]]:
    """Codes and scales of a kernel.

    Args:
      kernel: (inputs, outputs); ``GROUP`` divides the inputs.
      bits: of a code; two codes of 4 bits share a byte, the first in its lower half.

    Raises:
      ValueError: if ``GROUP`` does not divide the inputs.
    """
    inputs, outputs = kernel.shape
    if inputs % GROUP:
        raise ValueError(f"{inputs} inputs are not a multiple of {GROUP}")
    groups = kernel.astype(np.float32).reshape(inputs // GROUP, GROUP, outputs)
    zero = 2 ** (bits - 1)
    at = np.abs(groups).argmax(axis=1, keepdims=True)
    largest = np.take_along_axis(groups, at, axis=1)  # with its sign: it gets the lowest code
    best = np.full((len(groups), 1, outputs), np.inf, np.float32)
    scales = np.ones_like(largest, np.float16)
    for share in SHRINK:
        tried = (largest * (-share / zero)).astype(np.float16)
        tried = np.where(tried == 0, np.float16(1), tried)
        error = (_values(_codes(groups, tried, zero), tried, zero) - groups) ** 2
        error = error.sum(axis=1, keepdims=True)
        scales, best = np.where(error < best, tried, scales), np.minimum(error, best)
    codes = _codes(groups, scales, zero).reshape(inputs, outputs)
    if bits == 4:
        codes = codes[0::2] | codes[1::2] << 4
    return codes, scales[:, 0]


def dequantise(
    codes: UInt8[np.ndarray, "c o"], scales: Float16[np.ndarray, "g o"], bits: Bits
) -> Float[np.ndarray, "i o"]:
    """The kernel that ``quantise`` stored, float32."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=1).reshape(-1, codes.shape[1])
    groups = codes.reshape(len(scales), -1, codes.shape[1])
    kernel: np.ndarray = _values(groups, scales[:, None], 2 ** (bits - 1)).reshape(codes.shape)
    return kernel


def deflate(codes: UInt8[np.ndarray, "c o"]) -> UInt8[np.ndarray, " n"]:
    """The codes compressed without loss."""
    return np.frombuffer(zlib.compress(codes.tobytes(), 9), np.uint8)


def inflate(
    packed: UInt8[np.ndarray, " n"], inputs: int, outputs: int, bits: Bits
) -> UInt8[np.ndarray, "c o"]:
    """The inverse of ``deflate`` for a kernel of the given shape; never allocates more than that.

    Raises:
      ValueError: if the bytes are damaged, or hold another number of codes.
    """
    size = inputs * outputs * bits // 8
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(packed.tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError(f"damaged codes: {error}") from error
    if len(content) != size or not stream.eof:
        raise ValueError(f"{len(content)} bytes of codes, expected {size}")
    return np.frombuffer(content, np.uint8).reshape(-1, outputs)


def _codes(groups: np.ndarray, scales: np.ndarray, zero: int) -> np.ndarray:
    levels = np.rint(groups / scales.astype(np.float32)) + zero
    codes: np.ndarray = np.clip(levels, 0, 2 * zero - 1).astype(np.uint8)
    return codes


def _values(codes: np.ndarray, scales: np.ndarray, zero: int) -> np.ndarray:
    values: np.ndarray = (codes.astype(np.float32) - zero) * scales.astype(np.float32)
    return values
