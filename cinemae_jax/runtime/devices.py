"""Devices, replication and pmap; the only module that knows the number of devices.

Replicated values (backbone, head, optimiser) are placed once, as one array per device, and passed
to the mapped step as they are.  A batch is split along its first axis.  Every host runs the same
program; hosts exchange values by ``Replicas.gather`` and ``runtime.collectives``.

A step is mapped over the devices by ``jax.pmap`` or by ``jax.jit(jax.shard_map)``: arrays in and
out are the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cinemae_jax.runtime import collectives
from cinemae_jax.runtime.shard import Shard

# Name of the mapped axis, for psum and pmean inside a step.
AXIS = "batch"
# How a function is mapped over the devices.
Spmd = Literal["pmap", "shard_map"]
SPMD: tuple[str, ...] = get_args(Spmd)


@dataclasses.dataclass(frozen=True)
class Replicas:
    """A set of devices that hold the same parameters and share every batch.

    Attributes:
      devices: devices of all hosts, ordered by process; None means ``jax.devices()``.
      spmd: how functions are mapped over them: ``pmap``, or ``shard_map`` under jit.
    """

    devices: tuple[jax.Device, ...] | None = None
    spmd: Spmd = "pmap"

    @functools.cached_property
    def mesh(self) -> Mesh:
        devices = self.devices or jax.devices()
        return Mesh(np.array(sorted(devices, key=lambda d: (d.process_index, d.id))), (AXIS,))

    @property
    def count(self) -> int:
        """Number of devices of all hosts."""
        return self.mesh.size

    @functools.cached_property
    def host(self) -> Shard:
        """Slice of a batch that this process reads; processes without devices do not count."""
        processes = sorted({device.process_index for device in self.mesh.devices.flat})
        return Shard(processes.index(jax.process_index()), len(processes))

    @property
    def local(self) -> "Replicas":
        """The devices of this host only: their computations never wait for another host."""
        mine = jax.process_index()
        devices = tuple(d for d in self.mesh.devices.flat if d.process_index == mine)
        return Replicas(devices, self.spmd)

    def check_batch_size(self, batch_size: int, field: str) -> None:
        """Raises ValueError, naming the field, unless all devices get equally many examples."""
        if batch_size < 1:
            raise ValueError(f"{field} must be 1 or more, is {batch_size}")
        if batch_size % self.count:
            raise ValueError(
                f"{field} {batch_size} is not divisible by the {self.count} devices "
                f"of this run: use a multiple of {self.count}"
            )

    def replicate(self, tree: Any) -> Any:
        """Places a pytree on every local device, once."""
        return jax.device_put(tree, NamedSharding(self.mesh.local_mesh, PartitionSpec()))

    def shard(self, batch: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, jax.Array]:
        """The named entries of this host's part of a batch, split over its devices."""
        return self.split({name: batch[name] for name in names})

    def split(self, tree: Any) -> Any:
        """NumPy arrays (B, ...) as (local devices, B / local devices, ...)."""
        local = self.mesh.local_mesh
        sharding = NamedSharding(local, PartitionSpec(AXIS))
        return jax.device_put(
            jax.tree.map(lambda x: x.reshape(local.size, len(x) // local.size, *x.shape[1:]), tree),
            sharding,
        )

    def pmap_step(
        self, step: Callable[..., Any], *, replicated: int, donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """Maps a step that returns the same values on every device.

        Args:
          step: takes ``replicated`` replicated arguments, then one split batch.  It must make its
            results equal on all devices by psum or pmean over ``AXIS``.
          replicated: number of leading replicated arguments.
          donate: argument numbers whose buffers the step may reuse.
        """
        if self.spmd == "shard_map":
            return self._shard_map(step, replicated, donate, results_are_split=False)
        return self._pmap(step, replicated, donate, out_axes=None)

    def pmap_map(self, function: Callable[..., Any], *, replicated: int) -> Callable[..., Any]:
        """Maps a function whose results stay split; ``merge`` joins them."""
        if self.spmd == "shard_map":
            return self._shard_map(function, replicated, (), results_are_split=True)
        return self._pmap(function, replicated, (), out_axes=0)

    def _pmap(
        self,
        function: Callable[..., Any],
        replicated: int,
        donate: tuple[int, ...],
        *,
        out_axes: int | None,
    ) -> Callable[..., Any]:
        return jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(None,) * replicated + (0,),
            out_axes=out_axes,
            donate_argnums=donate,
            devices=tuple(self.mesh.devices.flat),
        )

    def _shard_map(
        self,
        function: Callable[..., Any],
        replicated: int,
        donate: tuple[int, ...],
        *,
        results_are_split: bool,
    ) -> Callable[..., Any]:
        """The twin of ``_pmap``: the same arrays in and out, on any number of hosts."""
        in_specs = (PartitionSpec(),) * replicated + (PartitionSpec(AXIS),)
        out_specs = PartitionSpec(AXIS) if results_are_split else PartitionSpec()

        def on_device(*arguments: Any) -> Any:
            share = jax.tree.map(lambda x: x[0], arguments[replicated])
            results = function(*arguments[:replicated], share)
            return jax.tree.map(lambda x: x[None], results) if results_are_split else results

        mapped = jax.jit(
            # check_vma is off as in pmap: the step itself makes replicated results equal
            jax.shard_map(
                on_device, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
            ),
            donate_argnums=donate,
        )
        if self.host.count == 1:
            return mapped

        def on_hosts(*arguments: Any) -> Any:
            pairs = zip(arguments, in_specs, strict=True)
            results = mapped(*(_placed(x, self.mesh, spec) for x, spec in pairs))
            return _placed(results, self.mesh.local_mesh, out_specs)

        return on_hosts

    def gather(self, tree: Any) -> Any:
        """The whole batch on every host, from each host's part: NumPy (B / hosts, ...) to (B, ...).

        Position p of a batch belongs to host p mod H (``data.loader``).  All hosts must call it at
        the same point.  Integers must fit 32 bits.
        """
        if self.host.count == 1:
            return tree
        return jax.tree.map(
            lambda x: np.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]),
            multihost_utils.process_allgather(jax.tree.map(_narrow, tree)),
        )

    def gather_batch(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Row, label, validity and error of the whole batch, on every host."""
        if self.host.count == 1:
            return batch
        whole = self.gather({name: batch[name] for name in ("row", "label", "valid")})
        whole["error"] = np.full(len(whole["row"]), "", object)
        if (~whole["valid"] & (whole["row"] >= 0)).any():  # rare, so the cost does not matter
            for host, errors in enumerate(
                collectives.exchange([str(error) for error in batch["error"]])
            ):
                whole["error"][host :: self.host.count] = errors
        return whole


def merge(tree: Any) -> Any:
    """Results of ``pmap_map`` on this host, joined to NumPy arrays (B, ...)."""
    return jax.tree.map(
        lambda x: np.asarray(x).reshape(x.shape[0] * x.shape[1], *x.shape[2:]),
        jax.device_get(tree),
    )


def _placed(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    """The same local data as arrays of another mesh: of all hosts, or of this host alone."""
    sharding = NamedSharding(mesh, spec)

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf  # jit replicates NumPy arrays
        data = [shard.data for shard in leaf.addressable_shards]
        shape = (mesh.size, *leaf.shape[1:]) if len(spec) else leaf.shape
        return jax.make_array_from_single_device_arrays(shape, sharding, data)

    return jax.tree.map(placed, tree)


def _narrow(leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.int32) if leaf.dtype == np.int64 else leaf
