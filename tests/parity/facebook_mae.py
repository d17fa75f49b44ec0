"""An independent MAE in torch with the parameter names of facebookresearch/mae.

transformers' ViTMAE splits query, key and value and has its own names.  This model fuses them, so
that tests run the layout of the official files instead of trusting the table.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cinemae_jax.model.config import MAEConfig


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)  # rows q, k, v

        def split(t: Tensor) -> Tensor:
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        scores = split(q) @ split(k).transpose(-1, -2) / (q.shape[-1] // self.heads) ** 0.5
        return self.proj((scores.softmax(-1) @ split(v)).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, side: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, side, stride=side)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class FacebookMAE(nn.Module):
    def __init__(self, c: MAEConfig):
        super().__init__()
        length, eps = c.num_patches, c.layer_norm_eps
        self.patch_embed = PatchEmbed(c.width, c.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + length, c.width))
        self.blocks = nn.ModuleList(Block(c.width, c.num_heads, eps) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width, eps=eps)
        w = c.decoder_width
        self.decoder_embed = nn.Linear(c.width, w)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, w))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + length, w))
        self.decoder_blocks = nn.ModuleList(
            Block(w, c.decoder_num_heads, eps) for _ in range(c.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(w, eps=eps)
        self.decoder_pred = nn.Linear(w, c.patch_dim)

    def randomize(self, seed: int) -> "FacebookMAE":
        """Draws every parameter: nothing is zero or symmetric."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.15, generator=generator)
        return self.eval()

    @torch.no_grad()
    def forward(self, pixels: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predictions for the masked patches; pixels (B, 3, H, W), ids (B, N_vis) and (B, M)."""
        tokens = self.patch_embed(pixels) + self.pos_embed[:, 1:]
        rows = torch.arange(len(pixels))[:, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(pixels), -1, -1)
        x = torch.cat([cls, tokens[rows, visible]], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        raster = self.mask_token.repeat(len(pixels), tokens.shape[1], 1)
        raster[rows, visible] = x[:, 1:]
        x = torch.cat([x[:, :1], raster], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:][rows, masked]
