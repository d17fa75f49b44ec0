"""Vision transformers that only encode: CLIP, DINOv2, DINOv3, SigLIP and SigLIP 2 in one module.

In: images (B, H, W, 3) float, normalised as ``Preprocessing`` says, of any height and width that
the patch size divides.  Out: one feature vector per image, and every stage on the way to it.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cinemae_jax.model.arrays import Params
from cinemae_jax.model.config import CHANNELS
from cinemae_jax.model.layers import AttentionPool, Block, Dense, LayerNorm
from cinemae_jax.model.mae import patchify
from cinemae_jax.model.vit_config import PRESETS, Preprocessing, Resampling, ViTConfig

__all__ = ["PRESETS", "Encoder", "Preprocessing", "ViT", "ViTConfig"]


@struct.dataclass
class Encoder:
    """A frozen encoder: a pytree whose leaves are its parameters and which nobody updates.

    Attributes:
      params: of ``ViT``, float32; ``ViT(config).apply({"params": params}, ...)``.
      config: architecture.
      preprocessing: what its images must go through.
      sha256: of the file that it was read from.
    """

    params: Params
    config: ViTConfig = struct.field(pytree_node=False)
    preprocessing: Preprocessing = struct.field(pytree_node=False)
    sha256: str = struct.field(pytree_node=False, default="")


def resize_matrix(old: int, new: int, resampling: Resampling) -> Float[np.ndarray, "new old"]:
    """Weights that resize one axis from ``old`` to ``new`` values, aligned at the outer edges.

    ``bicubic`` is Keys' kernel with a = -0.75 over the four nearest values, edge values repeated.
    The antialiased kernels (bicubic with a = -0.5) widen when they shrink, end at the edge and are
    normalised.  All as torch has them.
    """
    scale = old / new
    centre = (np.arange(new)[:, None] + 0.5) * scale - 0.5
    if resampling == "bicubic":
        taps = np.floor(centre).astype(int) + np.arange(-1, 3)
        matrix = np.zeros((new, old))
        rows = np.broadcast_to(np.arange(new)[:, None], taps.shape)
        np.add.at(matrix, (rows, taps.clip(0, old - 1)), _cubic(taps - centre, -0.75))
        return matrix.astype(np.float32)
    distance = (np.arange(old) - centre) / max(scale, 1.0)
    if resampling == "bicubic_antialias":
        weights = _cubic(distance, -0.5)
    else:
        weights = np.maximum(1 - np.abs(distance), 0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel, which is 0 from distance 2 on."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def rope_angles(config: ViTConfig, rows: int, columns: int) -> Float[np.ndarray, "n half"]:
    """Angles by which DINOv3 turns the channel pairs of each token's queries and keys.

    A patch's centre has coordinates in (-1, 1), whatever the image's size.  The first half of the
    pairs turns by the row, the second by the column.  Class token and registers do not turn.
    """
    quarter = config.width // config.num_heads // 4
    frequencies = 2 * math.pi * config.rope_theta ** -(np.arange(quarter) / quarter)
    centres = [(2 * np.arange(n) + 1) / n - 1 for n in (rows, columns)]
    row, column = np.meshgrid(*centres, indexing="ij")
    angles = np.concatenate([p.reshape(-1, 1) * frequencies for p in (row, column)], axis=1)
    return np.pad(angles, ((config.num_prefix, 0), (0, 0))).astype(np.float32)


class ViT(nn.Module):
    """An image encoder of any family; parameters are float32, activations ``dtype``."""

    config: ViTConfig
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        c, dtype = self.config, self.dtype
        normal = nn.initializers.normal(0.02)
        self.patch_embed = Dense(c.width, dtype, use_bias=c.family != "clip")
        if c.has_class_token:
            self.cls_token = self.param("cls_token", normal, (1, c.width))
        if c.num_registers:
            self.registers = self.param("registers", normal, (c.num_registers, c.width))
        if not c.has_rope:
            positions = c.has_class_token + c.grid**2
            self.pos_embed = self.param("pos_embed", normal, (positions, c.width))
        if c.family == "clip":
            self.pre_norm = LayerNorm(c.layer_norm_eps)
        if c.projection:
            self.projection = Dense(c.projection, dtype, use_bias=False)
        if c.family == "siglip" and c.feature == "published":
            self.pool = AttentionPool(
                c.num_heads, c.layer_norm_eps, dtype, c.mlp_width, c.activation
            )
        self.blocks = [
            Block(
                c.num_heads, c.layer_norm_eps, dtype,
                c.mlp_width, c.activation, c.has_layer_scale, name=f"block_{i}",
            )
            for i in range(c.depth)
        ]  # fmt: skip
        if c.feature == "published":
            self.norm = LayerNorm(c.layer_norm_eps)

    def global_feature(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """The feature by which each family describes an image; float32.

        CLIP: the class token, normalised and projected.  DINOv2 and DINOv3: the class token after
        the last LayerNorm.  SigLIP: all tokens pooled by attention.  transformers calls it
        ``image_embeds`` (CLIP) or ``pooler_output``.  With ``config.feature`` ``block``: the class
        token after the last block, of SigLIP the mean of its tokens.  It is not scaled to length 1.

        Args:
          pixels: normalised as ``Preprocessing`` says.

        Raises:
          ValueError: if the patch size does not divide both sides.
        """
        return self.stages(pixels)["feature"]

    def stages(self, pixels: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b ..."]]:
        """Every stage by name: ``embed``, ``block_0`` …, ``norm``, ``feature``.

        Tokens are (B, n, width): class token, registers, patches row by row.  ``embed`` is what the
        first block gets.  CLIP normalises the class token alone: its ``norm`` is (B, width).
        """
        rows, columns = self._grid(pixels)
        angles = (
            jnp.asarray(rope_angles(self.config, rows, columns)) if self.config.has_rope else None
        )
        x = self._embed(pixels, rows, columns)
        out = {"embed": x}
        for i, block in enumerate(self.blocks):
            x = out[f"block_{i}"] = block(x, angles)
        if self.config.feature == "block":
            feature = x[:, 0] if self.config.has_class_token else x.mean(axis=1)
        elif self.config.family == "clip":
            out["norm"] = self.norm(x[:, 0])
            feature = self.projection(out["norm"])
        else:
            out["norm"] = self.norm(x)
            pools = self.config.family == "siglip"
            feature = self.pool(out["norm"]) if pools else out["norm"][:, 0]
        return out | {"feature": feature.astype(jnp.float32)}

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        return self.global_feature(pixels)

    def _grid(self, pixels: Array) -> tuple[int, int]:
        _, height, width, _ = pixels.shape
        patch = self.config.patch_size
        if height % patch or width % patch or not height * width:
            nearest = [max(round(side / patch), 1) * patch for side in (height, width)]
            raise ValueError(
                f"images of {height} × {width} pixels cannot be cut into patches of {patch}: "
                f"resize them to {nearest[0]} × {nearest[1]}"
            )
        return height // patch, width // patch

    def _embed(self, pixels: Array, rows: int, columns: int) -> Float[Array, "b n width"]:
        """Tokens that the first block gets; registers have no position."""
        c = self.config
        x = self.patch_embed(patchify(pixels, c.patch_size))
        prefix = [self.cls_token] if c.has_class_token else []
        if not c.has_rope:
            of_class, of_patches = self._positions(rows, columns)
            x = x + of_patches.astype(self.dtype)[None]
            prefix = [token + of_class for token in prefix]
        if c.num_registers:
            prefix.append(self.registers)
        before = [jnp.asarray(tokens).astype(self.dtype)[None] for tokens in prefix]
        x = jnp.concatenate(
            [jnp.broadcast_to(t, (x.shape[0], *t.shape[1:])) for t in before] + [x], 1
        )
        return self.pre_norm(x).astype(self.dtype) if c.family == "clip" else x

    def _positions(self, rows: int, columns: int) -> tuple[Array, Array]:
        """Rows of the position table for the class token and for a grid of patches."""
        c = self.config
        table = jnp.asarray(self.pos_embed)
        of_class, of_patches = table[: c.has_class_token], table[c.has_class_token :]
        if (rows, columns) != (c.grid, c.grid):
            down, across = (resize_matrix(c.grid, n, c.resampling) for n in (rows, columns))
            of_patches = jnp.einsum(
                "ri,cj,ijw->rcw", down, across, of_patches.reshape(c.grid, c.grid, c.width),
                precision=jax.lax.Precision.HIGHEST,
            ).reshape(rows * columns, c.width)  # fmt: skip
        return of_class, of_patches


def first_blocks(config: ViTConfig, params: Params, count: int) -> tuple[ViTConfig, Params]:
    """An encoder cut off after some blocks; its feature is the class token there.

    Args:
      config: of the whole encoder.
      params: of the whole encoder.
      count: blocks to keep.

    Raises:
      ValueError: if the encoder has fewer blocks.
    """
    if not 1 <= count <= config.depth:
        raise ValueError(f"blocks must lie in [1, {config.depth}], is {count}")
    cut = dataclasses.replace(config, depth=count, projection=0, feature="block")
    kept = {f"block_{i}" for i in range(count)} | (params.keys() - _tail(params))
    return cut, {name: params[name] for name in params if name in kept}


def _tail(params: Params) -> set[str]:
    """Names of what comes after the embedding."""
    blocks = {name for name in params if name.startswith("block_")}
    return blocks | {"norm", "projection", "pool"}


def initial_variables(config: ViTConfig, key: Array) -> Any:
    """Flax variables of a fresh encoder."""
    pixels = jnp.zeros((1, config.image_size, config.image_size, CHANNELS))
    return ViT(config).init(key, pixels)
