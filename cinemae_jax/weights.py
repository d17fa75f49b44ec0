"""Frozen backbones and encoders on disk: one safetensors file ↔ ``Backbone`` or ``Encoder``.

The file's header holds architecture and origin, and the target of a backbone or the preprocessing
of an encoder; tensors are named by Flax paths joined by '/'.  An encoder's kernels may be stored in
4 or 8 bits: as two tensors each, named with ``CODES`` and ``SCALES``.  No pickle is read, and a
missing tensor is an error, never filled with random numbers.
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

from cinemae_jax.data import kinds
from cinemae_jax.model import mae, quantised, vit
from cinemae_jax.model.arrays import Params
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.config import MAEConfig
from cinemae_jax.model.quantised import GROUP, Bits
from cinemae_jax.model.vit import Encoder, Preprocessing, ViTConfig
from cinemae_jax.runtime.files import replacing

FORMAT = "cinemae-backbone-1"
ENCODER_FORMAT = "cinemae-encoder-1"
BUNDLED = {"tiny": "tiny_backbone.safetensors", "clip": "clip_encoder.safetensors"}
# Suffixes of the two tensors of a kernel in few bits.
CODES, SCALES = "#codes", "#scales"
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
    """The file of a bundled name (backbone ``tiny``, encoder ``clip``); other paths as they are."""
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
    *,
    bits: Bits | None = None,
) -> str:
    """Writes an encoder, with what its images must go through, and returns the file's sha256.

    Args:
      path: of the file; an older one is replaced only when the new one is complete.
      config: architecture of the parameters.
      params: of ``ViT``.
      preprocessing: of its images.
      origin: where they come from, for people.
      bits: of the kernels in its blocks (``model.quantised``); None stores float32.

    Raises:
      BackboneError: if the parameters do not fit the architecture; nothing is written then.
    """
    entries = {"origin": dict(origin or {}), "preprocessing": dataclasses.asdict(preprocessing)}
    return _write(Path(path), ENCODER_FORMAT, config, params, entries, bits)


def _write(
    path: Path,
    format_: str,
    config: MAEConfig | ViTConfig,
    params: Any,
    entries: Mapping[str, Mapping[str, Any]],
    bits: Bits | None = None,
) -> str:
    flat = {k: np.ascontiguousarray(v, np.float32) for k, v in _flatten(params).items()}
    _check_shapes(path, config, {k: v.shape for k, v in flat.items()})
    entries = {"config": dataclasses.asdict(config), **entries}
    header = {"format": format_} | {k: json.dumps(v, sort_keys=True) for k, v in entries.items()}
    if bits is not None:
        flat, header = _quantised(flat, bits), header | {"bits": str(bits)}
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
            f"backbone {path} does not exist: name a converted .safetensors file, or the bundled "
            "backbone (tiny)"
        )
    _, config, params = _read(path, FORMAT, MAEConfig)
    return Backbone(params, config, sha256=file_sha256(path))


def load_encoder(path: str | os.PathLike[str]) -> Encoder:
    """Reads a frozen encoder, as ``save_encoder`` or ``cinemae convert`` writes it, or ``clip``.

    Raises:
      BackboneError: if the file is missing, truncated, not an encoder, or does not hold exactly
        the tensors of its architecture.
    """
    path = resolve(path)
    if not path.is_file():
        raise BackboneError(
            f"encoder {path} does not exist: write it with `cinemae convert`, or name the bundled "
            "encoder (clip)"
        )
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
    with open(path, "rb") as start:
        if failed := kinds.failed_download(start.read(kinds.LOOKED_AT)):
            raise BackboneError(f"{path}: {failed}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            config = _config_of(path, header, format_, kind)
            slices = {k: file.get_slice(k) for k in file.keys()}  # noqa: SIM118
            bits = _bits_of(path, header)
            dtypes = {k: v.get_dtype() for k, v in slices.items()}
            _check_sizes(path, config, dtypes, bits)
            shapes = {k: tuple(v.get_shape()) for k, v in slices.items()}
            _check_shapes(path, config, _unpacked_shapes(shapes, bits))
            flat = {name: file.get_tensor(name) for name in shapes}
    except SafetensorError as error:
        raise BackboneError(
            f"{path} is not a readable safetensors file ({error}): copy it again if it is "
            "truncated; convert a published checkpoint with `cinemae convert`"
        ) from error
    if bits is not None:
        flat = _dequantised(path, flat, bits)
    wrong = [k for k, v in flat.items() if not np.abs(v).max(initial=0) <= LARGEST]
    if wrong:
        raise BackboneError(
            f"{path} holds NaN, infinity or values above {LARGEST:g} in {_some(wrong)}: convert it "
            "again"
        )
    return header, config, traverse_util.unflatten_dict(flat, sep="/")


# --- kernels in few bits ------------------------------------------------------------------------


def _quantised(flat: Mapping[str, np.ndarray], bits: Bits) -> dict[str, np.ndarray]:
    stored: dict[str, np.ndarray] = {}
    for name, values in flat.items():
        if name.startswith("block_") and name.endswith("/kernel") and not len(values) % GROUP:
            codes, scales = quantised.quantise(values, bits)
            stored[name + CODES], stored[name + SCALES] = quantised.deflate(codes), scales
        else:
            stored[name] = values
    return stored


def _dequantised(path: Path, stored: Mapping[str, np.ndarray], bits: Bits) -> dict[str, np.ndarray]:
    flat = {k: v for k, v in stored.items() if not k.endswith((CODES, SCALES))}
    for name in [k.removesuffix(CODES) for k in stored if k.endswith(CODES)]:
        scales = stored[name + SCALES]
        inputs, outputs = len(scales) * GROUP, scales.shape[1]
        try:
            codes = quantised.inflate(stored[name + CODES], inputs, outputs, bits)
        except ValueError as error:
            raise BackboneError(f"{path}: {name}: {error}; copy it again") from error
        flat[name] = quantised.dequantise(codes, scales, bits)
    return flat


def _bits_of(path: Path, header: Mapping[str, str]) -> Bits | None:
    match header.get("bits"):
        case None:
            return None
        case "4":
            return 4
        case "8":
            return 8
    raise BackboneError(f"{path} has kernels of {header['bits']!r} bits: 4 and 8 can be read")


def _unpacked_shapes(
    shapes: Mapping[str, tuple[int, ...]], bits: Bits | None
) -> dict[str, tuple[int, ...]]:
    """Shapes after ``_dequantised``; a part without its other keeps its name, to be refused."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        whole = name.removesuffix(SCALES).removesuffix(CODES)
        if bits is None or name == whole or not {whole + CODES, whole + SCALES} <= shapes.keys():
            found[name] = shape
        elif name.endswith(SCALES):
            found[whole] = (shape[0] * GROUP, *shape[1:])
    return found


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


def _check_sizes(
    path: Path, config: MAEConfig | ViTConfig, dtypes: Mapping[str, str], bits: Bits | None
) -> None:
    """Refuses wrong types, and sizes in a header that no file of this size has."""
    stored = {CODES: "U8", SCALES: "F16"} if bits is not None else {}
    wrong = [
        f"{name} is {dtype}"
        for name, dtype in dtypes.items()
        if dtype != next((t for end, t in stored.items() if name.endswith(end)), "F32")
    ]
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
