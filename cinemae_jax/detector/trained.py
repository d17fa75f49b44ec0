"""A trained detector: backbone, heads, settings and the held-out scores that calibrate it."""

import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, struct, traverse_util
from jaxtyping import Float, Int

from cinemae_jax import __version__
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.records import HELD_OUT
from cinemae_jax.detector import calibration
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.features.extraction import Extractor
from cinemae_jax.features.sources import OnlineSet
from cinemae_jax.features.splits import Data
from cinemae_jax.model.cinemae import Backbone, num_params, num_statistics
from cinemae_jax.model.head import HeadState, Normalizer, init_params
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings


@struct.dataclass
class HeldOut:
    """Scores of the held-out training images, which calibrate the verdicts.

    Attributes:
      logit: (N, S) float32; NaN for an image that was not read or not scored.
      label: (N,) int32.
    """

    logit: Float[np.ndarray, "n s"]
    label: Int[np.ndarray, " n"]

    @classmethod
    def unknown(cls, count: int, num_seeds: int) -> "HeldOut":
        """Held-out images that were not scored."""
        logit = np.full((count, num_seeds), np.nan, np.float32)
        return cls(logit, np.zeros(count, np.int32))


@dataclasses.dataclass(frozen=True)
class TrainedDetector:
    """Backbone, head and the settings that they were trained under.

    Attributes:
      backbone: frozen; the heads were trained on it.
      heads: trained parameters and input normalizers, with a leading axis of seeds.
      settings: of the training run, including preprocessing.
      step: of the checkpoint.
      held_out: scores that calibrate the verdicts; training generators only.
      held_out_images: fingerprint of those images.
      held_out_sources: number of the source of each, where they come from several; else empty.
    """

    backbone: Backbone
    heads: HeadState
    settings: Settings
    step: int
    held_out: HeldOut
    held_out_images: str
    held_out_sources: tuple[int, ...] = ()

    def online(self, images: Catalog, replicas: Replicas) -> OnlineSet:
        """Images as this detector reads them, with their features."""
        config = self.settings
        extractor = Extractor(config.detector, config.masks, self.backbone, replicas)
        return OnlineSet(images, extractor, config.data, config.eval.batch_size)

    def devices(self) -> Replicas:
        """As many devices as divide every batch size of its recipe."""
        config = self.settings
        sizes = config.train.batch_size, config.eval.batch_size, config.features.batch_size
        return Replicas(tuple(jax.devices()[: math.gcd(jax.device_count(), *sizes)]))

    @property
    def mask_key(self) -> jax.Array:
        """The base key of all its masks."""
        return self.settings.masks.key

    @property
    def first_head(self) -> HeadState:
        """The head of the first seed, without the axis of seeds."""
        return jax.tree.map(lambda leaf: leaf[0], self.heads)

    def calibration(self, head: int = 0) -> Calibration:
        """Probabilities and thresholds of one head, at the error rates of its ``settings.eval``."""
        scored = np.isfinite(self.held_out.logit[:, head])
        return calibration.fit(
            self.held_out.logit[scored, head],
            self.held_out.label[scored],
            fpr=self.settings.eval.fpr,
            fnr=self.settings.eval.fnr,
            images=self.held_out_images,
            sources=np.array(self.held_out_sources, int)[scored] if self.held_out_sources else (),
        )


# The kind that the metadata of a checkpoint names: other jobs write checkpoints of other kinds.
KIND = "detector"


def metadata(config: Settings, backbone: Backbone, data: Data) -> dict[str, Any]:
    """The metadata of a checkpoint.

    Args:
      config: of the run.
      backbone: that the head is trained on.
      data: images that it is trained on, and validated and calibrated on.
    """
    return {
        "kind": KIND,
        "version": __version__,
        **backbone.hashes,
        "train_images": data.train.fingerprint,
        "held_out_images": data.validation.fingerprint,
        "num_held_out": len(data.validation),
        **sources_of(data),
        "settings": json.loads(json.dumps(dataclasses.asdict(config))),
    }


def sources_of(data: Data) -> dict[str, list[int]]:
    """The sources of held-out images that a list names (split ``held_out``), as metadata.

    Photographs of one generator are one source.
    """
    if HELD_OUT not in data.validation.splits:
        return {}
    generators = data.validation.table["generator"].to_pylist()
    _, numbers = np.unique(generators, return_inverse=True)
    return {"held_out_sources": numbers.tolist()}


def head_template(config: Settings, backbone: Backbone) -> HeadState:
    """Fresh heads: random parameters, one set per seed, and empty normalizers; leading axis S."""
    width, count = backbone.global_width, num_statistics(config.detector, backbone.config)
    heads = [
        init_params(config.detector, jax.random.key(config.seed + i), width, count)
        for i in range(config.num_seeds)
    ]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *heads)
    zeros = (np.zeros((config.num_seeds, n), np.float32) for n in (width, width, count, count))
    return HeadState(params, Normalizer(*zeros))


def head_sha256(heads: HeadState) -> str:
    """sha256 over name, type, shape and bytes of every array, sorted by name."""
    digest = hashlib.sha256()
    flat = traverse_util.flatten_dict(serialization.to_state_dict(heads), sep="/")
    for name, leaf in sorted(flat.items()):
        values = np.ascontiguousarray(leaf)
        digest.update(f"{name} {values.dtype.str} {values.shape};".encode() + values.tobytes())
    return digest.hexdigest()


def describe(backbone: Backbone) -> str:
    """A backbone in one phrase."""
    c = backbone.config
    millions = num_params(backbone.params) / 1e6
    phrase = (
        f"MAE {c.width}x{c.depth} patch {c.patch_size} at {c.image_size}, target {c.target}, "
        f"{millions:.1f} M parameters, sha256 {backbone.sha256[:12]}"
    )
    if not (encoder := backbone.encoder):
        return phrase
    e = encoder.config
    return (
        f"{phrase}; f_global from {e.family} {e.width}x{e.depth} patch {e.patch_size} at "
        f"{encoder.preprocessing.size}, sha256 {encoder.sha256[:12]}"
    )
