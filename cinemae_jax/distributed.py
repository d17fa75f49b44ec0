"""Devices, hosts, replication and pmap; the only module that knows how many there are.

Replicated values (backbone, head, optimiser) are placed once, as one array a device, and passed to
the pmapped step as they are; a batch is split along its first axis.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cinemae_jax.data.loader import Host

AXIS = "batch"
"""Name of the mapped axis, for psum and pmean inside a step."""


@dataclasses.dataclass(frozen=True)
class Replicas:
    """A set of devices that hold the same parameters and share every batch.

    Attributes:
      devices: all of them, of all hosts, ordered by process; None means ``jax.devices()``.
    """

    devices: tuple[jax.Device, ...] | None = None

    @functools.cached_property
    def mesh(self) -> Mesh:
        devices = self.devices or jax.devices()
        return Mesh(np.array(sorted(devices, key=lambda d: (d.process_index, d.id))), (AXIS,))

    @property
    def count(self) -> int:
        """Devices of all hosts."""
        return self.mesh.size

    @property
    def host(self) -> Host:
        """Which slice of a batch this process reads."""
        return Host(jax.process_index(), jax.process_count())

    def check_batch_size(self, batch_size: int, field: str) -> None:
        """Raises ValueError, naming the field, unless all devices get as many examples."""
        if batch_size < 1 or batch_size % self.count:
            raise ValueError(
                f"{field} {batch_size} is not divisible by the {self.count} devices "
                f"of this run: use a multiple of {self.count}"
            )

    def replicate(self, tree: Any) -> Any:
        """Places a pytree on every local device, once."""
        return jax.device_put(tree, NamedSharding(self.mesh.local_mesh, PartitionSpec()))

    def shard(self, batch: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, jax.Array]:
        """Some entries of this host's part of a batch, split over its devices."""
        return self.split({name: batch[name] for name in names})

    def split(self, tree: Any) -> Any:
        """NumPy arrays (B, ...) as (local devices, B / local devices, ...)."""
        local = self.mesh.local_mesh
        sharding = NamedSharding(local, PartitionSpec(AXIS))
        return jax.device_put(
            jax.tree.map(lambda x: x.reshape(local.size, -1, *x.shape[1:]), tree), sharding
        )

    def pmap_step(
        self, step: Callable[..., Any], *, replicated: int, donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """pmap of a step that returns the same values on every device.

        Args:
          step: takes ``replicated`` replicated arguments and then one split batch; must make its
            results equal on all devices by psum or pmean over ``AXIS``.
          replicated: number of leading replicated arguments.
          donate: argument numbers whose buffers the step may reuse.
        """
        in_axes = (None,) * replicated + (0,)
        return jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=in_axes,
            out_axes=None,
            donate_argnums=donate,
            devices=tuple(self.mesh.devices.flat),
        )

    def pmap_map(self, function: Callable[..., Any], *, replicated: int) -> Callable[..., Any]:
        """pmap of a function whose results stay split; merge them with ``merge``."""
        in_axes = (None,) * replicated + (0,)
        return jax.pmap(
            function, axis_name=AXIS, in_axes=in_axes, devices=tuple(self.mesh.devices.flat)
        )


def merge(tree: Any) -> Any:
    """Results of ``pmap_map`` on this host as NumPy, (B, ...) again."""
    return jax.tree.map(
        lambda x: (lambda a: a.reshape(-1, *a.shape[2:]))(np.asarray(x)), jax.device_get(tree)
    )
