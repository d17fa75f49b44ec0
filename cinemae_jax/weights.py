"""Frozen backbones on disk: one safetensors file ↔ ``Backbone(params, config, sha256)``.

The file's header holds architecture, target and origin; tensors are named by Flax paths joined
by '/'.  No pickle is read, and a missing tensor is an error, never filled with random numbers.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cinemae_jax.model.arrays import Params
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.config import MAEConfig
from cinemae_jax.model.mae import initial_variables
from cinemae_jax.runtime.files import replacing

FORMAT = "cinemae-backbone-1"
BUNDLED = {"tiny": "tiny_backbone.safetensors"}
_LISTED = 5  # tensors named in a message; the rest are counted


class BackboneError(ValueError):
    """A backbone file that is refused; the message names file, fault and way out."""


def resolve(path: str | os.PathLike[str]) -> Path:
    """The file of a bundled backbone's name (``tiny``); any other path as it is."""
    if str(path) in BUNDLED:
        return Path(__file__).parent / "assets" / BUNDLED[str(path)]
    return Path(path)


def save(
    path: str | os.PathLike[str],
    config: MAEConfig,
    params: Params,
    origin: Mapping[str, str] | None = None,
) -> str:
    """Writes a backbone and returns the file's sha256.

    Args:
      path: of the file; an older one is replaced only when the new one is complete.
      config: architecture of the parameters.
      params: of ``MAE``, written as float32.
      origin: where they come from (source, licence, data, ...), for people.

    Raises:
      BackboneError: if the parameters do not fit the architecture; nothing is written then.
    """
    flat = {k: np.ascontiguousarray(v, np.float32) for k, v in _flatten(params).items()}
    _check_shapes(Path(path), config, {k: v.shape for k, v in flat.items()})
    header = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(config), sort_keys=True),
        "origin": json.dumps(dict(origin or {}), sort_keys=True),
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(flat, partial, metadata=header)
        partial.chmod(0o644)  # safetensors makes files that only their owner can read
    return file_sha256(path)


def load(path: str | os.PathLike[str]) -> Backbone:
    """Reads a frozen backbone.

    Args:
      path: a file that ``save`` or ``cinemae convert`` wrote, or ``tiny``.

    Raises:
      BackboneError: if the file is missing, truncated, not a backbone, or does not hold exactly
        the tensors of its architecture.
    """
    path = resolve(path)
    if not path.is_file():
        raise BackboneError(
            f"backbone {path} does not exist: name a converted .safetensors file, or a bundled "
            f"backbone ({', '.join(BUNDLED)})"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            config = _config_of(path, file.metadata() or {})
            shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
            _check_shapes(path, config, shapes)
            flat = {name: file.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise BackboneError(
            f"{path} is not a readable safetensors file ({error}): copy it again if it is "
            "truncated; convert a published checkpoint with `cinemae convert`"
        ) from error
    wrong = [k for k, v in flat.items() if not np.isfinite(v).all()]
    if wrong:
        raise BackboneError(f"{path} holds NaN or infinity in {_some(wrong)}: convert it again")
    params = traverse_util.unflatten_dict(flat, sep="/")
    return Backbone(params, config, sha256=file_sha256(path))


def origin(path: str | os.PathLike[str]) -> dict[str, str]:
    """The origin in a backbone file's header: source, licence, data, ... by name."""
    with safe_open(resolve(path), framework="numpy") as file:
        return json.loads((file.metadata() or {}).get("origin", "{}"))


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expected_shapes(config: MAEConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of an architecture; computes no values."""
    variables = jax.eval_shape(lambda: initial_variables(config, jax.random.key(0)))
    return {k: v.shape for k, v in _flatten(variables["params"]).items()}


def _flatten(params: Params) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")


def _config_of(path: Path, header: Mapping[str, str]) -> MAEConfig:
    if header.get("format") != FORMAT:
        raise BackboneError(
            f"{path} has format {header.get('format')!r}, expected {FORMAT!r}: convert a published "
            "checkpoint with `cinemae convert`"
        )
    try:
        return MAEConfig(**json.loads(header["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{path} has no usable config in its header ({error}): convert it again"
        ) from error


def _check_shapes(path: Path, config: MAEConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    expected = expected_shapes(config)
    faults = {
        "missing tensors": sorted(expected.keys() - found.keys()),
        "unexpected tensors": sorted(found.keys() - expected.keys()),
        "wrong shapes": [
            f"{k} is {tuple(found[k])}, expected {expected[k]}"
            for k in sorted(expected.keys() & found.keys())
            if tuple(found[k]) != tuple(expected[k])
        ],
    }
    listed = [f"{fault}: {_some(names)}" for fault, names in faults.items() if names]
    if listed:
        raise BackboneError(
            f"{path} does not fit the architecture in its header, convert it again: "
            + "; ".join(listed)
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
