"""Nested metadata compared field by field."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cinemae_jax.runtime.checkpoints import CheckpointError


def require_same(
    saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path, *, may_differ: Sequence[str]
) -> None:
    """Refuses to resume a run with settings that would change its result.

    Args:
      saved, now: nested metadata of the checkpoint and of this run.
      folder: folder of the checkpoint, for the message.
      may_differ: dotted names, or prefixes of them, that do not change the result.

    Raises:
      CheckpointError: naming the fields that differ.
    """
    before, after = _dotted(saved), _dotted(json.loads(json.dumps(now)))
    changed = [
        f"{name} was {before.get(name)!r}, is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not name.startswith(tuple(may_differ))
    ]
    if changed:
        raise CheckpointError(
            f"{folder} belongs to another run: {'; '.join(changed)}. "
            "Use another --workdir, or the old settings"
        )


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        is_section = isinstance(value, Mapping)
        flat |= _dotted(value, f"{prefix}{name}.") if is_section else {prefix + name: value}
    return flat
