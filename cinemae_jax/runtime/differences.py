"""Nested metadata compared field by field."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cinemae_jax.runtime.checkpoints import CheckpointError


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Fields with different values: dotted name → ``was 1, is 2``; a missing field is None."""
    old, new = _dotted(before), _dotted(after)
    return {
        name: f"was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


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
    changed = [
        f"{name} {words}"
        for name, words in changes(saved, json.loads(json.dumps(now))).items()
        if not name.startswith(tuple(may_differ))
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
