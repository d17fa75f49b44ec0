"""Features to scores, by every head, on all devices."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from flax import struct
from jaxtyping import Float

from cinemae_jax.data.loader import Batch
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector.trained import HeldOut
from cinemae_jax.features.extraction import Featured, ahead
from cinemae_jax.features.sources import FeatureSet
from cinemae_jax.model.arrays import AnyArray
from cinemae_jax.model.cinemae import Features, logits
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.head import HeadState
from cinemae_jax.runtime import preemption
from cinemae_jax.runtime.devices import Replicas, merge


@struct.dataclass
class Scores:
    """Per example.

    Attributes:
      logit: (B, S), positive for AI.
      stats: (B, S, number of statistics), as the heads take them.
      uniform_share: (B,), share of nearly uniform patches.
    """

    logit: Float[AnyArray, "*devices b s"]
    stats: Float[AnyArray, "*devices b s n"]
    uniform_share: Float[AnyArray, "*devices b"]


def make_score(config: DetectorConfig, num_patches: int) -> Callable[[HeadState, Features], Scores]:
    """Scores of one device's share of a batch, by all heads on the same runs 0 … K-1."""

    def score(heads: HeadState, features: Features) -> Scores:
        by_head = jax.vmap(lambda head: logits(head, features, config, num_patches), out_axes=1)
        return Scores(*by_head(heads), features.uniform_share)

    return score


class Scorer:
    """Scores features on all devices; compiled once for every set."""

    def __init__(self, config: DetectorConfig, num_patches: int, replicas: Replicas) -> None:
        self._replicas = replicas
        self._score = replicas.pmap_map(make_score(config, num_patches), replicated=1)

    def __call__(
        self, heads: HeadState, batches: Iterable[Featured]
    ) -> Iterator[tuple[Batch, Scores]]:
        """(batch, its scores as NumPy), of all hosts and on all of them, padding included.

        The batch holds row, label, validity and error.  Scores of several crops of an image are
        averaged.  A batch is fetched after the next one was dispatched, so that decoding, transfer
        and computation overlap.
        """
        heads = self._replicas.replicate(heads)
        sent = ((batch, self._score(heads, features)) for batch, features in batches)
        for batch, scores in ahead(sent):
            averaged = self._replicas.gather(_average_crops(batch, scores))
            yield self._replicas.gather_batch(batch), averaged


def score_held_out(
    heads: HeadState, held_out: FeatureSet, scorer: Scorer, bad: BadImages
) -> HeldOut:
    """Scores of the held-out images of the training generators by all heads."""
    found = HeldOut.unknown(len(held_out.images), len(jax.tree.leaves(heads)[0]))
    for batch, scores in scorer(heads, preemption.checked(held_out.scoring())):
        bad.note(held_out.images, batch)
        rows = batch["row"][batch["valid"]]
        found.logit[rows] = scores.logit[batch["valid"]]
        found.label[rows] = batch["label"][batch["valid"]]
    return found


def _average_crops(batch: Batch, scores: Scores) -> Scores:
    def average(leaf: np.ndarray) -> np.ndarray:
        return leaf.reshape(len(batch["row"]), -1, *leaf.shape[1:]).mean(axis=1)

    return jax.tree.map(average, merge(scores))
