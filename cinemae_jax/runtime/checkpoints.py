"""Training state on disk: arrays, step and metadata; the only module that uses Orbax.

A checkpoint is complete or absent.  It holds host-local NumPy arrays and is small: a head, or the
backbone of a pre-training run.  Of a frozen backbone it holds only the hash.  Every host has the
whole state in memory, so host 0 writes it and all hosts read it, in a folder that they share.

Everything in it has a checksum, which is compared when it is read.  Each checkpoint also names the
best one of its time, so that a lost one is noticed.  Checkpoints of versions without checksums are
read as they are.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from cinemae_jax.runtime import collectives

Which = Literal["best", "last"]
# Items beside the arrays, and the metadata field that says that there are checksums.
METADATA, METRICS, CHECKSUMS = "metadata", "metrics", "checksums"
RETRAIN = (
    "copy it back, or train again in another --workdir (a run with steps left goes on without it "
    "once it is deleted)"
)
REASON = 200  # characters of a library's message, which may list the whole tree


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
        try:
            self._manager = _manager(self.folder, best, AnyPreservationPolicy(policies))
        except Exception as error:  # it reads the metrics of all checkpoints
            raise CheckpointError(
                f"{self._unreadable()}: metrics are damaged ({error}): {RETRAIN}"
            ) from error

    def _unreadable(self) -> str:
        """The checkpoints whose metrics are not valid JSON, in words."""
        found = []
        for path in sorted(self.folder.glob(f"*/{METRICS}/{METRICS}")):
            try:
                json.loads(path.read_text())
            except (ValueError, OSError):
                found.append(str(path.parents[1]))
        return f"checkpoint {', '.join(found) or self.folder}"

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
            name: jax.tree.map(np.asarray, jax.device_get(tree)) for name, tree in items.items()
        }
        written = dict(metadata) | {CHECKSUMS: "sha256"}
        sums = {name: _of_arrays(tree) for name, tree in arrays.items()}
        sums |= {METADATA: _of_json(written), METRICS: _of_json(metrics)}
        checksums = {"sha256": sums, "best": self._best_of(step, metrics)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                metadata=ocp.args.JsonSave(written),
                checksums=ocp.args.JsonSave(checksums),
                **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
            ),
            metrics=None if metrics is None else dict(metrics),
            force=True,
        )

    def _best_of(self, step: int, metrics: Mapping[str, float] | None) -> int | None:
        """The best of the checkpoints that are there and the one that is being written."""
        if self._best is None:
            return None
        before = self._manager.best_step()
        if metrics is None:
            return before
        is_better = before is None or self._best(metrics) >= self._best(
            self._manager.metrics(before)
        )
        return step if is_better else before

    @property
    def latest(self) -> int | None:
        """Step of the last checkpoint."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint by its metrics; None if no score is finite.

        Raises:
          CheckpointError: if it is missing, or metrics are damaged.
        """
        last = self.latest
        if last is None or self._best is None:
            return last
        sums = self._checksums(last)
        step = self._manager.best_step() if sums is None else sums["best"]
        if step is None:
            return None
        if step not in self._manager.all_steps():
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)}, the best of the run, is missing: {RETRAIN}"
            )
        return step if math.isfinite(self._best(self._metrics(step))) else None

    @property
    def lost(self) -> int | None:
        """Step of the checkpoint that was the best and is missing now; None if none is."""
        sums = None if self.latest is None else self._checksums(self.latest)
        step: int | None = sums["best"] if sums else None
        return None if step in (None, *self._manager.all_steps()) else step

    def _metrics(self, step: int) -> Mapping[str, float]:
        with self._reading(step):
            found: Mapping[str, float] = self._manager.metrics(step)
            if found is None:
                raise ValueError("its metrics are missing")
            self._compare(step, METRICS, _of_json(found))
        return found

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata of a checkpoint, without its arrays.

        Raises:
          CheckpointError: if they are missing or damaged.
        """
        with self._reading(step):
            found = self._json(step, METADATA)
            if (CHECKSUMS in found) != (self._checksums(step) is not None):
                raise ValueError("its checksums are missing")
            self._compare(step, METADATA, _of_json(found))
        return {name: value for name, value in found.items() if name != CHECKSUMS}

    def _checksums(self, step: int) -> dict[str, Any] | None:
        """What ``_save`` wrote; None for a checkpoint of a version without checksums."""
        if not (self.folder / str(step) / CHECKSUMS).exists():
            return None
        with self._reading(step):
            found = self._json(step, CHECKSUMS)
            return {"best": found["best"], "sha256": dict(found["sha256"])}

    def _json(self, step: int, item: str) -> dict[str, Any]:
        restored = self._manager.restore(
            step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()})
        )
        return dict(restored[item])

    def _compare(self, step: int, item: str, found: str) -> None:
        sums = self._checksums(step)
        if sums is not None and sums["sha256"].get(item) != found:
            raise ValueError(f"the checksum of {item} differs")

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Inside, whatever fails means that the checkpoint is damaged.

        Raises:
          CheckpointError: naming the checkpoint and the way out.
        """
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # libraries raise many types on damaged files
            reason = " ".join(f"{error}".split())[:REASON] or type(error).__name__
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} is damaged ({reason}): {self._way_out(step)}"
            ) from error

    def _way_out(self, step: int) -> str:
        if step != self.latest:
            return RETRAIN
        before = [other for other in self._manager.all_steps() if other < step]
        where = f"from the checkpoint before it, step {max(before)}" if before else "without it"
        return f"copy it back, or delete it to go on {where}"

    def restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the named items of a checkpoint, each into the structure of its example.

        Raises:
          CheckpointError: if an item is missing, damaged, or has another structure.
        """
        wanted = {
            name: ocp.args.StandardRestore(jax.tree.map(np.asarray, jax.device_get(tree)))
            for name, tree in like.items()
        }
        with self._reading(step):
            restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
            for name in like:
                self._compare(step, name, _of_arrays(restored[name]))
        return {name: restored[name] for name in like}

    def require(self, step: int) -> None:
        """Raises CheckpointError unless the checkpoint that was written at ``step`` is on disk."""
        if jax.process_index() == 0 and not (self.folder / str(step)).is_dir():
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} has vanished since it was written: rerun "
                "the same command"
            )


def _manager(
    folder: Path, best: Callable[[Any], float] | None, kept: AnyPreservationPolicy
) -> ocp.CheckpointManager:
    mine = jax.process_index()
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            best_fn=best,
            best_mode="max",
            preservation_policy=kept,
            enable_async_checkpointing=False,
            create=False,  # Orbax requires it where one process among several writes
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=mine, active_processes={mine}, barrier_sync_key_prefix=str(mine)
            ),
        ),
    )


def _of_arrays(tree: Any) -> str:
    """sha256 over type, shape and bytes of every array, in the order of the tree."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        values = np.ascontiguousarray(leaf)
        digest.update(f"{values.dtype.name} {np.shape(leaf)};".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _of_json(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its fields."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
