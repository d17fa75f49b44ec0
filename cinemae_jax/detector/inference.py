"""The detector as pure functions of uint8 crops and example ids; logits or heat maps out.

``Detector`` compiles these functions, and ``export`` serialises them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key, UInt8, UInt32

from cinemae_jax.data.transforms import Pixels, Views
from cinemae_jax.features import extraction
from cinemae_jax.features.extraction import DeviceBatch
from cinemae_jax.model import lcas
from cinemae_jax.model.cinemae import Backbone, logits
from cinemae_jax.model.config import DetectorConfig, Score
from cinemae_jax.model.head import HeadState, learned_weight


@struct.dataclass
class ImageScores:
    """Scores of a batch.

    Attributes:
      logit: of every group of K runs, averaged over crops; positive for AI.
      uniform_share: share of nearly uniform patches.
    """

    logit: Float[Array, "b g"]
    uniform_share: Float[Array, " b"]


def make_logits(config: DetectorConfig, num_groups: int = 1) -> Callable[..., ImageScores]:
    """A function of (backbone, head, key, images (B, n, S, S, 3), example ids (B,)).

    With a global encoder, the images are ``Views`` with an axis B in front.

    The distribution of the statistics depends on the number of runs K, that of the third most of
    all.  More runs therefore form further groups of K, and each group is scored as in training.

    Args:
      config: of the detector.
      num_groups: number of groups, of which the first is that of evaluation.
    """
    runs = extraction.first_runs(
        config.num_runs, num_draws=num_groups, group_size=config.group_size
    )
    extract = extraction.make_extract(config, runs)

    def score(
        backbone: Backbone,
        head: HeadState,
        key: Key[Array, ""],
        images: Pixels,
        example_ids: UInt32[Array, " b"],
    ) -> ImageScores:
        crops = images.image if isinstance(images, Views) else images
        num_crops, num_patches = crops.shape[1], backbone.config.num_patches

        def over_crops(rows: Float[Array, " bn"]) -> Float[Array, " b"]:
            return rows.reshape(-1, num_crops).mean(axis=1)

        features = extract(backbone, key, _batch(images, example_ids))

        def apart(leaf: Array) -> Array:
            return leaf.reshape(leaf.shape[0], num_groups, config.num_runs, *leaf.shape[2:])

        def of_group(terms: lcas.Terms, masked: Int[Array, "bn k m"]) -> Float[Array, " b"]:
            group = dataclasses.replace(features, terms=terms, masked=masked)
            return over_crops(logits(head, group, config, num_patches)[0])

        groups = jax.tree.map(apart, (features.terms, features.masked))
        by_group = jax.vmap(of_group, in_axes=1, out_axes=1)(*groups)
        return ImageScores(by_group, over_crops(jnp.asarray(features.uniform_share)))

    return score


def make_maps(config: DetectorConfig, num_runs: int, score: Score) -> Callable[..., tuple]:
    """A function of (backbone, head, key, images (n, S, S, 3), example id ()).

    It returns the mean score of every patch over the runs that masked it, (n, L), NaN if none did,
    and the number of these runs, (n, L).

    Args:
      config: of the detector.
      num_runs: uses the runs 0 … num_runs-1, of which the first are those of the score.
      score: LCAS variant.
    """
    extract = extraction.make_extract(config, extraction.first_runs(num_runs), whole=True)

    def maps(
        backbone: Backbone,
        head: HeadState,
        key: Key[Array, ""],
        images: UInt8[Array, "n s s 3"],
        example_id: UInt32[Array, ""],
    ) -> tuple[Float[Array, "n l"], Int[Array, "n l"]]:
        own = dataclasses.replace(backbone, encoder=None)  # maps read no f_global
        features = extract(own, key, _batch(images[None], example_id[None]))
        learned = learned_weight(head.params)
        weight = config.mismatch_weight if learned is None else learned
        values = lcas.score(features.terms, score, weight)

        def of_crop(
            values: Float[Array, "k m"], masked: Int[Array, "k m"]
        ) -> tuple[Float[Array, " l"], Int[Array, " l"]]:
            none = jnp.zeros(backbone.config.num_patches)
            shown = none.astype(jnp.int32).at[masked].add(1)
            return none.at[masked].add(values) / shown, shown

        return jax.vmap(of_crop)(values, jnp.asarray(features.masked))

    return maps


def _batch(images: Any, example_ids: UInt32[Array, " b"]) -> DeviceBatch:
    """Crops as rows; all crops of an image share its masks, as in evaluation.

    Args:
      images: ``Pixels`` with an axis B in front, of the host or on a device.
      example_ids: one per image.
    """
    views = images._asdict() if isinstance(images, Views) else {"image": images}
    rows = {name: jnp.asarray(x).reshape(-1, *x.shape[2:]) for name, x in views.items()}
    ids = jnp.repeat(example_ids, views["image"].shape[1])
    return rows | {"example_id": ids, "epoch": jnp.zeros_like(ids, jnp.int32)}
