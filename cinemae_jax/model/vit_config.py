"""What an image encoder is made of and fed with: frozen choices, checked when they are made."""

import dataclasses
from typing import Any, Literal, get_args

from cinemae_jax.model.layers import Activation

Family = Literal["clip", "dinov2", "dinov3", "siglip"]
# How a position table is brought to another grid, as torch.nn.functional.interpolate does it.
Resampling = Literal["bicubic", "bicubic_antialias", "bilinear_antialias"]
# The family's own feature, or the tokens after the last block.
FeatureOf = Literal["published", "block"]


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Architecture of one image encoder.

    Attributes:
      family: decides what the sizes do not: class token, position table or RoPE, LayerScale, the
        LayerNorm before the blocks (CLIP), and what the feature is (``ViT.global_feature``).
      image_size: side of the square images that the position table is made for, pixels; a multiple
        of ``patch_size``.  Images of other sizes get an interpolated table.
      patch_size: side of a patch, pixels.
      width, depth, num_heads: of the tokens, the blocks, the attention.
      mlp_width: hidden width of a block's MLP.
      layer_norm_eps: of every LayerNorm.
      activation: of every MLP.
      projection: width of the feature of CLIP; 0 for the other families.
      num_registers: register tokens after the class token; DINOv2 and DINOv3 only.
      resampling: how the position table is interpolated; DINOv3 has no table.
      rope_theta: base of the frequencies of DINOv3's RoPE.
      feature: ``published``, as the family was trained to be used; ``block``, the class token after
        the last block (SigLIP: the mean of its tokens), which suits an encoder that is cut off
        before its end (``vit.first_blocks``).

    Raises:
      ValueError: if a field is impossible; the message names it.
    """

    family: Family
    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    layer_norm_eps: float
    activation: Activation = "gelu"
    projection: int = 0
    num_registers: int = 0
    resampling: Resampling = "bicubic"
    rope_theta: float = 100.0
    feature: FeatureOf = "published"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("family", get_args(Family)),
            ("activation", get_args(Activation)),
            ("resampling", get_args(Resampling)),
            ("feature", get_args(FeatureOf)),
        ):
            if getattr(self, name) not in allowed:
                found = getattr(self, name)
                raise ValueError(f"ViTConfig.{name} is {found!r}: use one of {', '.join(allowed)}")
        for name in ("image_size", "patch_size", "width", "depth", "num_heads", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"ViTConfig.{name} must be positive, is {getattr(self, name)}")
        if not 0 < self.layer_norm_eps < 1e-2:
            raise ValueError(
                f"ViTConfig.layer_norm_eps must be between 0 and 1e-2, is {self.layer_norm_eps}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"ViTConfig.image_size {self.image_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )
        part = 4 if self.has_rope else 1  # RoPE turns pairs of channels, half of them by the row
        if self.width % (part * self.num_heads):
            raise ValueError(
                f"ViTConfig.width {self.width} is not a multiple of {part} × num_heads "
                f"{self.num_heads}"
            )
        projects = self.family == "clip" and self.feature == "published"
        if (self.projection > 0) != projects:
            needed = "positive" if projects else "0"
            raise ValueError(
                f"ViTConfig.projection must be {needed} for {self.family} with feature "
                f"{self.feature!r}, is {self.projection}"
            )
        if self.num_registers and not self.has_layer_scale:
            raise ValueError(
                f"ViTConfig.num_registers must be 0 for {self.family}, is {self.num_registers}"
            )

    @property
    def has_class_token(self) -> bool:
        return self.family != "siglip"

    @property
    def has_layer_scale(self) -> bool:
        return self.family in ("dinov2", "dinov3")

    @property
    def has_rope(self) -> bool:
        """RoPE instead of a position table."""
        return self.family == "dinov3"

    @property
    def grid(self) -> int:
        """Side of the position table, patches."""
        return self.image_size // self.patch_size

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: class token and registers."""
        return self.has_class_token + self.num_registers

    @property
    def feature_width(self) -> int:
        """D, the length of the feature."""
        return self.projection or self.width


_SMALL: dict[str, Any] = {"width": 384, "depth": 12, "num_heads": 6, "mlp_width": 1536}
_BASE: dict[str, Any] = {"width": 768, "depth": 12, "num_heads": 12, "mlp_width": 3072}
_LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "num_heads": 16, "mlp_width": 4096}
_CLIP: dict[str, Any] = {"family": "clip", "layer_norm_eps": 1e-5, "activation": "quick_gelu"}
_DINOV2: dict[str, Any] = {"family": "dinov2", "layer_norm_eps": 1e-6}
_REGISTERS: dict[str, Any] = _DINOV2 | {"num_registers": 4, "resampling": "bicubic_antialias"}
_DINOV3: dict[str, Any] = {"family": "dinov3", "layer_norm_eps": 1e-5, "num_registers": 4}
_SIGLIP: dict[str, Any] = {"family": "siglip", "layer_norm_eps": 1e-6, "activation": "tanh_gelu"}
_NAFLEX: dict[str, Any] = _SIGLIP | {"resampling": "bilinear_antialias"}

# Published encoders by name; SigLIP 2 has the architecture of SigLIP, apart from naflex.
PRESETS: dict[str, ViTConfig] = {
    "clip_b32": ViTConfig(image_size=224, patch_size=32, projection=512, **_CLIP, **_BASE),
    "clip_b16": ViTConfig(image_size=224, patch_size=16, projection=512, **_CLIP, **_BASE),
    "clip_l14": ViTConfig(image_size=224, patch_size=14, projection=768, **_CLIP, **_LARGE),
    "clip_l14_336": ViTConfig(image_size=336, patch_size=14, projection=768, **_CLIP, **_LARGE),
    "dinov2_s14": ViTConfig(image_size=518, patch_size=14, **_DINOV2, **_SMALL),
    "dinov2_b14": ViTConfig(image_size=518, patch_size=14, **_DINOV2, **_BASE),
    "dinov2_l14": ViTConfig(image_size=518, patch_size=14, **_DINOV2, **_LARGE),
    "dinov2_s14_registers": ViTConfig(image_size=518, patch_size=14, **_REGISTERS, **_SMALL),
    "dinov2_b14_registers": ViTConfig(image_size=518, patch_size=14, **_REGISTERS, **_BASE),
    "dinov2_l14_registers": ViTConfig(image_size=518, patch_size=14, **_REGISTERS, **_LARGE),
    "dinov3_s16": ViTConfig(image_size=224, patch_size=16, **_DINOV3, **_SMALL),
    "dinov3_b16": ViTConfig(image_size=224, patch_size=16, **_DINOV3, **_BASE),
    "dinov3_l16": ViTConfig(image_size=224, patch_size=16, **_DINOV3, **_LARGE),
    "siglip_b16": ViTConfig(image_size=224, patch_size=16, **_SIGLIP, **_BASE),
    "siglip_b16_384": ViTConfig(image_size=384, patch_size=16, **_SIGLIP, **_BASE),
    "siglip_l16_256": ViTConfig(image_size=256, patch_size=16, **_SIGLIP, **_LARGE),
    "siglip_l16_384": ViTConfig(image_size=384, patch_size=16, **_SIGLIP, **_LARGE),
    "siglip2_b16_naflex": ViTConfig(image_size=256, patch_size=16, **_NAFLEX, **_BASE),
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an encoder was fed, and must be: uint8 RGB → resize → crop → (pixel / 255 - mean) / std.

    Attributes:
      mean, std: per channel, of pixels in [0, 1].
      size: side of the square that the encoder gets, pixels.
      shortest_edge: the image is resized to this shortest side before the centre crop of ``size``;
        0 if the whole image is squashed to the square and nothing is cropped.
      interpolation: of the resize: ``bicubic``, ``bilinear``, ``lanczos``, …
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    shortest_edge: int
    interpolation: str
