"""Where a job works: its folder, its devices, and the list of images that it could not read."""

import dataclasses
from pathlib import Path

from cinemae_jax.data.unread import BadImages
from cinemae_jax.runtime.devices import Replicas

UNREAD = "bad_images.csv"


@dataclasses.dataclass(frozen=True)
class Run:
    """What every step of a job needs besides its settings.

    Attributes:
      workdir: folder of its results.
      replicas: devices that share every batch.
      unread: takes note of the images that could not be read.
    """

    workdir: Path
    replicas: Replicas
    unread: BadImages

    @classmethod
    def start(cls, workdir: Path, replicas: Replicas | None = None) -> "Run":
        """A run in a folder; ``replicas`` None means all devices."""
        replicas = replicas or Replicas()
        return cls(workdir, replicas, BadImages(workdir / UNREAD, replicas.host))
