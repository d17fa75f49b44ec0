"""The trained part: MLP_δ on the statistics, fusion with the global feature, classifier (METHOD 5).

In: standardised global feature (B, D) and statistics (B, S).  Out: logits (B,), positive for AI.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from cinemae_jax.model.config import FUSIONS, DetectorConfig, Fusion
from cinemae_jax.model.layers import LayerNorm

# Name of the module that alone reads f_global in ``logit`` fusion; it has its own weight decay.
GLOBAL_PATHWAY = "global_classifier"

STD_FLOOR = 1e-6
_Dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)  # float32, on TPU too
GATE_BIAS = 2.0  # sigmoid(2) = 0.88: fusion starts near f_global


@struct.dataclass
class Normalizer:
    """Training-set mean and standard deviation of the head's inputs; stored, never optimised."""

    global_mean: Any  # (D,)
    global_std: Any  # (D,)
    stats_mean: Any  # (S,)
    stats_std: Any  # (S,)

    def __call__(
        self, f_global: Float[Array, "b d"], stats: Float[Array, "b s"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b s"]]:
        f = (f_global - self.global_mean[None]) / jnp.maximum(self.global_std, STD_FLOOR)[None]
        s = (stats - self.stats_mean[None]) / jnp.maximum(self.stats_std, STD_FLOOR)[None]
        return f, s


class AnomalyMLP(nn.Module):
    """MLP_δ: Dense → GELU → Dense; the last layer starts at zero, so fusion starts at f_global.

    Without a hidden layer (``hidden`` 0) it is that last layer alone.
    """

    hidden: int
    width: int

    @nn.compact
    def __call__(self, stats: Float[Array, "b s"]) -> Float[Array, "b w"]:
        y = jax.nn.gelu(_Dense(self.hidden)(stats), approximate=False) if self.hidden else stats
        return _Dense(self.width, kernel_init=nn.initializers.zeros)(y)


class Head(nn.Module):
    """Fusion and classifier, float32.

    Attributes:
      fusion: ``additive``, ``concat`` or ``gate`` of the paper; ``logit`` joins two separate
        pathways only at the logit; ``global`` and ``lcas`` are one pathway alone.
      hidden: width of MLP_δ's hidden layer; 0 makes it linear, and ``lcas`` a linear classifier.
    """

    fusion: Fusion = "additive"
    hidden: int = 256

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise ValueError(f"unknown fusion {self.fusion!r}: use one of {', '.join(FUSIONS)}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, f_global: Float[Array, "b d"], stats: Float[Array, "b s"]
    ) -> Float[Array, " b"]:
        width = f_global.shape[-1]
        if self.fusion == "logit":
            by_content = _Dense(1, name=GLOBAL_PATHWAY)(f_global)
            by_anomaly = AnomalyMLP(self.hidden, 1, name="mlp")(stats)
            return (by_content + by_anomaly)[:, 0]
        if self.fusion == "lcas" and not self.hidden:  # linear all the way
            return AnomalyMLP(0, 1, name="mlp")(stats)[:, 0]
        if self.fusion == "global":
            fused = f_global
        else:
            f_anomaly = AnomalyMLP(self.hidden, width, name="mlp")(stats)
            fused = self._fuse(f_global, f_anomaly)
        return _Dense(1, name="classifier")(LayerNorm(name="norm")(fused))[:, 0]

    def _fuse(
        self, f_global: Float[Array, "b d"], f_anomaly: Float[Array, "b d"]
    ) -> Float[Array, "b f"]:
        if self.fusion == "lcas":
            return f_anomaly
        if self.fusion == "additive":
            return f_global + f_anomaly
        both = jnp.concatenate([f_global, f_anomaly], axis=-1)
        if self.fusion == "concat":
            return both
        bias = nn.initializers.constant(GATE_BIAS)
        gate = jax.nn.sigmoid(_Dense(f_global.shape[-1], bias_init=bias, name="gate")(both))
        return gate * f_global + (1 - gate) * f_anomaly


@struct.dataclass
class HeadState:
    """Everything of a trained detector that is not the backbone.

    Attributes:
      params: of ``Head``; the only thing that the optimiser holds.
      normalizer: training-set statistics of the inputs.
    """

    params: Any
    normalizer: Normalizer


# Name of the parameter log λ, where λ is learned: so λ stays positive.
LOG_MISMATCH_WEIGHT = "log_mismatch_weight"


def init_params(config: DetectorConfig, key: Array, width: int, num_stats: int) -> Any:
    """Fresh head parameters for global features of a width and a number of statistics."""
    inputs = jnp.zeros((1, width)), jnp.zeros((1, num_stats))
    params = head_of(config).init(key, *inputs)["params"]
    if config.learn_mismatch_weight:
        params = params | {LOG_MISMATCH_WEIGHT: jnp.log(jnp.float32(config.mismatch_weight))}
    return params


def learned_weight(params: Any) -> Float[Array, ""] | None:
    """λ, if it is one of the parameters."""
    return jnp.exp(params[LOG_MISMATCH_WEIGHT]) if LOG_MISMATCH_WEIGHT in params else None


def head_of(config: DetectorConfig) -> Head:
    """The head that a configuration describes."""
    return Head(fusion=config.fusion, hidden=config.hidden)
