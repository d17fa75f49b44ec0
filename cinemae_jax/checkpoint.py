"""Training state on disk: arrays, step and metadata; the only module that touches Orbax.

A checkpoint is complete or absent, holds host-local NumPy arrays, and is small: a head, or a
backbone while it is pre-trained, never a frozen backbone, of which it holds the hash.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

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
        self.folder = folder.absolute()
        policies: list[Any] = [LatestN(1)]
        if best is not None:
            policies.append(BestN(get_metric_fn=best, n=1))
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                create=True,
                best_fn=best,
                best_mode="max",
                preservation_policy=AnyPreservationPolicy(policies),
                enable_async_checkpointing=False,
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

        ``metrics`` are what the best one is chosen by.
        """
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
        """Step of the best checkpoint by its metrics; None if there is none."""
        return self._manager.best_step()

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
