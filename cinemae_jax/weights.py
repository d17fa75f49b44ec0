"""Frozen backbones and encoders on disk: one safetensors file ↔ ``Backbone`` or ``Encoder``.

The file's header holds architecture and origin, and the target of a backbone or the preprocessing
of an encoder; tensors are named by Flax paths joined by '/'.  No pickle is read, and a missing
tensor is an error, never filled with random numbers.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cinemae_jax.model import mae, vit
from cinemae_jax.model.arrays import Params
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.config import MAEConfig
from cinemae_jax.model.vit import Encoder, Preprocessing, ViTConfig
from cinemae_jax.runtime.files import replacing

FORMAT = "cinemae-backbone-1"
ENCODER_FORMAT = "cinemae-encoder-1"
BUNDLED = {"tiny": "tiny_backbone.safetensors"}
# Bounds on what a file may claim or hold, far above any published model.
MAX_SIDE, MAX_PATCHES, LARGEST = 4096, 1 << 14, 1e6
_LISTED = 5  # names shown of a longer list of problems
# What a file of one format is told where the other is expected.
_OTHER = {
    FORMAT: "a masked autoencoder: name an encoder instead (CLIP, DINOv2, DINOv3 or SigLIP)",
    ENCODER_FORMAT: "a CLIP, DINO or SigLIP encoder: name a masked autoencoder instead",
}
Config = TypeVar("Config", MAEConfig, ViTConfig)


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
    return _write(Path(path), FORMAT, config, params, {"origin": dict(origin or {})})


def save_encoder(
    path: str | os.PathLike[str],
    config: ViTConfig,
    params: Any,
    preprocessing: Preprocessing,
    origin: Mapping[str, str] | None = None,
) -> str:
    """Writes an encoder, with what its images must go through, and returns the file's sha256."""
    entries = {"origin": dict(origin or {}), "preprocessing": dataclasses.asdict(preprocessing)}
    return _write(Path(path), ENCODER_FORMAT, config, params, entries)


def _write(
    path: Path,
    format_: str,
    config: MAEConfig | ViTConfig,
    params: Any,
    entries: Mapping[str, Mapping[str, Any]],
) -> str:
    flat = {k: np.ascontiguousarray(v, np.float32) for k, v in _flatten(params).items()}
    _check_shapes(path, config, {k: v.shape for k, v in flat.items()})
    entries = {"config": dataclasses.asdict(config), **entries}
    header = {"format": format_} | {k: json.dumps(v, sort_keys=True) for k, v in entries.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_tensors(path, flat, header)


def write_tensors(path: Path, flat: Mapping[str, np.ndarray], header: Mapping[str, str]) -> str:
    """Writes a safetensors file, whole or not at all, and returns its sha256.

    Raises:
      OSError: naming the file, if it cannot be written, for example on a full disk.
    """
    with replacing(path) as partial:
        try:
            save_file(dict(flat), partial, metadata=dict(header))
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written ({error}): what was there stays") from error
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
    _, config, params = _read(path, FORMAT, MAEConfig)
    return Backbone(params, config, sha256=file_sha256(path))


def load_encoder(path: str | os.PathLike[str]) -> Encoder:
    """Reads a frozen encoder, as ``save_encoder`` or ``cinemae convert`` writes it.

    Raises:
      BackboneError: if the file is missing, truncated, not an encoder, or does not hold exactly
        the tensors of its architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise BackboneError(f"encoder {path} does not exist: write it with `cinemae convert`")
    header, config, params = _read(path, ENCODER_FORMAT, ViTConfig)
    try:
        fields = json.loads(header["preprocessing"])
        lists = {k: tuple(fields[k]) for k in ("mean", "std")}
        preprocessing = Preprocessing(**fields | lists)
    except (KeyError, TypeError, ValueError) as error:
        raise BackboneError(f"{path}: its header holds no usable preprocessing: {error}") from error
    return Encoder(params, config, preprocessing, sha256=file_sha256(path))


def _read(path: Path, format_: str, kind: type[Config]) -> tuple[Mapping[str, str], Config, Any]:
    """Header, architecture and parameters of a file of the given format."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            config = _config_of(path, header, format_, kind)
            slices = {k: file.get_slice(k) for k in file.keys()}  # noqa: SIM118
            _check_sizes(path, config, {k: v.get_dtype() for k, v in slices.items()})
            shapes = {k: tuple(v.get_shape()) for k, v in slices.items()}
            _check_shapes(path, config, shapes)
            flat = {name: file.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise BackboneError(
            f"{path} is not a readable safetensors file ({error}): copy it again if it is "
            "truncated; convert a published checkpoint with `cinemae convert`"
        ) from error
    wrong = [k for k, v in flat.items() if not np.abs(v).max(initial=0) <= LARGEST]
    if wrong:
        raise BackboneError(
            f"{path} holds NaN, infinity or values above {LARGEST:g} in {_some(wrong)}: convert it "
            "again"
        )
    return header, config, traverse_util.unflatten_dict(flat, sep="/")


def origin(path: str | os.PathLike[str]) -> dict[str, str]:
    """The origin in a file's header: source, licence, data, ... by name."""
    with safe_open(resolve(path), framework="numpy") as file:
        return json.loads((file.metadata() or {}).get("origin", "{}"))


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expected_shapes(config: MAEConfig | ViTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of an architecture, without computing any."""

    def variables() -> Any:
        key = jax.random.key(0)
        if isinstance(config, ViTConfig):
            return vit.initial_variables(config, key)
        return mae.initial_variables(config, key)

    params = jax.eval_shape(variables)["params"]
    return {k: v.shape for k, v in _flatten(params).items()}


def _flatten(params: Params) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")


def _config_of(path: Path, header: Mapping[str, str], expected: str, kind: type[Config]) -> Config:
    found = header.get("format", "")
    if found != expected and found in _OTHER:
        raise BackboneError(f"{path} is {_OTHER[found]}")
    if found != expected:
        what = "a backbone" if expected == FORMAT else "an encoder"
        raise BackboneError(
            f"{path} is not {what} of this package: it has format {header.get('format')!r}, "
            f"expected {expected!r}; convert a published checkpoint with `cinemae convert`"
        )
    try:
        return kind(**json.loads(header["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BackboneError(
            f"{path} has no usable config in its header ({error}): convert it again"
        ) from error


def _check_sizes(path: Path, config: MAEConfig | ViTConfig, dtypes: Mapping[str, str]) -> None:
    """Refuses other types than float32, and sizes in a header that no file of this size has."""
    wrong = [f"{name} is {dtype}" for name, dtype in dtypes.items() if dtype != "F32"]
    if wrong:
        raise BackboneError(f"{path} must hold float32 (F32): {_some(wrong)}; convert it again")
    depth = config.depth + (config.decoder_depth if isinstance(config, MAEConfig) else 0)
    patches = (config.image_size // config.patch_size) ** 2
    if depth > len(dtypes) or config.image_size > MAX_SIDE or patches > MAX_PATCHES:
        raise BackboneError(
            f"{path} does not fit the architecture in its header: image_size {config.image_size}, "
            f"{patches} patches, depth {depth}, but {len(dtypes)} tensors; convert it again"
        )


def _check_shapes(
    path: Path, config: MAEConfig | ViTConfig, found: Mapping[str, tuple[int, ...]]
) -> None:
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
