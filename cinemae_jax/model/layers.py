"""Layers of a vision transformer, with hand-written derivatives that are faster than JAX's.

In and out: tokens (B, n, width) in the model's dtype.  Products round their operands to that dtype
and accumulate in float32; LayerNorm, GELU and softmax are float32.  Times: docs/performance.md.
"""

import functools
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cinemae_jax.model.config import AttentionKind

# --- products -----------------------------------------------------------------------------------


def _product(a: Array, b: Array, contract: tuple[int, int]) -> Float[Array, "..."]:
    """Product over one axis of each operand, accumulated and returned in float32."""
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, axes, precision=_precision(a, b), preferred_element_type=jnp.float32
    )


def _precision(a: Array, b: Array) -> jax.lax.Precision | None:
    """Full float32 on every device; JAX's default is TF32 on GPUs and bfloat16 on TPUs."""
    return jax.lax.Precision.HIGHEST if a.dtype == b.dtype == jnp.float32 else None


@jax.custom_vjp
def affine(
    x: Float[Array, "*batch i"], kernel: Float[Array, "i o"], bias: Float[Array, " o"]
) -> Float[Array, "*batch o"]:
    """x · kernel + bias in the dtype of ``x``, accumulated in float32."""
    shift = bias.reshape((1,) * (x.ndim - 1) + bias.shape)
    return (_product(x, kernel, (x.ndim - 1, 0)) + shift).astype(x.dtype)


def _affine_forward(
    x: Array, kernel: Array, bias: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    return affine(x, kernel, bias), (x, kernel, bias)


def _affine_backward(
    saved: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, Array, Array]:
    x, kernel, bias = saved
    to_x = _product(gradient, kernel, (gradient.ndim - 1, 1)).astype(x.dtype)
    to_kernel = jax.lax.platform_dependent(
        x, gradient, cpu=_kernel_gradient_across, default=_kernel_gradient
    ).astype(kernel.dtype)
    to_bias = gradient.sum(tuple(range(gradient.ndim - 1)), dtype=jnp.float32).astype(bias.dtype)
    return to_x, to_kernel, to_bias


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _kernel_gradient(x: Array, gradient: Array) -> Array:
    return _product(_flat(x), _flat(gradient), (0, 0))


def _kernel_gradient_across(x: Array, gradient: Array) -> Array:
    """The same with the narrower operand transposed in memory, for XLA's matrix library on CPUs.

    The library needs the summed axis to be the last of its left operand; other products go to a
    slower one without bfloat16.  The barriers keep XLA from folding the transpositions back in, and
    from recomputing the operand with strides.
    """
    if gradient.shape[-1] <= x.shape[-1]:
        turned: Array = jax.lax.optimization_barrier(_product(_across(gradient), _flat(x), (1, 0)))
        return turned.T
    return _product(_across(x), _flat(gradient), (1, 0))


def _across(x: Array) -> Array:
    """(..., i) to (i, n), with n the product of the other axes."""
    columns = jnp.moveaxis(jax.lax.optimization_barrier(x), -1, 0)
    flat: Array = jax.lax.optimization_barrier(columns.reshape(x.shape[-1], -1))
    return flat


affine.defvjp(_affine_forward, _affine_backward)


class Dense(nn.Module):
    """``affine`` with float32 parameters, named as in ``flax.linen.Dense``."""

    features: int
    dtype: DTypeLike
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape)
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, shape[1:]) if self.use_bias else jnp.zeros(shape[1:])
        x, kernel, bias = (jnp.asarray(part) for part in (x, kernel, bias))  # from files, NumPy's
        return affine(x.astype(self.dtype), kernel.astype(self.dtype), bias)


# --- value by value -----------------------------------------------------------------------------


@jax.custom_vjp
def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x Φ(x), exact (erf, as in PyTorch); XLA's erfc would evaluate both of its branches.

    Computed in float32, returned in the dtype of ``x``; the derivative is recomputed from ``x``.
    """
    y = x.astype(jnp.float32)
    return (y * _normal_below(y)).astype(x.dtype)


def _normal_below(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Φ(y), the standard normal distribution function."""
    return 0.5 * (1 + jax.lax.erf(y * math.sqrt(0.5)))


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    y = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * y * y) / math.sqrt(2 * math.pi)
    slope = _normal_below(y) + y * density
    return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)

Activation = Literal["gelu", "quick_gelu", "tanh_gelu"]


def activate(x: Float[Array, "*shape"], kind: Activation) -> Float[Array, "*shape"]:
    """``gelu``, or what CLIP (x sigmoid(1.702 x)) or SigLIP (by tanh) have in its place.

    Computed in float32 and returned in the dtype of ``x``.
    """
    if kind == "gelu":
        return gelu(x)
    y = x.astype(jnp.float32)
    y = y * jax.nn.sigmoid(1.702 * y) if kind == "quick_gelu" else jax.nn.gelu(y, approximate=True)
    return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch w"], scale: Float[Array, " w"], bias: Float[Array, " w"], eps: float
) -> Float[Array, "*batch w"]:
    """Each token with mean 0 and variance 1, times scale, plus bias; float32.

    Two passes, as in torch: E[x²] - E[x]² loses its digits where a token's mean is large.
    """
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(
    x: Array, scale: Array, bias: Array, eps: float
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    y = x.astype(jnp.float32)
    mean = y.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(((y - mean) ** 2).mean(axis=-1, keepdims=True) + eps)
    normal = (y - mean) * (inverse * _row(scale, x.ndim)) + _row(bias, x.ndim)
    return normal, (x, scale, mean, inverse)


def _row(values: Array, ndim: int) -> Array:
    return values.reshape((1,) * (ndim - 1) + values.shape)


def _layer_norm_backward(
    eps: float, saved: tuple[Array, Array, Array, Array], gradient: Array
) -> tuple[Array, Array, Array]:
    del eps  # already in ``inverse``
    x, scale, mean, inverse = saved
    normal = (x.astype(jnp.float32) - mean) * inverse
    scaled = gradient * _row(scale, x.ndim)
    along = (scaled * normal).mean(axis=-1, keepdims=True)
    to_x = inverse * (scaled - scaled.mean(axis=-1, keepdims=True) - normal * along)
    tokens = tuple(range(x.ndim - 1))
    return to_x.astype(x.dtype), (gradient * normal).sum(tokens), gradient.sum(tokens)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """``layer_norm`` with float32 parameters, named as in ``flax.linen.LayerNorm``."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch w"]) -> Float[Array, "*batch w"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return layer_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), self.epsilon)


# --- attention ----------------------------------------------------------------------------------


def _sum(how: str, a: Array, b: Array) -> Float[Array, "..."]:
    return jnp.einsum(how, a, b, precision=_precision(a, b), preferred_element_type=jnp.float32)


@jax.custom_vjp
def attend(qkv: Float[Array, "b n 3 h d"]) -> Float[Array, "b n h d"]:
    """softmax(q kᵀ / √d) v; scores and sums are float32, the operands keep their dtype.

    The division by the softmax's sum follows the product with ``v``: d values per query, not n.
    """
    return _attend_forward(qkv)[0]


def _attend_forward(qkv: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    q, k, v = _parts(qkv)
    scores = _sum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    mixed = (_sum("bhqk,bkhd->bhqd", weights.astype(v.dtype), v) / total).astype(v.dtype)
    return mixed.swapaxes(1, 2), (qkv, weights, total, mixed)


def _attend_backward(
    saved: tuple[Array, Array, Array, Array], gradient: Array
) -> tuple[Float[Array, "b n 3 h d"]]:
    """The derivative of a softmax needs Σₖ p ∂p, one value per query: gradient · output."""
    qkv, weights, total, mixed = saved
    q, k, v = _parts(qkv)
    by_head = gradient.swapaxes(1, 2).astype(jnp.float32)
    mean = (by_head * mixed.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    share = weights / total
    to_share = _sum("bqhd,bkhd->bhqk", gradient, v)
    to_scores = (share * (to_share - mean) * q.shape[-1] ** -0.5).astype(v.dtype)
    to_q = _sum("bhqk,bkhd->bqhd", to_scores, k)
    to_k = _sum("bhqk,bqhd->bkhd", to_scores, q)
    to_v = _sum("bhqk,bqhd->bkhd", share.astype(v.dtype), gradient)
    return (jnp.stack([to_q, to_k, to_v], axis=2).astype(qkv.dtype),)


def _parts(qkv: Array) -> tuple[Array, Array, Array]:
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


attend.defvjp(_attend_forward, _attend_backward)


def library_attend(
    qkv: Float[Array, "b n 3 h d"], implementation: AttentionKind
) -> Float[Array, "b n h d"]:
    """``attend`` by ``jax.nn.dot_product_attention``; weights are rounded after the division.

    ``cudnn`` needs an NVIDIA GPU; where programs are compiled for other devices, ``xla`` stands in,
    so that a detector opens everywhere.
    """
    has_cudnn = implementation == "cudnn" and jax.default_backend() == "gpu"
    precision = "highest" if qkv.dtype == jnp.float32 else None  # as in ``_precision``
    with jax.default_matmul_precision(precision):
        mixed: Array = jax.nn.dot_product_attention(
            *_parts(qkv), implementation="cudnn" if has_cudnn else "xla"
        )
    return mixed


def rotate(
    qkv: Float[Array, "b n 3 h d"], angles: Float[Array, "n half"]
) -> Float[Array, "b n 3 h d"]:
    """Rotary positions: turns channels (i, i + d/2) of queries and keys by the token's angle i."""
    first, second = jnp.split(qkv[:, :, :2].astype(jnp.float32), 2, axis=-1)
    cos, sin = (f(angles)[None, :, None, None] for f in (jnp.cos, jnp.sin))
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([jnp.concatenate(turned, -1).astype(qkv.dtype), qkv[:, :, 2:]], axis=2)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    num_heads: int
    dtype: DTypeLike
    kind: AttentionKind = "plain"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n w"], angles: Float[Array, "n half"] | None = None
    ) -> Float[Array, "b n w"]:
        b, n, width = x.shape
        qkv = Dense(3 * width, self.dtype, name="qkv")(x)
        qkv = qkv.reshape(b, n, 3, self.num_heads, width // self.num_heads)
        if angles is not None:
            qkv = rotate(qkv, angles)
        mixed = attend(qkv) if self.kind == "plain" else library_attend(qkv, self.kind)
        return Dense(width, self.dtype, name="out")(mixed.reshape(b, n, width))


class Block(nn.Module):
    """Pre-norm transformer block.

    Attributes:
      num_heads, layer_norm_eps, dtype: of attention, both LayerNorms, activations.
      mlp_width: hidden width of the MLP; four times the tokens' by default.
      activation: of the MLP; exact GELU (erf) by default.
      layer_scale: whether a learned factor per channel scales what either half adds.
    """

    num_heads: int
    layer_norm_eps: float
    dtype: DTypeLike
    mlp_width: int | None = None
    activation: Activation = "gelu"
    layer_scale: bool = False
    attention: AttentionKind = "plain"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n w"], angles: Float[Array, "n half"] | None = None
    ) -> Float[Array, "b n w"]:
        width = x.shape[-1]
        y = LayerNorm(self.layer_norm_eps, name="norm1")(x)
        y = Attention(self.num_heads, self.dtype, self.attention, name="attn")(y, angles)
        x = x + self._scaled(y, "scale1")
        y = LayerNorm(self.layer_norm_eps, name="norm2")(x)
        y = Dense(self.mlp_width or 4 * width, self.dtype, name="fc1")(y)
        y = Dense(width, self.dtype, name="fc2")(activate(y, self.activation))
        return x + self._scaled(y, "scale2")

    def _scaled(self, y: Array, name: str) -> Array:
        if not self.layer_scale:
            return y
        scale = jnp.asarray(self.param(name, nn.initializers.ones, y.shape[-1:]))
        return y * _row(scale, y.ndim).astype(y.dtype)


class AttentionPool(nn.Module):
    """One vector per image: a learned query attends to all tokens; then an MLP with a residual.

    The projection to queries, keys and values is one kernel, as in ``Attention``; its first third
    sees the learned query, the rest the tokens.
    """

    num_heads: int
    layer_norm_eps: float
    dtype: DTypeLike
    mlp_width: int
    activation: Activation

    @nn.compact
    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b w"]:
        b, n, width = x.shape
        shape = (self.num_heads, width // self.num_heads)
        probe = self.param("probe", nn.initializers.normal(0.02), (1, width))
        kernel = self.param("qkv_kernel", nn.initializers.xavier_uniform(), (width, 3 * width))
        bias = self.param("qkv_bias", nn.initializers.zeros, (3 * width,))
        probe, kernel, bias = (jnp.asarray(part) for part in (probe, kernel, bias))
        probe, x, kernel = (part.astype(self.dtype) for part in (probe, x, kernel))
        q = affine(probe, kernel[:, :width], bias[:width]).reshape(shape)
        kv = affine(x, kernel[:, width:], bias[width:]).reshape(b, n, 2, *shape)
        shares = jax.nn.softmax(_sum("hd,bnhd->bhn", q, kv[:, :, 0]) * shape[1] ** -0.5)
        mixed = _sum("bhn,bnhd->bhd", shares.astype(self.dtype), kv[:, :, 1])
        pooled = Dense(width, self.dtype, name="out")(mixed.reshape(b, width))
        y = LayerNorm(self.layer_norm_eps, name="norm")(pooled)
        y = activate(Dense(self.mlp_width, self.dtype, name="fc1")(y), self.activation)
        return pooled + Dense(width, self.dtype, name="fc2")(y)
