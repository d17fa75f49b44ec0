"""Configuration of a backbone and of a detector: frozen data classes that check their fields."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

CHANNELS = 3

Target = Literal["raw", "norm_pix"]
Score = Literal[
    "context_nll",
    "deviation_plus_mismatch",
    "mismatch",
    "reconstruction_deviation",
    "conditional_nll",
    "relative",
    "log_variance",
]
SCORES: tuple[str, ...] = get_args(Score)
# Scores that can be negative: the head reads their statistics without log1p.
LOGARITHMIC_SCORES = ("context_nll", "conditional_nll", "relative", "log_variance")
# Scores that use λ.
WEIGHTED_SCORES = ("context_nll", "deviation_plus_mismatch", "reconstruction_deviation")

LEAST_RATIO = 0.5  # mask ratio at which two disjoint visible sets fit into an image
Masking = Literal["random", "disjoint", "stratified"]
ShareBy = Literal["texture", "random"]
Sensitivity = Literal["run", "patch"]
Statistic = Literal["variability", "mean_anomaly", "perturbation_sensitivity"]  # s1, s2, s3
STATISTICS: tuple[str, ...] = get_args(Statistic)
Anomaly = Literal["statistics", "bands"]
Frequency = Literal["none", "radial", "blocks", "residual"]
Fusion = Literal["additive", "concat", "gate", "logit", "global", "lcas", "hybrid", "frequency"]
FUSIONS: tuple[str, ...] = get_args(Fusion)
Pooling = Literal["cls", "mean"]
Dtype = Literal["float32", "bfloat16"]
AttentionKind = Literal["plain", "xla", "cudnn"]
RunLayout = Literal["vmap", "fold"]


@dataclasses.dataclass(frozen=True)
class MAEConfig:
    """Architecture and target of one masked autoencoder.

    Attributes:
      image_size: side of the square input, pixels; a multiple of ``patch_size``.
      patch_size: side of a patch, pixels.
      width, depth, num_heads: of the encoder.
      decoder_width, decoder_depth, decoder_num_heads: of the decoder; with depth 0 there is no
        decoder, and only ``encode`` works.
      target: what the decoder predicts: ``raw`` for ImageNet-normalised pixels, ``norm_pix`` for
        patches normalised by their own mean and variance.
      layer_norm_eps: 1e-6 in the official code, 1e-12 in Hugging Face's configs.

    Raises:
      ValueError: naming the first impossible field.
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
                raise ValueError(f"MAEConfig.{name} must be 1 or more, is {getattr(self, name)}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"MAEConfig.image_size {self.image_size} is not a multiple of "
                f"patch_size {self.patch_size}"
            )
        for prefix in ("", "decoder_") if self.has_decoder else ("",):
            width, heads = getattr(self, f"{prefix}width"), getattr(self, f"{prefix}num_heads")
            if min(width, heads) < 1 or width % 4:
                raise ValueError(
                    f"MAEConfig.{prefix}width {width} must be a multiple of 4 (position table), "
                    f"and {prefix}num_heads {heads} must be 1 or more"
                )
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
        """L, patches per image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """d, values per patch."""
        return self.patch_size**2 * CHANNELS

    def num_visible(self, mask_ratio: float) -> int:
        """N_vis = int(L (1 - r)), rounded as MAE's own code does.

        Raises:
          ValueError: if no patch, or every patch, would be visible.
        """
        visible = int(self.num_patches * (1 - mask_ratio))
        if not 0 < visible < self.num_patches:
            raise ValueError(
                f"mask_ratio {mask_ratio} leaves {visible} of {self.num_patches} patches visible: "
                "at least one must be visible, and at least one masked"
            )
        return visible


def vit_tiny(**overrides: Any) -> MAEConfig:
    """ViT-Ti/16 at 224 with a small decoder; not in the MAE paper."""
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


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Every choice between the backbone and the logit; stored with a trained head.

    Attributes:
      num_runs: K, masking runs per image; 0 uses the encoder alone (fusion ``global``).
      anomaly: what the head reads of masked patches: ``statistics`` of a score (method.md 4), or
        energies and errors by frequency, ``bands`` (``model.bands``); with ``bands``, the fields
        score, mismatch_weight, statistics and sensitivity have no effect.
      mask_ratio: r, share of patches masked.
      masking: which patches a run shows: ``random`` (the paper's), ``disjoint`` (different patches
        in the runs of a group) or ``stratified`` (one patch of every stratum of texture).
      texture_temperature: τ of ``stratified``: within its stratum, a patch of texture T is shown
        with probability ∝ (T + 1)^(1/τ); a large τ, for example 1e9, draws uniformly.
      pooling: f_global is the CLS token (``cls``) or the mean of the patch tokens (``mean``).
      score: LCAS variant, one of ``SCORES``.
      mismatch_weight: λ.
      learn_mismatch_weight: train λ with the head; it starts at ``mismatch_weight``.
      statistics: which of ``STATISTICS`` the head reads; all three in the paper.
      sensitivity: how s3 is formed, ``run`` or ``patch`` (``lcas.summarize``).
      score_share: share of the masked patches of each run that s1, s2 and s3 summarise.
      share_by: which ones: the most textured (``texture``), or any, without regard to the pixels
        (``random``), a control of equal size.
      frequency: q, what the head reads of the image's own spectrum (``model.frequency``); fusions
        ``hybrid`` and ``frequency`` have a pathway for it, ``global`` does not read it, and all
        others read it beside the statistics.
      fusion: one of ``FUSIONS``.
      hidden: hidden width of MLP_δ; 0 makes it linear.
      clip: MLP_δ reads standardised values clipped to [-clip, clip]; 0 does not clip.
      dtype: of the backbone's activations; LCAS and head are always float32.
      attention: how the backbone's attention is computed: ``plain`` (``layers.attend``), or
        ``jax.nn.dot_product_attention`` by ``xla`` or ``cudnn``.  cuDNN takes bfloat16 and needs an
        NVIDIA GPU; elsewhere, ``cudnn`` is computed by ``xla``.  Results differ by rounding.
      run_layout: whether the K masked runs of a batch go through the backbone under ``vmap``, or
        as one batch K times as large (``fold``).  Results differ by rounding.
      uniform_variance: a patch is uniform if the variance of its ImageNet-normalised pixels is
        below; 1e-3 is a standard deviation of about 2 grey levels of 256.
      low_context_share: images with a larger share of uniform patches are flagged low-context.

    Raises:
      ValueError: naming the first impossible field, or fields that contradict each other.
    """

    num_runs: int = 2
    anomaly: Anomaly = "statistics"
    mask_ratio: float = 0.75
    pooling: Pooling = "cls"
    score: Score = "context_nll"
    mismatch_weight: float = 1.0
    learn_mismatch_weight: bool = False
    statistics: tuple[Statistic, ...] = ("variability", "mean_anomaly", "perturbation_sensitivity")
    sensitivity: Sensitivity = "run"
    fusion: Fusion = "additive"
    hidden: int = 256
    clip: float = 0.0
    dtype: Dtype = "float32"
    uniform_variance: float = 1e-3
    low_context_share: float = 0.5
    attention: AttentionKind = "plain"
    run_layout: RunLayout = "vmap"
    masking: Masking = "random"
    texture_temperature: float = 1.0
    score_share: float = 1.0
    share_by: ShareBy = "texture"
    frequency: Frequency = "none"

    @property
    def group_size(self) -> int:
        """G, number of runs whose visible patches are disjoint: ⌊1 / (1 - r)⌋, else 1.

        It is L // N_vis wherever L (1 - r) is whole.
        """
        return int(1 / (1 - self.mask_ratio) + 1e-9) if self.masking == "disjoint" else 1

    @property
    def reads_global(self) -> bool:
        """Whether the head reads f_global."""
        return self.fusion not in ("lcas", "frequency")

    @property
    def reads_frequency(self) -> bool:
        """Whether the head reads q."""
        return self.frequency != "none" and self.fusion != "global"

    @property
    def scores_patches(self) -> bool:
        """Whether masked patches are scored: not with K = 0, nor for the spectrum alone."""
        return self.num_runs > 0 and self.fusion != "frequency"

    @property
    def reads_texture(self) -> bool:
        """Whether the statistics are those of the most textured patches."""
        return self.num_runs > 0 and self.score_share < 1 and self.share_by == "texture"

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        self._check_masking()
        self._check_learned_weight()
        if self.num_runs == 0 and self.fusion not in ("global", "frequency"):
            raise ValueError(
                f"detector.num_runs = 0 leaves no anomaly scores for fusion {self.fusion!r}: "
                "use fusion 'global' or 'frequency', or num_runs of 1 or more"
            )
        if self.frequency == "none" and self.fusion in ("hybrid", "frequency"):
            raise ValueError(
                f"detector.fusion {self.fusion!r} reads detector.frequency, which is 'none': "
                "use radial, blocks or residual"
            )

    def _check_choices(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "anomaly": get_args(Anomaly),
            "pooling": get_args(Pooling),
            "score": SCORES,
            "masking": get_args(Masking),
            "share_by": get_args(ShareBy),
            "sensitivity": get_args(Sensitivity),
            "frequency": get_args(Frequency),
            "fusion": FUSIONS,
            "dtype": get_args(Dtype),
            "attention": get_args(AttentionKind),
            "run_layout": get_args(RunLayout),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"detector.{name} is {getattr(self, name)!r}: use one of {', '.join(allowed)}"
                )
        if self.attention == "cudnn" and self.dtype != "bfloat16":
            raise ValueError(
                f"detector.attention 'cudnn' needs detector.dtype 'bfloat16', is {self.dtype!r}: "
                "use 'plain' or 'xla' in float32"
            )
        if not self.statistics or not set(self.statistics) <= set(STATISTICS):
            raise ValueError(
                f"detector.statistics is {self.statistics}: use some of {', '.join(STATISTICS)}"
            )
        if len(set(self.statistics)) < len(self.statistics):
            raise ValueError(f"detector.statistics is {self.statistics}: name each once")

    def _check_ranges(self) -> None:
        for name in ("mask_ratio", "low_context_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"detector.{name} must lie in [0, 1], is {getattr(self, name)}")
        for name in ("mismatch_weight", "uniform_variance", "clip", "hidden", "num_runs"):
            if not getattr(self, name) >= 0:  # NaN is refused, too
                raise ValueError(f"detector.{name} must be 0 or more, is {getattr(self, name)}")

    def _check_masking(self) -> None:
        if not 0 < self.texture_temperature < math.inf:
            raise ValueError(
                f"detector.texture_temperature must be above 0 and finite, is "
                f"{self.texture_temperature}: use a large number to draw uniformly"
            )
        if not 0 < self.score_share <= 1:
            raise ValueError(f"detector.score_share must lie in (0, 1], is {self.score_share}")
        if self.score_share < 1 and self.anomaly != "statistics":
            raise ValueError(
                f"detector.score_share is {self.score_share}, but anomaly {self.anomaly!r} has no "
                "scores to choose from: use anomaly 'statistics', or score_share 1"
            )
        if self.masking == "disjoint" and not LEAST_RATIO <= self.mask_ratio < 1:
            raise ValueError(
                f"detector.masking 'disjoint' needs detector.mask_ratio of at least "
                f"{LEAST_RATIO:g} and below 1, is {self.mask_ratio}: two visible sets must fit "
                "into an image"
            )

    def _check_learned_weight(self) -> None:
        if not self.learn_mismatch_weight:
            return
        if self.mismatch_weight <= 0:
            raise ValueError(
                "detector.mismatch_weight is 0: with learn_mismatch_weight it is where λ starts, "
                "and must be above 0"
            )
        if (
            self.score not in WEIGHTED_SCORES
            or self.anomaly != "statistics"
            or self.fusion in ("global", "frequency")
        ):
            raise ValueError(
                "detector.learn_mismatch_weight needs a score and a fusion that use λ, is set with "
                f"anomaly {self.anomaly!r}, score {self.score!r} and fusion {self.fusion!r}"
            )


# Fields that came after the first version, and what settings without them mean.
LATER: dict[str, Any] = {
    "masking": "random",
    "texture_temperature": 1.0,
    "score_share": 1.0,
    "share_by": "texture",
    "frequency": "none",
}


def as_before(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a detector without those of ``LATER`` that change nothing.

    What is named by a hash of the fields keeps its name when a field is added.
    """
    return {name: value for name, value in fields.items() if (name, value) not in LATER.items()}
