"""The smoke job: every part that a long run on several hosts rests on, on random images.

Joining, a collective, the frozen backbone and the head's step on all devices, a checkpoint, a stop
with exit code 75, resuming, and the same result as without the stop.
"""

import dataclasses
import json
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cinemae_jax.features.extraction import Extractor
from cinemae_jax.model.cinemae import random_backbone
from cinemae_jax.model.config import DetectorConfig, Dtype, vit_tiny
from cinemae_jax.model.head import Normalizer, init_params
from cinemae_jax.model.masking import Masks
from cinemae_jax.runtime import collectives, progress
from cinemae_jax.runtime.checkpoints import Checkpoints
from cinemae_jax.runtime.devices import AXIS, Replicas
from cinemae_jax.runtime.preemption import Preempted
from cinemae_jax.training import steps
from cinemae_jax.training.steps import TrainState
from cinemae_jax.typed import require

METADATA = {"kind": "smoke"}
LEAST_STEPS = 4  # so that there are two on either side of the stop


@dataclasses.dataclass(frozen=True)
class SmokeSettings:
    """Config of the smoke job.

    Attributes:
      images: random images of one pass.
      batch_size: images a step over all devices, rounded to a multiple of their number.
      dtype: of the backbone.
    """

    images: int
    batch_size: int
    dtype: Dtype

    def __post_init__(self) -> None:
        require("config", self, images=(1, None), batch_size=(1, None))


class Rehearsal:
    """The backbone and the head's step on all devices."""

    def __init__(self, config: SmokeSettings, replicas: Replicas) -> None:
        self.replicas, self.model = replicas, vit_tiny(depth=4, decoder_depth=2)
        self.batch = replicas.count * max(1, config.batch_size // replicas.count)
        self.num_steps = max(LEAST_STEPS, math.ceil(config.images / self.batch))
        self._detector = DetectorConfig(hidden=16, dtype=config.dtype)
        self._tx = optax.adam(1e-3)
        masks = Masks(0, self._detector.num_runs, 0, 1, self._detector.group_size)
        self._extractor = Extractor(self._detector, masks, random_backbone(self.model), replicas)
        step = steps.make_head_step(self._detector, self._tx, self.model.num_patches)
        self._step = replicas.pmap_step(step, replicated=2)

    def start(self) -> TrainState:
        """The head before the first step."""
        params = init_params(self._detector, jax.random.key(0), self.model.width, 3)
        stacked = jax.tree.map(lambda x: x[None], params)
        return TrainState(stacked, jax.vmap(self._tx.init)(stacked))

    def run(self, state: Any, begin: int, end: int) -> TrainState:
        """Takes steps ``begin`` … ``end`` - 1; the result is on this host."""
        width = self.model.width
        one = ((width, 0.0), (width, 1.0), (3, 0.0), (3, 1.0))
        normalizer = Normalizer(*(jnp.full((1, n), value) for n, value in one))
        state, normalizer = self.replicas.replicate((state, normalizer))
        batches = self._batches(begin, end)
        for batch, features in self._extractor(self._extractor.scoring, batches):
            labels = self.replicas.shard(batch, ("label", "valid"))
            state, _ = self._step(state, normalizer, steps.Labelled(features, **labels))
        host: steps.TrainState = jax.tree.map(np.asarray, jax.device_get(state))
        return host

    def _batches(self, begin: int, end: int) -> Iterator[Any]:
        """This host's part: position p of a batch belongs to host p mod H."""
        host, size = self.replicas.host, self.model.image_size
        for step in range(begin, end):
            rng = np.random.default_rng(step)
            whole: dict[str, np.ndarray] = {
                "image": rng.integers(0, 256, (self.batch, size, size, 3), dtype=np.uint8),
                "example_id": rng.integers(0, 2**32, self.batch, dtype=np.uint32),
                "epoch": np.zeros(self.batch, np.int32),
                "label": rng.integers(0, 2, self.batch, dtype=np.int32),
                "valid": np.ones(self.batch, bool),
            }
            yield {name: values[host.index :: host.count] for name, values in whole.items()}


def rehearse(config: SmokeSettings, workdir: Path, replicas: Replicas) -> None:
    """Runs the first half and stops; called again, resumes, compares and writes smoke.json.

    Raises:
      Preempted: half way, on purpose.
      ValueError: if something is wrong, or the folder holds a finished job.
    """
    report = workdir / "smoke.json"
    if any(collectives.exchange(report.exists())):
        raise ValueError(f"--workdir {workdir} holds a finished smoke job: name a new folder")
    begin = time.monotonic()
    hosts = collectives.exchange(socket.gethostname())
    kind = jax.devices()[0].device_kind
    progress.say(f"joined    {len(hosts)} processes, {replicas.count} devices ({kind})")
    _require_all_devices(replicas)
    rehearsal = Rehearsal(config, replicas)
    half, end = rehearsal.num_steps // 2, rehearsal.num_steps
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        reached = checkpoints.latest or 0
        if not reached:
            state = rehearsal.run(rehearsal.start(), 0, half)
            checkpoints.save(half, {"state": state}, METADATA)
            raise Preempted(f"at step {half} of {end}, on purpose: the smoke job tests this")
        state = checkpoints.restore(reached, {"state": rehearsal.start()})["state"]
        progress.say(f"resumed   at step {reached}")
        resumed = rehearsal.run(state, reached, end)
        timed = time.monotonic()
        undisturbed = rehearsal.run(rehearsal.start(), 0, end)
        rate = rehearsal.batch * end / (time.monotonic() - timed)
        _require_same(resumed, undisturbed)
        checkpoints.save(end, {"state": resumed}, METADATA)
    found = {
        "hosts": hosts,
        "devices": replicas.count,
        "kind": kind,
        "images": rehearsal.batch * end,
        "images_per_second": round(rate, 1),
        "resumed_at": reached,
        "seconds": round(time.monotonic() - begin, 1),
    }
    if jax.process_index() == 0:
        report.write_text(json.dumps(found, indent=1) + "\n")
    progress.say(f"smoke     ok, {rate:.1f} images/s with made-up images and a small backbone")


def _require_all_devices(replicas: Replicas) -> None:
    """One collective: every device adds its share.

    Raises:
      ValueError: if the sum is wrong.
    """
    total = replicas.pmap_step(lambda x: jax.lax.psum(x.sum(), AXIS), replicated=0)
    local = replicas.mesh.local_mesh.size
    sum_ = int(total(replicas.split(np.ones(local, np.int32))))
    if sum_ != replicas.count:
        raise ValueError(f"a sum over all devices is {sum_}, not {replicas.count}")


def _require_same(resumed: TrainState, undisturbed: TrainState) -> None:
    """Every host must hold the same state, and that of a run without a stop.

    The checkpoint may come from a run on other devices, whose sums have another order.

    Raises:
      ValueError: if they differ by more than rounding.
    """
    pairs = zip(jax.tree.leaves(resumed), jax.tree.leaves(undisturbed), strict=True)
    gap = max(float(np.abs(a - b).max()) for a, b in pairs)
    if not gap <= 1e-4:
        raise ValueError(f"the resumed run differs from an undisturbed one by {gap:.2g}")
    sums = collectives.exchange([float(np.sum(x)) for x in jax.tree.leaves(resumed.params)])
    if any(other != sums[0] for other in sums):
        raise ValueError("the hosts hold different heads after the same steps")
