"""Training state on disk: arrays, step and metadata; the only module that uses Orbax.

A checkpoint is complete or absent.  It holds host-local NumPy arrays and is small: a head, or the
backbone of a pre-training run.  Of a frozen backbone it holds only the hash.  Every host has the
whole state in memory, so host 0 writes it and all hosts read it, in a folder that they share.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from cinemae_jax.runtime import collectives

Which = Literal["best", "last"]


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another run."""


class Checkpoints:
    """The checkpoints of one run: the last one and, if asked for, the best one by a metric."""

    def __init__(
        self, folder: Path, *, best: Callable[[Mapping[str, float]], float] | None = None
    ) -> None:
        """
        Args:
          folder: folder of the run's checkpoints; it is made here.
          best: score of a checkpoint's metrics, larger is better; None keeps only the last one.
        """
        self._best = best
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        policies: list[Any] = [LatestN(1)]
        if best is not None:
            policies.append(BestN(get_metric_fn=best, n=1))
        mine = jax.process_index()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=best,
                best_mode="max",
                preservation_policy=AnyPreservationPolicy(policies),
                enable_async_checkpointing=False,
                create=False,  # Orbax requires it where one process among several writes
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=mine, active_processes={mine}, barrier_sync_key_prefix=str(mine)
                ),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes a checkpoint: named pytrees of arrays and JSON-able metadata.

        The best checkpoint is chosen by ``metrics``.  All hosts must call it; they return once the
        checkpoint is written.
        """
        if jax.process_index() == 0:
            self._save(step, items, metadata, metrics)
        collectives.barrier(f"checkpoint {step}")
        if jax.process_index():
            self._manager.reload()

    def _save(
        self,
        step: int,
        items: Mapping[str, Any],
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None,
    ) -> None:
        arrays = {
            name: ocp.args.StandardSave(jax.tree.map(np.asarray, jax.device_get(tree)))
            for name, tree in items.items()
        }
        self._manager.save(
            step,
            args=ocp.args.Composite(metadata=ocp.args.JsonSave(dict(metadata)), **arrays),
            metrics=None if metrics is None else dict(metrics),
            force=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the last checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint by its metrics; None if no score is finite."""
        step = self._manager.best_step()
        if step is None or self._best is None:
            return step
        return step if math.isfinite(self._best(self._manager.metrics(step))) else None

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint, without its arrays."""
        restored = self._manager.restore(
            step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        )
        return dict(restored["metadata"])

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the named items of a checkpoint, each into the structure of its example.

        Raises:
          CheckpointError: if an item is missing, damaged, or has another structure.
        """
        wanted = {
            name: ocp.args.StandardRestore(jax.tree.map(np.asarray, jax.device_get(tree)))
            for name, tree in like.items()
        }
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"checkpoint {self.folder / str(step)}: {error}") from error
        return {name: restored[name] for name in like}


class Interrupted:
    """The state of a run that was stopped between two checkpoints.

    It has its own folder beside the checkpoints, which stay those of an undisturbed run.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.regular = checkpoints
        self._folder = checkpoints.folder.with_name("interrupted")

    @property
    def step(self) -> int:
        """Step at which the run was stopped; 0 if it was not, or has passed a checkpoint since."""
        if not self._folder.is_dir():
            return 0
        with Checkpoints(self._folder) as found:
            step = found.latest or 0
        return step if step > (self.regular.latest or 0) else 0

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        metadata: Mapping[str, Any],
        losses: Sequence[Any],
    ) -> None:
        """Writes the state after ``step``, unless it is on disk already.

        ``losses`` are those that are not in the log yet.
        """
        if step <= max(self.regular.latest or 0, self.step):
            return
        unlogged = [np.asarray(loss).tolist() for loss in jax.device_get(list(losses))]
        with Checkpoints(self._folder) as folder:
            folder.save(step, items, {**metadata, "losses": unlogged})

    def resume(
        self, like: Mapping[str, Any], require: Callable[[dict[str, Any]], None]
    ) -> tuple[int, dict[str, Any], list[np.ndarray]]:
        """The latest state, from a stop or a checkpoint: step, arrays, losses not yet in the log.

        Args:
          like: as in ``Checkpoints.restore``.
          require: raises if the metadata belong to another run.

        Returns:
          (0, {}, []) if there is none.
        """
        step = self.step
        if step:
            with Checkpoints(self._folder) as found:
                metadata = found.metadata(step)
                losses = [np.asarray(loss, np.float32) for loss in metadata.pop("losses")]
                require(metadata)
                return step, found.restore(step, like), losses
        step = self.regular.latest or 0
        if not step:
            return 0, {}, []
        require(self.regular.metadata(step))
        return step, self.regular.restore(step, like), []
