"""A profile of one step: features of a batch and the update of the head."""

import collections
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks.accelerator import programs
from benchmarks.accelerator.programs import Row
from benchmarks.accelerator.sizes import Size, Skipped

COSTLIEST = 5


def step(size: Size) -> Iterator[Row]:
    """The operations with the largest total time, and their share of all operations."""
    program = programs.features(size.model, programs.detector(2, "bfloat16"), size.batch)
    program.run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            program.run()
        files = list(Path(folder).rglob("*.xplane.pb"))
        if not files:
            raise Skipped("the profiler wrote no trace")
        data = jax.profiler.ProfileData.from_file(str(files[0]))
        times = durations(data)
    total = sum(seconds for seconds, _ in times.values())
    if not total:
        raise Skipped("the trace holds no operation of the device")
    for name, (seconds, count) in sorted(times.items(), key=lambda x: -x[1][0])[:COSTLIEST]:
        yield {"operation": name, "calls": count, "ms": 1e3 * seconds, "share": seconds / total}


def durations(data: Any) -> dict[str, tuple[float, int]]:
    """Seconds and calls of every HLO operation, on the devices if the trace has any."""
    planes = [plane for plane in data.planes if plane.name.startswith("/device:")]
    found: dict[str, list[float]] = collections.defaultdict(list)
    for plane in planes or data.planes:
        lines = list(plane.lines)
        streams = [line for line in lines if line.name.startswith("Stream")]  # others repeat them
        for line in streams or lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and not event.name.startswith("end: "):
                    found[str(stats["hlo_op"])].append(event.duration_ns / 1e9)
    return {name: (sum(seconds), len(seconds)) for name, seconds in found.items()}
