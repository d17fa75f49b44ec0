"""Masked autoencoder (He et al., arXiv 2111.06377): a ViT encoder and a light decoder.

In: images (B, H, W, 3) float, ImageNet-normalised, and the ids of their visible patches.
Out: encoder tokens, and predictions for the masked patches in the model's target space.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Real, UInt8

from cinemae_jax.model.arrays import Params
from cinemae_jax.model.config import (
    CHANNELS,
    PRESETS,
    AttentionKind,
    MAEConfig,
    Target,
    vit_base,
    vit_huge,
    vit_large,
    vit_tiny,
)
from cinemae_jax.model.layers import Block, Dense, LayerNorm

__all__ = ["MAE", "PRESETS", "MAEConfig", "vit_base", "vit_huge", "vit_large", "vit_tiny"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Added to a patch's variance for the ``norm_pix`` target (MAE's own constant).
NORM_PIX_EPS = 1e-6


def normalize_images(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """uint8 RGB to float32 with ImageNet mean 0 and standard deviation 1."""
    mean, std = (jnp.array(v).reshape(1, 1, 1, CHANNELS) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.astype(jnp.float32) / 255.0 - mean) / std


def grey_levels(pixels: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """The inverse of ``normalize_images``: RGB from 0 to 255, up to float32 rounding."""
    mean, std = (jnp.array(v).reshape(1, 1, 1, CHANNELS) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels * std + mean) * 255.0


def patchify(images: Real[Array, "b h w c"], patch_size: int) -> Real[Array, "b l d"]:
    """Images to patches, row by row; the values of a patch are ordered (p, q, c) as in MAE."""
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
    """Patches in the space in which the decoder predicts them (docs/weights.md).

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


class MAE(nn.Module):
    """Encoder and decoder; parameters are float32, activations ``dtype``.

    The position tables are parameters, so that a converted checkpoint keeps its own, but get no
    gradient.  The decoder's tokens stay in the order [CLS, visible, masked], each with its own
    position row; attention does not depend on order, so raster order is not restored.
    """

    config: MAEConfig
    dtype: DTypeLike = jnp.float32
    attention: AttentionKind = "plain"

    def setup(self) -> None:
        c, dtype = self.config, self.dtype
        grid = c.image_size // c.patch_size
        normal = nn.initializers.normal(0.02)

        def table(width: int) -> Callable[[Array], Array]:
            return lambda _: jnp.asarray(sincos_position_table(width, grid))[None]

        def blocks(prefix: str, depth: int, heads: int) -> list[Block]:
            return [
                Block(
                    heads, c.layer_norm_eps, dtype, attention=self.attention, name=f"{prefix}_{i}"
                )
                for i in range(depth)
            ]

        self.patch_embed = Dense(c.width, dtype)
        self.cls_token = self.param("cls_token", normal, (1, 1, c.width))
        self.pos_embed = self.param("pos_embed", table(c.width))
        self.encoder_blocks = blocks("encoder", c.depth, c.num_heads)
        self.encoder_norm = LayerNorm(c.layer_norm_eps)
        if c.has_decoder:
            w = c.decoder_width
            self.decoder_embed = Dense(w, dtype)
            self.mask_token = self.param("mask_token", normal, (1, 1, w))
            self.decoder_pos_embed = self.param("decoder_pos_embed", table(w))
            self.decoder_blocks = blocks("decoder", c.decoder_depth, c.decoder_num_heads)
            self.decoder_norm = LayerNorm(c.layer_norm_eps)
            self.decoder_pred = Dense(c.patch_dim, dtype)

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
        """Predictions for the masked patches from the encoder's tokens of the visible ones.

        Raises:
          ValueError: if the architecture has no decoder.
        """
        if not self.config.has_decoder:
            raise ValueError("this backbone has no decoder: use num_runs 0 or a full checkpoint")
        position = jax.lax.stop_gradient(self.decoder_pos_embed).astype(self.dtype)
        x = self.decoder_embed(tokens)
        cls = x[:, :1] + position[:, :1]
        seen = x[:, 1:] + position[0, 1 + visible]
        hidden = self.mask_token.astype(self.dtype) + position[0, 1 + masked]
        x = jnp.concatenate([cls, seen, hidden], axis=1)
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
          images: ImageNet-normalised; only their visible patches are read.
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


def initial_variables(config: MAEConfig, key: Key[Array, ""]) -> Mapping[str, Params]:
    """Flax variables of a fresh MAE; without a decoder, of its encoder alone."""
    images = jnp.zeros((1, config.image_size, config.image_size, CHANNELS))
    ids = jnp.arange(config.num_patches)[None]
    if not config.has_decoder:
        return MAE(config).init(key, images, method="encode")
    return MAE(config).init(key, images, ids[:, :1], ids[:, 1:])
