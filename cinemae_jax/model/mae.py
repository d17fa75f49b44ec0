"""Masked autoencoder (He et al., arXiv 2111.06377): a ViT encoder and a light decoder.

In: images (B, H, W, 3) float, ImageNet-normalised, and the ids of their visible patches.
Out: encoder tokens, and predictions for the masked patches in the model's target space.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

CHANNELS = 3
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORM_PIX_EPS = 1e-6
"""Added to a patch's variance where the target is per-patch-normalised (MAE's own constant)."""

Target = Literal["raw", "norm_pix"]


@dataclasses.dataclass(frozen=True)
class MAEConfig:
    """Architecture and target of one masked autoencoder.

    Attributes:
      image_size: side of the square input, pixels; a multiple of ``patch_size``.
      patch_size: side of a patch, pixels.
      width, depth, num_heads: of the encoder.
      decoder_width, decoder_depth, decoder_num_heads: of the decoder; depth 0 means that there is
        no decoder, and then only ``encode`` works.
      target: what the decoder predicts: ``raw`` ImageNet-normalised pixels, or ``norm_pix``,
        each patch normalised by its own mean and variance.
      layer_norm_eps: 1e-6 in the official code, 1e-12 in Hugging Face's configs.

    Raises:
      ValueError: if a field is impossible; the message names it.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    target: Target = "raw"
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "width", "depth", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"MAEConfig.{name} must be positive, is {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"MAEConfig.image_size {self.image_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )
        for prefix in ("", "decoder_") if self.has_decoder else ("",):
            width, heads = getattr(self, f"{prefix}width"), getattr(self, f"{prefix}num_heads")
            if width % heads:
                raise ValueError(
                    f"MAEConfig.{prefix}width {width} is not a multiple of "
                    f"{prefix}num_heads {heads}"
                )
        if self.target not in ("raw", "norm_pix"):
            raise ValueError(f"MAEConfig.target must be 'raw' or 'norm_pix', is {self.target!r}")

    @property
    def has_decoder(self) -> bool:
        return self.decoder_depth > 0

    @property
    def num_patches(self) -> int:
        """L."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """d, the number of values in a patch."""
        return self.patch_size**2 * CHANNELS

    def num_visible(self, mask_ratio: float) -> int:
        """N_vis = int(L (1 - r)), rounded as MAE's own code does.

        Raises:
          ValueError: if no patch, or every patch, would be visible.
        """
        visible = int(self.num_patches * (1 - mask_ratio))
        if not 0 < visible < self.num_patches:
            raise ValueError(
                f"mask_ratio {mask_ratio} leaves {visible} of {self.num_patches} patches visible; "
                "at least one must be visible and one masked"
            )
        return visible


def vit_tiny(**overrides: Any) -> MAEConfig:
    """ViT-Ti/16 at 224 with a decoder in proportion; not a size of the MAE paper."""
    preset = MAEConfig(224, 16, 192, 12, 3, 128, 4, 4)
    return dataclasses.replace(preset, **overrides)


def vit_base(**overrides: Any) -> MAEConfig:
    """ViT-B/16 at 224, as in the MAE paper."""
    return dataclasses.replace(MAEConfig(224, 16, 768, 12, 12), **overrides)


def vit_large(**overrides: Any) -> MAEConfig:
    """ViT-L/16 at 224, as in the MAE paper and in CINEMAE."""
    return dataclasses.replace(MAEConfig(224, 16, 1024, 24, 16), **overrides)


def vit_huge(**overrides: Any) -> MAEConfig:
    """ViT-H/14 at 224, as in the MAE paper."""
    return dataclasses.replace(MAEConfig(224, 14, 1280, 32, 16), **overrides)


PRESETS = {f.__name__: f for f in (vit_tiny, vit_base, vit_large, vit_huge)}


def normalize_images(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """uint8 RGB to float32 with ImageNet mean 0 and standard deviation 1."""
    mean, std = jnp.array(IMAGENET_MEAN), jnp.array(IMAGENET_STD)
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def patchify(images: Float[Array, "b h w c"], patch_size: int) -> Float[Array, "b l d"]:
    """Images to patches, rows first; the values of a patch are ordered (p, q, c) as in MAE."""
    b, h, w, c = images.shape
    p = patch_size
    grid = images.reshape(b, h // p, p, w // p, p, c).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(patches: Float[Array, "b l d"], patch_size: int) -> Float[Array, "b h w c"]:
    """Inverse of ``patchify`` for square images."""
    b, length, d = patches.shape
    p, n = patch_size, int(length**0.5)
    grid = patches.reshape(b, n, n, p, p, d // p**2).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, n * p, n * p, d // p**2)


def to_target(patches: Float[Array, "*batch d"], target: Target) -> Float[Array, "*batch d"]:
    """Patches in the space in which the decoder predicts them (METHOD 6).

    For ``norm_pix`` the variance is unbiased (divides by d - 1), as torch's is by default.
    """
    if target == "raw":
        return patches
    mean = patches.mean(axis=-1, keepdims=True)
    var = patches.var(axis=-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(var + NORM_PIX_EPS)


def sincos_position_table(width: int, grid: int) -> Float[np.ndarray, "n width"]:
    """MAE's fixed 2-d sine-cosine table for 1 + grid² tokens; the row of the CLS token is zero.

    The first half of the channels encodes the column, the second the row, each as sines and then
    cosines of frequencies 10000^(-i / (width / 4)).
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width / 4))
    row, column = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    halves = []
    for position in (column, row):
        angle = position.reshape(-1, 1) * frequencies
        halves += [np.sin(angle), np.cos(angle)]
    table = np.concatenate(halves, axis=1)
    return np.concatenate([np.zeros((1, width)), table]).astype(np.float32)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        b, n, width = x.shape
        xavier = nn.initializers.xavier_uniform()
        qkv = nn.Dense(3 * width, dtype=self.dtype, kernel_init=xavier, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(b, n, 3, self.num_heads, width // self.num_heads), 2, 0)
        out = jax.nn.dot_product_attention(q, k, v).reshape(b, n, width)
        return nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name="out")(out)


class Block(nn.Module):
    """Pre-norm transformer block with an MLP four times as wide; GELU is exact (erf)."""

    num_heads: int
    layer_norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b n w"]) -> Float[Array, "b n w"]:
        width = x.shape[-1]
        xavier = nn.initializers.xavier_uniform()
        y = nn.LayerNorm(epsilon=self.layer_norm_eps, dtype=self.dtype, name="norm1")(x)
        x = x + Attention(self.num_heads, self.dtype, name="attn")(y)
        y = nn.LayerNorm(epsilon=self.layer_norm_eps, dtype=self.dtype, name="norm2")(x)
        y = nn.Dense(4 * width, dtype=self.dtype, kernel_init=xavier, name="fc1")(y)
        y = nn.Dense(width, dtype=self.dtype, kernel_init=xavier, name="fc2")(
            jax.nn.gelu(y, approximate=False)
        )
        return x + y


class MAE(nn.Module):
    """Encoder and decoder; parameters are float32, activations ``dtype``.

    The position tables are parameters, so that a converted checkpoint keeps its own, but receive
    no gradient.  Attention does not see order, so the decoder gets [CLS, visible, masked] tokens
    with the position rows that belong to them instead of putting them back in raster order.
    """

    config: MAEConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c, dtype = self.config, self.dtype
        grid = c.image_size // c.patch_size
        xavier, normal = nn.initializers.xavier_uniform(), nn.initializers.normal(0.02)

        def table(width: int) -> Any:
            return lambda _: jnp.asarray(sincos_position_table(width, grid))[None]

        def blocks(prefix: str, depth: int, heads: int) -> list[Block]:
            return [
                Block(heads, c.layer_norm_eps, dtype, name=f"{prefix}_{i}") for i in range(depth)
            ]

        self.patch_embed = nn.Dense(c.width, dtype=dtype, kernel_init=xavier)
        self.cls_token = self.param("cls_token", normal, (1, 1, c.width))
        self.pos_embed = self.param("pos_embed", table(c.width))
        self.encoder_blocks = blocks("encoder", c.depth, c.num_heads)
        self.encoder_norm = nn.LayerNorm(epsilon=c.layer_norm_eps, dtype=dtype)
        if c.has_decoder:
            w = c.decoder_width
            self.decoder_embed = nn.Dense(w, dtype=dtype, kernel_init=xavier)
            self.mask_token = self.param("mask_token", normal, (1, 1, w))
            self.decoder_pos_embed = self.param("decoder_pos_embed", table(w))
            self.decoder_blocks = blocks("decoder", c.decoder_depth, c.decoder_num_heads)
            self.decoder_norm = nn.LayerNorm(epsilon=c.layer_norm_eps, dtype=dtype)
            self.decoder_pred = nn.Dense(c.patch_dim, dtype=dtype, kernel_init=xavier)

    def encode(
        self, images: Float[Array, "b h w 3"], visible: Int[Array, "b n"] | None = None
    ) -> Float[Array, "b tokens width"]:
        """Tokens after the last LayerNorm, CLS first.

        Args:
          images: ImageNet-normalised.
          visible: ids of the patches that the encoder sees, in any order; None means all.

        Returns:
          (B, 1 + L, width), or (B, 1 + N_vis, width) in the order of ``visible``.
        """
        position = jax.lax.stop_gradient(self.pos_embed).astype(self.dtype)
        patches = patchify(images, self.config.patch_size)
        x = self.patch_embed(patches) + position[:, 1:]
        if visible is not None:
            x = jnp.take_along_axis(x, visible[..., None], axis=1)
        cls = self.cls_token.astype(self.dtype) + position[:, :1]
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, x.shape[2])), x], axis=1)
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def decode(
        self,
        tokens: Float[Array, "b tokens width"],
        visible: Int[Array, "b n"],
        masked: Int[Array, "b m"],
    ) -> Float[Array, "b m d"]:
        """Predictions for the masked patches from the encoder's tokens of the visible ones."""
        if not self.config.has_decoder:
            raise ValueError("this backbone has no decoder: it can encode, but not reconstruct")
        position = jax.lax.stop_gradient(self.decoder_pos_embed).astype(self.dtype)[0]
        x = self.decoder_embed(tokens)
        mask_tokens = self.mask_token.astype(self.dtype) + position[1 + masked]
        x = jnp.concatenate(
            [x[:, :1] + position[0], x[:, 1:] + position[1 + visible], mask_tokens], axis=1
        )
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, -masked.shape[1] :]))

    def reconstruct(
        self,
        images: Float[Array, "b h w 3"],
        visible: Int[Array, "b n"],
        masked: Int[Array, "b m"],
    ) -> Float[Array, "b m d"]:
        """Predicts the masked patches from the visible ones, in target space, in ``masked`` order.

        Args:
          images: ImageNet-normalised; only their visible patches are looked at.
          visible, masked: complementary patch ids (``model.masking``).
        """
        return self.decode(self.encode(images, visible), visible, masked)

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        visible: Int[Array, "b n"],
        masked: Int[Array, "b m"],
    ) -> Float[Array, "b m d"]:
        return self.reconstruct(images, visible, masked)
