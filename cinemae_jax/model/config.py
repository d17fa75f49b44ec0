"""What a backbone and a detector are made of: frozen choices, checked when they are made."""

import dataclasses
from typing import Any, Literal, get_args

CHANNELS = 3

Target = Literal["raw", "norm_pix"]
Score = Literal[
    "deviation_plus_mismatch", "mismatch", "reconstruction_deviation", "conditional_nll", "relative"
]
SCORES: tuple[str, ...] = get_args(Score)
# Scores that can be negative: their statistics enter the head as they are, not as log1p.
LOGARITHMIC_SCORES = ("conditional_nll", "relative")

Sensitivity = Literal["run", "patch"]
Statistic = Literal["variability", "mean_anomaly", "perturbation_sensitivity"]
# s1, s2, s3.
STATISTICS: tuple[str, ...] = get_args(Statistic)
Anomaly = Literal["statistics", "bands"]
Fusion = Literal["additive", "concat", "gate", "logit", "global", "lcas"]
FUSIONS: tuple[str, ...] = get_args(Fusion)
Pooling = Literal["cls", "mean"]
Dtype = Literal["float32", "bfloat16"]


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
            if min(width, heads) < 1 or width % 4:
                raise ValueError(
                    f"MAEConfig.{prefix}width {width} must be a multiple of 4, for the position "
                    f"table, and {prefix}num_heads {heads} positive"
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


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """Every choice between the backbone and the logit; stored with a trained head.

    Attributes:
      num_runs: K, masking runs an image; 0 leaves the encoder alone (fusion ``global``).
      anomaly: what the head reads of the masked patches: ``statistics`` of one score (METHOD 4), or
        energies and errors by frequency ``bands`` (``model.bands``), for which score, λ, statistics
        and sensitivity mean nothing.
      mask_ratio: r, share of patches masked.
      pooling: f_global is the CLS token (``cls``) or the mean of the patch tokens (``mean``).
      score: LCAS variant, one of ``SCORES``.
      mismatch_weight: λ.
      learn_mismatch_weight: optimise λ with the head, from ``mismatch_weight`` on.
      statistics: which of ``STATISTICS`` the head reads; all three in the paper.
      sensitivity: how s3 is formed, ``run`` or ``patch``.
      fusion: one of ``FUSIONS``.
      hidden: hidden width of MLP_δ; 0 makes it linear.
      clip: largest standardised value, either way, of what MLP_δ reads; 0 for no limit.
      dtype: of the backbone's activations; LCAS and head are float32 always.
      uniform_variance: variance within a patch, ImageNet-normalised pixels, below which it counts
        as uniform; 1e-3 is a standard deviation of about 2 grey levels.
      low_context_share: share of uniform patches above which an image is flagged low-context.

    Raises:
      ValueError: if a field, or a pair of fields, makes no sense; the message names it.
    """

    num_runs: int = 2
    anomaly: Anomaly = "statistics"
    mask_ratio: float = 0.75
    pooling: Pooling = "cls"
    score: Score = "deviation_plus_mismatch"
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

    @property
    def reads_global(self) -> bool:
        """Whether the head reads f_global."""
        return self.fusion != "lcas"

    def __post_init__(self) -> None:
        choices: dict[str, tuple[str, ...]] = {
            "anomaly": get_args(Anomaly),
            "pooling": get_args(Pooling),
            "score": SCORES,
            "sensitivity": get_args(Sensitivity),
            "fusion": get_args(Fusion),
            "dtype": get_args(Dtype),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"detector.{name} is {getattr(self, name)!r}: use one of {', '.join(allowed)}"
                )
        for name, low, high in (
            ("mask_ratio", 0.0, 1.0),
            ("mismatch_weight", 0.0, float("inf")),
            ("uniform_variance", 0.0, float("inf")),
            ("clip", 0.0, float("inf")),
            ("low_context_share", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(
                    f"detector.{name} must lie in [{low:g}, {high:g}], is {getattr(self, name)}"
                )
        if not self.statistics or not set(self.statistics) <= set(STATISTICS):
            raise ValueError(
                f"detector.statistics is {self.statistics}: use some of {', '.join(STATISTICS)}"
            )
        if self.learn_mismatch_weight and self.mismatch_weight <= 0:
            raise ValueError("detector.learn_mismatch_weight starts at mismatch_weight: above 0")
        reads_weight = self.score in ("deviation_plus_mismatch", "reconstruction_deviation")
        if self.learn_mismatch_weight and not (
            reads_weight and self.anomaly == "statistics" and self.fusion != "global"
        ):
            raise ValueError(
                "detector.learn_mismatch_weight has no weight to learn: of anomaly "
                f"{self.anomaly!r}, score {self.score!r} and fusion {self.fusion!r} one reads none"
            )
        if len(set(self.statistics)) < len(self.statistics):
            raise ValueError(f"detector.statistics is {self.statistics}: name each once")
        if self.hidden < 0:
            raise ValueError(f"detector.hidden must be 0 or more, is {self.hidden}")
        if self.num_runs < 0:
            raise ValueError(f"detector.num_runs must be 0 or more, is {self.num_runs}")
        if self.num_runs == 0 and self.fusion != "global":
            raise ValueError(
                f"detector.num_runs = 0 leaves no anomaly scores for fusion {self.fusion!r}: "
                "use fusion 'global' or num_runs of 1 or more"
            )
