"""Training state on disk: arrays, step and metadata; the only module that touches Orbax.

A checkpoint is complete or absent, holds host-local NumPy arrays, and is small: a head, or a
backbone while it is pre-trained, never a frozen backbone, of which it holds the hash.  Every host
holds all of it, so the first one writes and every one reads, in a folder that they share.
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
    """A checkpoint that is missing, damaged, or belongs to something else."""


class Checkpoints:
    """The checkpoints of one run: the last one and, by a metric, the best one."""

    def __init__(
        self, folder: Path, *, best: Callable[[Mapping[str, float]], float] | None = None
    ) -> None:
        """
        Args:
          folder: of the run's checkpoints; made when something is saved.
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
                create=False,  # of one process among several, Orbax wants this
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

        ``metrics`` are what the best one is chosen by.  Of several hosts all must call it, and
        return when it is written.
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
        """Step of the best checkpoint by its metrics; None if none has a score that is finite."""
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
          CheckpointError: if one is missing, damaged, or of another structure.
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
    """The state of a run that was told to stop between two checkpoints.

    It lies in a folder beside them, so that those stay what an undisturbed run would have made.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.regular = checkpoints
        self._folder = checkpoints.folder.with_name("interrupted")

    @property
    def step(self) -> int:
        """At which the run was stopped; 0 if it was not, or has gone on since."""
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

        ``losses`` are those that no line of the log has told yet.
        """
        if step <= max(self.regular.latest or 0, self.step):
            return
        untold = [np.asarray(loss).tolist() for loss in jax.device_get(list(losses))]
        with Checkpoints(self._folder) as folder:
            folder.save(step, items, {**metadata, "losses": untold})

    def resume(
        self, like: Mapping[str, Any], require: Callable[[dict[str, Any]], None]
    ) -> tuple[int, dict[str, Any], list[np.ndarray]]:
        """The latest state, of whichever kind: its step, its arrays, and the untold losses.

        Args:
          like: as in ``Checkpoints.restore``.
          require: raises if the metadata are those of another run.

        Returns:
          0 and nothing if the run is to begin.
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
