"""Training state on disk: arrays, step and metadata; the only module that touches Orbax.

A checkpoint is complete or absent, holds host-local NumPy arrays, and is small: a head, or a
backbone while it is pre-trained, never a frozen backbone, of which it holds the hash.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or belongs to something else."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A restored checkpoint."""

    step: int
    state: Any
    metadata: dict[str, Any]


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
        logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax logs every file it writes
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
            item_names=("state", "metadata"),
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
        state: Any,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Writes a checkpoint: a pytree of arrays and JSON-able metadata."""
        arrays = jax.tree.map(np.asarray, jax.device_get(state))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays),
                metadata=ocp.args.JsonSave(dict(metadata)),
            ),
            metrics=None if metrics is None else dict(metrics),
            force=True,
        )

    @property
    def latest(self) -> int | None:
        """Step of the last checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint by its metric, the last one if none has metrics."""
        return self._manager.best_step()

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint, without its arrays."""
        restored = self._manager.restore(
            step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
        )
        return dict(restored["metadata"])

    def restore(self, step: int, like: Any) -> Saved:
        """Reads a checkpoint into the structure of ``like``.

        Raises:
          CheckpointError: if it is damaged or does not have this structure.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.map(np.asarray, jax.device_get(like))),
                    metadata=ocp.args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, OSError) as error:
            raise CheckpointError(f"checkpoint {self.folder}/{step}: {error}") from error
        del abstract
        return Saved(step, restored["state"], dict(restored["metadata"]))


Which = Literal["best", "last"]
