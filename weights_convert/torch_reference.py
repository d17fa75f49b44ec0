"""CINEMAE in plain PyTorch over transformers' ViTMAE: the whole method, written to be read.

An independent check of the JAX package, which it does not import, and a start for PyTorch users.
In: a ``ViTMAEForPreTraining``, uint8 images, mask noise.  Out: features, scores, logits, a trained
head.  Symbols and sections are those of docs/method.md.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import ViTMAEForPreTraining

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EPS = 1e-6
STD_FLOOR = 1e-6
LOGARITHMIC_SCORES = ("context_nll", "conditional_nll", "relative", "log_variance")
GATE_BIAS = 2.0


@dataclass
class Terms:
    """LCAS terms: (B, K, M) each, ``context_variance`` (B, K, C)."""

    deviation: Tensor
    reconstruction_deviation: Tensor
    mismatch: Tensor
    patch_variance: Tensor
    context_variance: Tensor


@dataclass
class Features:
    """Everything the head sees of a batch: f_global (B, D), the terms, masked ids (B, K, M)."""

    f_global: Tensor
    terms: Terms
    masked: Tensor


# --- 1. the frozen backbone --------------------------------------------------------------------


def normalize_images(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 (B, H, W, 3) to ImageNet-normalised (B, 3, H, W)."""
    mean = torch.tensor(IMAGENET_MEAN, dtype=dtype, device=images.device)
    std = torch.tensor(IMAGENET_STD, dtype=dtype, device=images.device)
    return ((images.to(dtype) / 255.0 - mean) / std).permute(0, 3, 1, 2)


def target_patches(mae: ViTMAEForPreTraining, pixels: Tensor) -> Tensor:
    """True patches (B, L, d) in the space that the decoder predicts, values ordered (p, q, c).

    Per-patch normalisation uses the unbiased variance (torch's default), as MAE does.
    """
    patches = mae.patchify(pixels)
    if not mae.config.norm_pix_loss:
        return patches
    mean, var = patches.mean(-1, keepdim=True), patches.var(-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()


def visible_and_masked(noise: Tensor, num_visible: int) -> tuple[Tensor, Tensor]:
    """Ids of the patches with the smallest noise, in its order, and of the others, ascending."""
    visible = noise.argsort(dim=-1, stable=True)[..., :num_visible]
    is_masked = torch.ones_like(noise, dtype=torch.bool).scatter(-1, visible, False)
    masked = is_masked.nonzero()[:, -1].reshape(*noise.shape[:-1], -1)
    return visible, masked


def disjoint(noise: Tensor, num_visible: int, group_size: int) -> Tensor:
    """Visible ids of a group of disjoint masks: noise (..., L) to (..., G, N_vis)."""
    order = noise.argsort(dim=-1, stable=True)
    return order[..., : group_size * num_visible].unflatten(-1, (group_size, num_visible))


def texture(images: Tensor, patch: int) -> Tensor:
    """Variance of every patch in squared grey levels: uint8 (B, H, W, 3) to (B, L).

    Averaged over channels; the mean of a channel is rounded to a whole level.
    """
    grid = images.long().unfold(1, patch, patch).unfold(2, patch, patch).flatten(1, 2).flatten(3)
    mean = (grid.double().mean(-1, keepdim=True) + 0.5).floor()  # (B, L, 3, pixels)
    return ((grid - mean) ** 2).mean(dim=(-2, -1)).float()


def stratified(
    texture: Tensor, gumbel: Tensor, num_visible: int, temperature: float = 1.0
) -> Tensor:
    """Visible ids of masks that show one patch per stratum of texture, least textured first.

    Args:
      texture: (B, L).
      gumbel: standard Gumbel noise, (B, K, L).
      num_visible: number of strata.
      temperature: τ.
    """
    order = texture.argsort(dim=-1, stable=True)
    chances = (texture + 1).log()[:, None] / temperature + gumbel
    length = texture.shape[-1]
    edges = [i * length // num_visible for i in range(num_visible + 1)]
    chosen = []
    for start, stop in itertools.pairwise(edges):
        members = order[:, None, start:stop].expand(-1, gumbel.shape[1], -1)
        best = chances.gather(-1, members).argmax(dim=-1, keepdim=True)
        chosen.append(members.gather(-1, best))
    return torch.cat(chosen, dim=-1)


def noise_that_shows(visible: Tensor, length: int) -> Tensor:
    """Noise (..., L) for ``extract_features`` whose smallest values are at the given ids."""
    rank = torch.arange(visible.shape[-1], dtype=torch.float32).expand(visible.shape)
    return torch.full((*visible.shape[:-1], length), float(length)).scatter(-1, visible, rank)


def global_feature(mae: ViTMAEForPreTraining, pixels: Tensor, pooling: str = "cls") -> Tensor:
    """f_global (B, D) from one encoder pass over every patch."""
    raster = torch.arange(num_patches(mae), device=pixels.device).expand(len(pixels), -1)
    with mask_ratio(mae, 0.0):
        tokens = mae.vit(pixels, noise=raster).last_hidden_state
    return tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(dim=1)


def reconstruct(mae: ViTMAEForPreTraining, pixels: Tensor, noise: Tensor) -> Tensor:
    """Predictions (B, L, d) for all patches from the visible ones; the noise is (B, L)."""
    return mae(pixels, noise=noise).logits


def num_patches(mae: ViTMAEForPreTraining) -> int:
    """L."""
    return (mae.config.image_size // mae.config.patch_size) ** 2


def num_visible(mae: ViTMAEForPreTraining) -> int:
    """N_vis = int(L (1 - r)) as MAE rounds it."""
    return int(num_patches(mae) * (1 - mae.config.mask_ratio))


@contextmanager
def mask_ratio(mae: ViTMAEForPreTraining, ratio: float) -> Iterator[None]:
    """Sets the model's mask ratio inside a ``with`` block."""
    before, mae.config.mask_ratio = mae.config.mask_ratio, ratio
    try:
        yield
    finally:
        mae.config.mask_ratio = before


@torch.no_grad()
def extract_features(
    mae: ViTMAEForPreTraining, images: Tensor, noise: Tensor, pooling: str = "cls"
) -> Features:
    """One unmasked pass and K masked runs of every image.

    Args:
      mae: in evaluation mode; its dtype is used throughout.
      images: uint8 (B, H, W, 3) of the model's size.
      noise: (B, K, L).
      pooling: f_global is the CLS token (``cls``) or the mean of the others (``mean``).
    """
    pixels = normalize_images(images, mae.dtype)
    target = target_patches(mae, pixels)
    visible, masked = visible_and_masked(noise, num_visible(mae))
    runs = [
        run_terms(target, reconstruct(mae, pixels, noise[:, k]), visible[:, k], masked[:, k])
        for k in range(noise.shape[1])
    ]
    stacked = {f: torch.stack([getattr(run, f) for run in runs], dim=1) for f in vars(runs[0])}
    return Features(global_feature(mae, pixels, pooling), Terms(**stacked), masked)


def frequency(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """q of all kinds, (B, 176): rings and blocks of the luma, then of its high-pass residual.

    Args:
      images: uint8 (B, H, W, 3), not normalised.
      dtype: of the computation.
    """
    luma = images.to(dtype) @ torch.tensor((0.299, 0.587, 0.114), dtype=dtype)
    even = luma[:, : luma.shape[1] // 2 * 2, : luma.shape[2] // 2 * 2]
    high = even - even[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)
    return torch.cat([rings(luma), blocks(luma), rings(high), blocks(high)], dim=1)


def rings(luma: Tensor, count: int = 24) -> Tensor:
    """Log power under a Hann window in rings up to 0.5 cycles per pixel: (B, H, W) to (B, 24)."""
    height, width = luma.shape[1:]
    hann = [torch.hann_window(n, periodic=False, dtype=luma.dtype) for n in (height, width)]
    window = torch.outer(*hann)
    mean = (luma * window).sum((1, 2), keepdim=True) / window.sum()
    power = torch.fft.fft2((luma - mean) * window).abs() ** 2 / (window**2).sum()
    across, along = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    ring = (torch.hypot(across[:, None], along[None]) * 2 * count).long()
    means = [power[:, ring == i].mean(1) for i in range(count)]
    return torch.stack(means, dim=1).add(1 / 12).log()


def blocks(luma: Tensor, side: int = 8) -> Tensor:
    """Log variance of DCT-II coefficients over whole blocks: (B, H, W) to (B, 64)."""
    place = torch.arange(side, dtype=luma.dtype)
    basis = torch.cos(math.pi * place[:, None] * (2 * place + 1) / (2 * side))
    basis = basis * math.sqrt(2 / side)
    basis[0] /= math.sqrt(2)
    cut = luma.unfold(1, side, side).unfold(2, side, side)  # (B, rows, columns, 8, 8)
    coefficients = basis @ cut @ basis.T
    variance = coefficients.var(dim=(1, 2), unbiased=False)
    return (variance + 1 / 12).log().flatten(1)


# --- 2. local conditional anomaly scores -------------------------------------------------------


def take(patches: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` (B, n) of patches (B, L, d)."""
    return patches.gather(1, ids[..., None].expand(-1, -1, patches.shape[-1]))


def run_terms(target: Tensor, predictions: Tensor, visible: Tensor, masked: Tensor) -> Terms:
    """Terms of one masked run of a batch.

    Args:
      target, predictions: (B, L, d), in the space that the decoder predicts.
      visible, masked: ids, (B, N_vis) and (B, M).
    """
    context = take(target, visible).unflatten(-1, (-1, 3)).flatten(1, 2)  # (B, pixels, C)
    mean, var = context.mean(dim=1), context.var(dim=1, unbiased=False)
    truth, guess = take(target, masked), take(predictions, masked)
    return Terms(
        deviation=deviation(truth, mean, var),
        reconstruction_deviation=deviation(guess, mean, var),
        mismatch=((truth - guess) ** 2).mean(-1),
        patch_variance=truth.var(-1, unbiased=False),
        context_variance=var,
    )


def deviation(patches: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """D_i = mean_j (x_ij - μ_c(j))² / (σ²_c(j) + ε): (B, M, d) and (B, C) to (B, M)."""
    values = patches.unflatten(-1, (-1, 3))
    z2 = (values - mean[:, None, None]) ** 2 / (var[:, None, None] + EPS)
    return z2.mean(dim=(-2, -1))


def score(terms: Terms, variant: str, weight: float = 1.0) -> Tensor:
    """Anomaly scores (B, K, M) of the named variant; ``weight`` is λ."""
    log_determinant = (terms.context_variance + EPS).log().mean(-1, keepdim=True)
    if variant == "context_nll":
        return 0.5 * (terms.deviation + log_determinant) + weight * terms.mismatch
    if variant == "log_variance":
        return log_determinant.expand_as(terms.mismatch)
    if variant == "deviation_plus_mismatch":
        return terms.deviation + weight * terms.mismatch
    if variant == "reconstruction_deviation":
        return terms.reconstruction_deviation + weight * terms.mismatch
    if variant == "mismatch":
        return terms.mismatch
    if variant == "conditional_nll":
        var = terms.context_variance.mean(-1, keepdim=True) + EPS
        return 0.5 * (var.log() + terms.mismatch / var)
    if variant == "relative":
        return (terms.mismatch + EPS).log() - (terms.patch_variance + EPS).log()
    raise ValueError(f"unknown LCAS score {variant!r}")


def run_sensitivity(scores: Tensor) -> Tensor:
    """s3 by run: standard deviation of the per-run means, (B, K, M) to (B,)."""
    return scores.mean(dim=2).std(dim=1, unbiased=False)


def patch_sensitivity(scores: Tensor, masked: Tensor, length: int) -> Tensor:
    """s3 by patch: mean |S^a - S^b| over patches masked in both runs, averaged over pairs."""
    shape = (*scores.shape[:2], length)
    grid = scores.new_zeros(shape).scatter(2, masked, scores)
    hit = scores.new_zeros(shape).scatter(2, masked, 1.0)
    pairs = [(a, b) for a in range(shape[1]) for b in range(a + 1, shape[1])]
    means = []
    for a, b in pairs:
        both = hit[:, a] * hit[:, b]
        difference = (grid[:, a] - grid[:, b]).abs() * both
        means.append(difference.sum(1) / both.sum(1).clamp(min=1.0))
    return torch.stack(means).mean(0) if means else scores.new_zeros(len(scores))


def statistics(
    features: Features,
    variant: str,
    *,
    weight: float = 1.0,
    sensitivity: str = "run",
    length: int = 0,
    share: float = 1.0,
) -> Tensor:
    """[s1, s2, s3] (B, 3), the head's inputs; log1p of them where scores cannot be negative.

    Args:
      features: of a batch.
      variant: of the score.
      weight: λ.
      sensitivity: of s3, ``run`` or ``patch``.
      length: L; only ``patch`` needs it.
      share: of the masked patches of each run: the most textured ones are summarised.
    """
    scores, masked = score(features.terms, variant, weight), features.masked
    if share < 1:
        order = features.terms.patch_variance.argsort(dim=-1, descending=True, stable=True)
        places = order[..., : math.ceil(share * order.shape[-1])]
        scores, masked = scores.gather(-1, places), masked.gather(-1, places)
    if sensitivity == "run":
        s3 = run_sensitivity(scores)
    else:
        s3 = patch_sensitivity(scores, masked, length)
    flat = scores.flatten(1)
    stats = torch.stack([flat.std(1, unbiased=False), flat.mean(1), s3], dim=1)
    return stats if variant in LOGARITHMIC_SCORES else stats.log1p()


# --- 3. the trained head -----------------------------------------------------------------------


@dataclass
class Normalizer:
    """Training-set mean and standard deviation of f_global (D,) and s (3,)."""

    global_mean: Tensor
    global_std: Tensor
    stats_mean: Tensor
    stats_std: Tensor

    def __call__(self, f_global: Tensor, stats: Tensor) -> tuple[Tensor, Tensor]:
        f = (f_global - self.global_mean) / self.global_std.clamp(min=STD_FLOOR)
        s = (stats - self.stats_mean) / self.stats_std.clamp(min=STD_FLOOR)
        return f, s


class Head(nn.Module):
    """MLP_δ, fusion, classifier: standardised f_global (B, D) and s (B, 3) to logits (B,).

    ``fusion`` is additive, concat, gate (the paper's), logit, global or lcas.
    """

    def __init__(self, width: int, fusion: str = "additive", hidden: int = 256):
        super().__init__()
        self.fusion = fusion
        if fusion != "global":
            out = 1 if fusion == "logit" else width
            self.mlp = nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, out))
            if fusion == "lcas":  # alone before a LayerNorm: it must not start near zero
                nn.init.normal_(self.mlp[2].bias)
            else:  # fusion starts at f_global
                nn.init.zeros_(self.mlp[2].weight)
                nn.init.zeros_(self.mlp[2].bias)
        if fusion == "logit":
            self.global_classifier = nn.Linear(width, 1)
            return
        if fusion == "gate":
            self.gate = nn.Linear(2 * width, width)
            nn.init.constant_(self.gate.bias, GATE_BIAS)
        fused = 2 * width if fusion == "concat" else width
        self.norm = nn.LayerNorm(fused, eps=1e-6)
        self.classifier = nn.Linear(fused, 1)
        if fusion == "lcas":
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)

    def forward(self, f_global: Tensor, stats: Tensor) -> Tensor:
        if self.fusion == "logit":
            return (self.global_classifier(f_global) + self.mlp(stats))[:, 0]
        return self.classifier(self.norm(self.fuse(f_global, stats)))[:, 0]

    def fuse(self, f_global: Tensor, stats: Tensor) -> Tensor:
        if self.fusion == "global":
            return f_global
        f_anomaly = self.mlp(stats)
        if self.fusion == "lcas":
            return f_anomaly
        if self.fusion == "additive":
            return f_global + f_anomaly
        both = torch.cat([f_global, f_anomaly], dim=-1)
        if self.fusion == "concat":
            return both
        if self.fusion == "gate":
            g = self.gate(both).sigmoid()
            return g * f_global + (1 - g) * f_anomaly
        raise ValueError(f"unknown fusion {self.fusion!r}")


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy; label 1 is AI-generated."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def adamw(
    head: Head, *, weight_decay: float = 1e-2, global_weight_decay: float = 1e-2
) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only; ``global_classifier`` has its own."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in head.named_parameters():
        decay = global_weight_decay if name.startswith("global_classifier") else weight_decay
        groups.setdefault(decay if parameter.ndim == 2 else 0.0, []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "weight_decay": decay} for decay, p in groups.items()],
        lr=1.0,  # ``train_head`` sets it before every step
    )


def learning_rate(step: int, num_steps: int, *, peak: float, warmup: float) -> float:
    """Linear from 0 to ``peak`` over the first ``warmup`` share of steps, then a cosine to 0."""
    rising = max(1, round(num_steps * warmup))
    total = max(num_steps, rising + 1)
    if step < rising:
        return peak * step / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))


@dataclass
class Training:
    """Options of ``train_head``."""

    num_steps: int
    peak: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 1e-2
    global_weight_decay: float = 1e-2


def train_head(
    head: Head, f_global: Tensor, stats: Tensor, labels: Tensor, training: Training
) -> list[float]:
    """Trains on one batch of standardised inputs; returns the loss before every step."""
    optimizer = adamw(
        head,
        weight_decay=training.weight_decay,
        global_weight_decay=training.global_weight_decay,
    )
    losses = []
    for step in range(training.num_steps):
        rate = learning_rate(step, training.num_steps, peak=training.peak, warmup=training.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        value = loss(head(f_global, stats), labels)
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses
