"""The trained part: MLP_δ on the statistics, fusion with f_global, classifier (method.md 5).

In: standardised global feature (B, D) and statistics (B, S), with the frequency q (method.md 5) at
their end, if it is read.  Out: logits (B,), positive for ai.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Key

from cinemae_jax.model import frequency
from cinemae_jax.model.arrays import AnyArray, Params
from cinemae_jax.model.config import FUSIONS, DetectorConfig, Fusion
from cinemae_jax.model.layers import LayerNorm

# Modules that read f_global alone (``logit``, ``hybrid``), and q alone (``hybrid``,
# ``frequency``); each has its own weight decay.
GLOBAL_PATHWAY = "global_classifier"
FREQUENCY_PATHWAY = "frequency_mlp"
# Parameter log λ, where λ is learned: λ stays positive.
LOG_MISMATCH_WEIGHT = "log_mismatch_weight"

STD_FLOOR = 1e-6
GATE_BIAS = 2.0  # sigmoid(2) = 0.88: fusion starts near f_global
_Dense = functools.partial(nn.Dense, precision=jax.lax.Precision.HIGHEST)  # float32, on TPU too
_RANDOM = nn.initializers.lecun_normal()


@struct.dataclass
class Normalizer:
    """Training-set mean and standard deviation of the head's inputs; stored, never optimised.

    Float32.  ``seeds`` is () for one head, and the leading axis of heads that are trained together.
    """

    global_mean: Float[AnyArray, "*seeds d"]
    global_std: Float[AnyArray, "*seeds d"]
    stats_mean: Float[AnyArray, "*seeds s"]
    stats_std: Float[AnyArray, "*seeds s"]

    def __call__(
        self, f_global: Float[Array, "b d"], stats: Float[Array, "b s"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b s"]]:
        f = (f_global - self.global_mean[None]) / jnp.maximum(self.global_std, STD_FLOOR)[None]
        s = (stats - self.stats_mean[None]) / jnp.maximum(self.stats_std, STD_FLOOR)[None]
        return f, s


class AnomalyMLP(nn.Module):
    """MLP_δ: Dense → GELU → Dense; with ``hidden`` 0, the last Dense alone.

    The last layer starts at zero, so fusion starts at f_global.  ``alone`` before a LayerNorm, it
    starts at random: the first step away from zero would change every logit by about 10.
    """

    hidden: int
    width: int
    alone: bool = False

    @nn.compact
    def __call__(self, stats: Float[Array, "b s"]) -> Float[Array, "b w"]:
        y = jax.nn.gelu(_Dense(self.hidden)(stats), approximate=False) if self.hidden else stats
        if self.alone:
            return _Dense(self.width, bias_init=nn.initializers.normal(1.0))(y)
        return _Dense(self.width, kernel_init=nn.initializers.zeros)(y)


class Head(nn.Module):
    """Fusion and classifier, float32.

    Attributes:
      fusion: ``additive``, ``concat`` or ``gate`` of the paper; ``logit`` joins two separate
        pathways only at the logit; ``hybrid`` joins three, which all start at zero; ``global``,
        ``lcas`` and ``frequency`` are one pathway alone.
      hidden: width of MLP_δ's hidden layer; 0 makes it linear, and ``lcas`` a linear classifier.
      num_frequency: length of q, the last of the statistics; only ``hybrid`` tells it apart.

    Raises:
      ValueError: if the fusion is unknown.
    """

    fusion: Fusion = "additive"
    hidden: int = 256
    num_frequency: int = 0

    def __post_init__(self) -> None:
        if self.fusion not in FUSIONS:
            raise ValueError(f"unknown fusion {self.fusion!r}: use one of {', '.join(FUSIONS)}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, f_global: Float[Array, "b d"], stats: Float[Array, "b s"]
    ) -> Float[Array, " b"]:
        width = f_global.shape[-1]
        if self.fusion == "frequency":
            return AnomalyMLP(self.hidden, 1, name=FREQUENCY_PATHWAY)(stats)[:, 0]
        if self.fusion == "hybrid":
            s, q = jnp.split(stats, [stats.shape[-1] - self.num_frequency], axis=-1)
            by_content = _Dense(1, kernel_init=nn.initializers.zeros, name=GLOBAL_PATHWAY)(f_global)
            by_anomaly = AnomalyMLP(self.hidden, 1, name="mlp")(s)
            by_frequency = AnomalyMLP(self.hidden, 1, name=FREQUENCY_PATHWAY)(q)
            return (by_content + by_anomaly + by_frequency)[:, 0]
        if self.fusion == "logit":
            by_content = _Dense(1, name=GLOBAL_PATHWAY)(f_global)
            by_anomaly = AnomalyMLP(self.hidden, 1, name="mlp")(stats)
            return (by_content + by_anomaly)[:, 0]
        if self.fusion == "lcas" and not self.hidden:  # linear all the way
            return AnomalyMLP(0, 1, name="mlp")(stats)[:, 0]
        if self.fusion == "lcas":
            f_anomaly = AnomalyMLP(self.hidden, width, alone=True, name="mlp")(stats)
            return self._classify(f_anomaly, nn.initializers.zeros)
        if self.fusion == "global":
            return self._classify(f_global)
        f_anomaly = AnomalyMLP(self.hidden, width, name="mlp")(stats)
        return self._classify(self._fuse(f_global, f_anomaly))

    def _classify(
        self,
        fused: Float[Array, "b f"],
        kernel_init: nn.initializers.Initializer = _RANDOM,
    ) -> Float[Array, " b"]:
        dense = _Dense(1, kernel_init=kernel_init, name="classifier")
        return dense(LayerNorm(name="norm")(fused))[:, 0]

    def _fuse(
        self, f_global: Float[Array, "b d"], f_anomaly: Float[Array, "b d"]
    ) -> Float[Array, "b f"]:
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
      params: of ``Head``, and log λ where it is learned; the optimiser holds nothing else.
      normalizer: training-set statistics of the inputs.
    """

    params: Params
    normalizer: Normalizer


def init_params(config: DetectorConfig, key: Key[Array, ""], width: int, num_stats: int) -> Params:
    """Fresh float32 parameters of a head for f_global (B, width) and statistics (B, num_stats)."""
    inputs = jnp.zeros((1, width)), jnp.zeros((1, num_stats))
    params: Params = head_of(config).init(key, *inputs)["params"]
    if config.learn_mismatch_weight:
        params = {**params, LOG_MISMATCH_WEIGHT: jnp.log(jnp.float32(config.mismatch_weight))}
    return params


def learned_weight(params: Params) -> Float[Array, ""] | None:
    """λ if it is learned, else None."""
    return jnp.exp(params[LOG_MISMATCH_WEIGHT]) if LOG_MISMATCH_WEIGHT in params else None


def head_of(config: DetectorConfig) -> Head:
    """The head that a configuration describes."""
    return Head(config.fusion, config.hidden, frequency.num_values(config.frequency))
