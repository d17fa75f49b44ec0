"""The frozen program: images to features on all devices."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from cinemae_jax.data.loader import Batch
from cinemae_jax.model import masking
from cinemae_jax.model.cinemae import Backbone, Features, extract_features
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings

# Entries of a loader's batch that the backbone needs.
INPUTS = ("image", "example_id", "epoch")

DeviceBatch = dict[str, Array]
# Keys and epochs of some examples to the numbers of their masking runs.
Runs = Callable[[Key[Array, " b"], Int[Array, " b"]], Int[Array, "b r"]]

# A batch of this host and its features on the devices, (local devices, B / local devices, ...).
#
# Of the batch, ``row``, ``label``, ``valid`` and ``error`` are there whatever the kind of set.
Featured = tuple[Batch, Features]


# --- the frozen side ----------------------------------------------------------------------------


def first_runs(count: int) -> Runs:
    """Runs 0 … count-1 of every example: evaluation, and what a bank stores."""
    return lambda keys, epoch: jnp.broadcast_to(jnp.arange(count), (*keys.shape, count))


def drawn_runs(num_runs: int, num_stored: int, num_seeds: int) -> Runs:
    """The S·K runs of an example in an epoch of training (``masking.draw_runs``)."""

    def runs(keys: Key[Array, " b"], epoch: Int[Array, " b"]) -> Int[Array, "b r"]:
        drawn = masking.draw_runs(
            keys, epoch, num_runs=num_runs, num_stored=num_stored, num_seeds=num_seeds
        )
        return drawn.reshape(len(epoch), -1)

    return runs


def make_extract(
    config: DetectorConfig, runs: Runs, *, whole: bool = False
) -> Callable[[Backbone, Key[Array, ""], DeviceBatch], Features]:
    """Features of one device's share of a batch of images (entries ``INPUTS``).

    A mask depends on nothing but (key, example id, run).

    Args:
      config: of the detector.
      runs: masking runs of each example.
      whole: keep what this detector's head does not read, for others that may (a bank).  Without,
        f_global is zeros in fusion ``lcas``, and XLA drops the unmasked pass: most of the work.
    """

    def extract(backbone: Backbone, key: Key[Array, ""], batch: DeviceBatch) -> Features:
        keys = masking.example_keys(key, batch["example_id"])
        wanted = runs(keys, batch["epoch"])
        features = extract_features(backbone, batch["image"], keys, wanted, config)
        if whole or config.reads_global:
            return features
        return dataclasses.replace(features, f_global=jnp.zeros_like(features.f_global))

    return extract


# --- on all devices -----------------------------------------------------------------------------


class Extractor:
    """The frozen backbone on all devices: placed once, compiled once for each kind of use."""

    def __init__(self, config: Settings, backbone: Backbone, replicas: Replicas) -> None:
        """
        Args:
          config: of the run.
          backbone: frozen.
          replicas: devices that share every batch.
        """
        self.config, self.model, self.replicas = config, backbone.config, replicas
        placed = backbone.in_dtype(config.detector.dtype)
        self._frozen = replicas.replicate((placed, mask_key(config)))

    @functools.cached_property
    def training(self) -> Any:
        """Extraction of the runs that an epoch of training draws."""
        num_runs, stored = self.config.detector.num_runs, self.config.features.num_runs
        return self._compiled(drawn_runs(num_runs, stored, self.config.num_seeds))

    @functools.cached_property
    def scoring(self) -> Any:
        """Extraction of the runs that a score rests on."""
        return self._compiled(first_runs(self.config.detector.num_runs))

    @functools.cached_property
    def storing(self) -> Any:
        """Extraction of the runs that a bank holds."""
        return self._compiled(first_runs(self.config.features.num_runs), whole=True)

    def _compiled(self, runs: Runs, *, whole: bool = False) -> Any:
        extract = make_extract(self.config.detector, runs, whole=whole)
        return self.replicas.pmap_map(extract, replicated=2)

    def __call__(self, extract: Any, batches: Iterable[Batch]) -> Iterator[Featured]:
        """Features of batches; several crops of an image become rows that follow each other."""
        for batch in batches:
            crops = math.prod(batch["image"].shape[1:-3])
            sent = {name: np.repeat(batch[name], crops, axis=0) for name in ("example_id", "epoch")}
            sent["image"] = batch["image"].reshape(-1, *batch["image"].shape[-3:])
            yield batch, extract(*self._frozen, self.replicas.split(sent))


def mask_key(config: Settings) -> jax.Array:
    """The base key of all masks of a run."""
    return jax.random.key(config.features.seed)
