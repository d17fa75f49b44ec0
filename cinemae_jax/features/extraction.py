"""The frozen program: images to features on all devices."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cinemae_jax.data.loader import Batch
from cinemae_jax.model import masking
from cinemae_jax.model.cinemae import (
    Backbone,
    Features,
    Reconstruct,
    encode,
    extract_features,
    kernels_in,
)
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.masking import Masks
from cinemae_jax.model.vit import Encoder
from cinemae_jax.runtime.devices import Replicas

# Entries of a loader's batch that the backbone needs; with a global encoder, GLOBAL_INPUT too.
INPUTS = ("image", "example_id", "epoch")
GLOBAL_INPUT = "global_image"

DeviceBatch = dict[str, Array]
# Keys and epochs of some examples to the numbers of their masking runs.
Runs = Callable[[Key[Array, " b"], Int[Array, " b"]], Int[Array, "b r"]]

# A batch of this host and its features on the devices, (local devices, B / local devices, ...).
#
# Of the batch, ``row``, ``label``, ``valid`` and ``error`` are there whatever the kind of set.
Featured = tuple[Batch, Features]


# --- the frozen side ----------------------------------------------------------------------------


def first_runs(num_runs: int, *, num_draws: int = 1, group_size: int = 1) -> Runs:
    """Runs 0 … K-1 of every example, then those of further draws (``masking.first_runs``).

    One draw is for evaluation, and for what a bank stores.
    """
    numbers = masking.first_runs(num_runs, num_draws=num_draws, group_size=group_size).reshape(-1)
    return lambda keys, epoch: jnp.broadcast_to(numbers, (*keys.shape, len(numbers)))


def drawn_runs(masks: Masks) -> Runs:
    """The S·K runs of an example in an epoch of training (``masking.draw_runs``)."""

    def runs(keys: Key[Array, " b"], epoch: Int[Array, " b"]) -> Int[Array, "b r"]:
        drawn = masking.draw_runs(
            keys,
            epoch,
            num_runs=masks.num_runs,
            num_stored=masks.num_stored,
            num_seeds=masks.num_seeds,
            group_size=masks.group_size,
        )
        return drawn.reshape(len(epoch), -1)

    return runs


def make_extract(
    config: DetectorConfig,
    runs: Runs,
    *,
    whole: bool = False,
    reconstruct: Reconstruct | None = None,
) -> Callable[[Backbone, Key[Array, ""], DeviceBatch], Features]:
    """Features of one device's share of a batch of images (``INPUTS``, ``GLOBAL_INPUT``).

    A mask depends on nothing but (key, example id, run).

    Args:
      config: of the detector.
      runs: masking runs of each example.
      whole: keep what this detector's head does not read, for others that may (a bank).  Without,
        XLA drops their computation: in fusion ``lcas`` the unmasked pass, which is most of the
        work, and in ``frequency`` the whole backbone.
    """

    def extract(backbone: Backbone, key: Key[Array, ""], batch: DeviceBatch) -> Features:
        keys = masking.example_keys(key, batch["example_id"])
        wanted = runs(keys, batch["epoch"])
        features = extract_features(
            backbone,
            batch["image"],
            keys,
            wanted,
            config,
            reconstruct,
            global_images=batch.get(GLOBAL_INPUT),
        )
        return features if whole else _without_unread(features, config)

    return extract


def _without_unread(features: Features, config: DetectorConfig) -> Features:
    """Zeros for what the head does not read, and no spectrum."""
    if not config.reads_global:
        features = dataclasses.replace(features, f_global=jnp.zeros_like(features.f_global))
    if not config.scores_patches:
        none = jax.tree.map(jnp.zeros_like, features.terms)
        features = dataclasses.replace(features, terms=none)
    if not config.reads_frequency:
        features = dataclasses.replace(features, frequency=None)
    return features


# --- on all devices -----------------------------------------------------------------------------


class Extractor:
    """The frozen backbone on all devices: placed once, compiled once for each kind of use."""

    def __init__(
        self,
        detector: DetectorConfig,
        masks: Masks,
        backbone: Backbone,
        replicas: Replicas,
        *,
        reconstruct: Reconstruct | None = None,
        whole: bool = False,
    ) -> None:
        """
        Args:
          detector: what its head reads.
          masks: which masking runs an image gets.
          backbone: frozen.
          replicas: devices that share every batch.
          reconstruct: stands in for the MAE's reconstruction; None for the MAE's own.
          whole: keep what this detector's head does not read, in training and scoring too.
        """
        self.detector, self.masks = detector, masks
        self.model, self.replicas = backbone.config, replicas
        self.preprocessing = backbone.preprocessing
        self._reconstruct, self._whole = reconstruct, whole
        self.use(backbone)

    def use(self, backbone: Backbone) -> None:
        """Extracts with another backbone of the same architecture from now on; compiles nothing."""
        placed = backbone.in_dtype(self.detector.dtype)
        self._frozen = self.replicas.replicate((placed, self.masks.key))

    @functools.cached_property
    def training(self) -> Any:
        """Extraction of the runs that an epoch of training draws."""
        return self._compiled(drawn_runs(self.masks))

    @functools.cached_property
    def scoring(self) -> Any:
        """Extraction of the runs that a score rests on."""
        masks = self.masks
        draws = {"num_draws": masks.num_draws, "group_size": masks.group_size}
        return self._compiled(first_runs(masks.num_runs, **draws))

    @functools.cached_property
    def storing(self) -> Any:
        """Extraction of the runs that a bank holds."""
        return self._compiled(first_runs(self.masks.num_stored), whole=True)

    def _compiled(self, runs: Runs, *, whole: bool = False) -> Any:
        extract = make_extract(
            self.detector, runs, whole=whole or self._whole, reconstruct=self._reconstruct
        )
        return self.replicas.pmap_map(extract, replicated=2)

    def __call__(self, extract: Any, batches: Iterable[Batch]) -> Iterator[Featured]:
        """Features of batches; several crops of an image become rows that follow each other."""
        for batch in batches:
            yield batch, self.of(extract, batch)

    def of(self, extract: Any, batch: Batch) -> Features:
        """Features of one batch by one of the programs above."""
        crops = math.prod(batch["image"].shape[1:-3])
        sent = {name: np.repeat(batch[name], crops, axis=0) for name in ("example_id", "epoch")}
        for name in ("image", GLOBAL_INPUT) if self.preprocessing else ("image",):
            sent[name] = _squares(batch[name])
        features: Features = extract(*self._frozen, self.replicas.split(sent))
        return features


class Encoding:
    """A global encoder on all devices: placed once, compiled once."""

    def __init__(self, detector: DetectorConfig, encoder: Encoder, replicas: Replicas) -> None:
        """
        Args:
          detector: says the precision.
          encoder: frozen.
          replicas: devices that share every batch.
        """
        placed = kernels_in(detector.dtype, encoder)
        self._replicas, self._frozen = replicas, replicas.replicate((placed,))

        def of_device(frozen: Encoder, images: Array) -> Array:
            return encode(frozen, images, detector)

        self._encode = replicas.pmap_map(of_device, replicated=1)

    def of(self, batch: Batch) -> Float[Array, "devices g d"]:
        """f_global of a batch's global images: (devices, squares / devices, D)."""
        squares = self._replicas.split(_squares(batch[GLOBAL_INPUT]))
        f_global: Array = self._encode(*self._frozen, squares)
        return f_global


def _squares(pixels: np.ndarray) -> np.ndarray:
    """(B, ..., H, W, 3) to rows (B · ..., H, W, 3)."""
    return pixels.reshape(-1, *pixels.shape[-3:])


T = TypeVar("T")


def ahead(dispatched: Iterable[T]) -> Iterator[T]:
    """The same items, each handed out once the next one is under way on the devices."""
    pending: list[T] = []
    for item in dispatched:
        yield from pending
        pending = [item]
    yield from pending
