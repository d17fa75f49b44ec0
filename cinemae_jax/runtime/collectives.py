"""Values exchanged between hosts, and barriers."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def exchange(value: Any) -> list[Any]:
    """The JSON-able values of all hosts, in their order, on every host.

    All hosts must call it at the same point; it waits for the last one.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    padded = np.zeros(1 << int(max(sizes) - 1).bit_length(), np.uint8)  # few shapes to compile
    padded[: len(data)] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:size])) for row, size in zip(rows, sizes, strict=True)]


def barrier(name: str) -> None:
    """Waits until every host calls it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def require_equal(value: Mapping[str, Any]) -> None:
    """Raises ValueError, naming field and host, unless all hosts have the same JSON-able value."""
    first, *others = exchange(value)
    for number, other in enumerate(others, 1):
        for name in first:
            if other[name] != first[name]:
                raise ValueError(
                    f"{name} is {first[name]!r} on host 0 and {other[name]!r} on host {number}: "
                    "all hosts need the same command, data set and backbone"
                )
