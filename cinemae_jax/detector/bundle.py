"""A trained detector in one portable safetensors file, with everything except its backbone.

The file holds heads, normalizers and held-out scores.  Its header holds the settings, the sha256 of
the backbone and the card, a description for readers.  It names no folder of the machine that wrote
it.
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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open

from cinemae_jax import __version__, typed, weights
from cinemae_jax.data.inspect.facts import SAME_FORMAT
from cinemae_jax.detector import loading, resuming, trained
from cinemae_jax.detector.trained import HeldOut, TrainedDetector
from cinemae_jax.features import filling
from cinemae_jax.model.config import as_before
from cinemae_jax.runtime.checkpoints import CheckpointError
from cinemae_jax.settings import Settings

FORMAT = "cinemae-detector-1"
ASSETS = Path(__file__).parents[1] / "assets"
# By name, the best first.
BUNDLED = {"clip": "clip_detector.safetensors", "tiny": "tiny_detector.safetensors"}
# Entries of the header that name the frozen files by their hashes.
_HASHES = ("backbone_sha256", "global_backbone_sha256")
# Replaces the folder of the training images in the header.
NOT_KEPT = "not kept"


class BundleError(CheckpointError):
    """A file without a usable detector."""


@dataclasses.dataclass(frozen=True)
class TrainingView:
    """What is known of the files that a head was trained on.

    Attributes:
      formats: file formats by content, as Pillow names them.
      shorter_sides: smallest and largest shorter side, pixels.
    """

    formats: tuple[str, ...]
    shorter_sides: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A detector, loaded from a file or a training run, with what people should know of it.

    Attributes:
      detector: with its backbone.
      name: of the file, the folder or the bundled detector.
      card: what it was trained on and what it is good for; may be empty.
      seen: None if unknown.
    """

    detector: TrainedDetector
    name: str
    card: str = ""
    seen: TrainingView | None = None


def save(path: str | os.PathLike[str], bundle: Bundle) -> str:
    """Writes a detector and returns the sha256 of the file.

    Args:
      path: of the file, replaced atomically.
      bundle: to write; its name is not stored, the file's name is used instead.
    """
    detector = bundle.detector
    tree = {"heads": detector.heads, "held_out": detector.held_out}
    header = {
        "format": FORMAT,
        "version": __version__,
        "settings": json.dumps(
            dataclasses.asdict(detector.settings.portable(NOT_KEPT)), sort_keys=True
        ),
        **detector.backbone.hashes,
        "step": str(detector.step),
        "held_out_images": detector.held_out_images,
        "num_held_out": str(len(detector.held_out.label)),
        "seen": json.dumps(None if bundle.seen is None else dataclasses.asdict(bundle.seen)),
        "card": bundle.card,
    }
    if detector.held_out_sources:
        header["held_out_sources"] = json.dumps(detector.held_out_sources)
    return weights.write_tensors(Path(path), _flatten(tree), header)


def load(
    source: str | os.PathLike[str] = "", *, backbone: str = "", global_backbone: str = ""
) -> Bundle:
    """Loads a trained detector.

    Args:
      source: name of a bundled detector (``clip``, ``tiny``), file of ``save``, or folder of a
        training run; empty takes the best bundled one (``best``).
      backbone, global_backbone: files of its backbone and of its global encoder; empty takes those
        that the detector names, looking next to the file first.

    Raises:
      CheckpointError: if the detector is missing, damaged, or trained on another backbone.
      weights.BackboneError: if the backbone cannot be read.
    """
    name = os.fspath(source) or best()
    given = {"backbone": backbone, "global_backbone": global_backbone}
    for kind, file in given.items():
        if file and not weights.resolve(file).is_file():
            raise weights.BackboneError(f"{kind.replace('_', ' ')} {file} does not exist")
    if name in BUNDLED:
        path = ASSETS / BUNDLED[name]
        if not path.is_file():
            raise BundleError(
                f"this installation lacks the bundled detector {name!r} ({path.name}): use the "
                "folder of a training run or a file of `cinemae bundle`"
            )
        return dataclasses.replace(_read(path, given), name=name)
    path = Path(name)
    if path.is_dir():
        detector = loading.load(path, backbone=backbone, global_backbone=global_backbone)
        bank = filling.bank_folder(detector.settings.features, path)
        return Bundle(detector, path.resolve().name, seen=_seen_by(bank))
    if not path.is_file():
        raise BundleError(
            f"no detector {name}: use the folder of a training run, a file of `cinemae bundle`, "
            f"or the name of a bundled detector ({', '.join(BUNDLED)})"
        )
    return _read(path, given)


def best() -> str:
    """Name of the best bundled detector that this installation has."""
    return next((name for name, file in BUNDLED.items() if (ASSETS / file).is_file()), "tiny")


def identity(detector: TrainedDetector) -> str:
    """12 hex digits of everything that determines the scores; equal for a run and its bundle."""
    data = detector.settings.data
    choices = {
        "backbone": detector.backbone.sha256,
        **_of_encoder(detector),
        "detector": as_before(dataclasses.asdict(detector.settings.detector)),
        "crops": (data.resize, data.scored_crops),
        "mask_seed": detector.settings.features.seed,
        "heads": trained.head_sha256(detector.heads),
    }
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()[:12]


def _of_encoder(detector: TrainedDetector) -> dict[str, str]:
    """What scores depend on besides, with a global encoder."""
    encoder = detector.backbone.encoder
    if encoder is None:
        return {}
    return {"global_backbone": encoder.sha256, "global_view": detector.settings.data.global_view}


# --- reading ------------------------------------------------------------------------------------


def _read(path: Path, given: Mapping[str, str]) -> Bundle:
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BundleError(f"{path} is not a readable safetensors file ({error})") from error
    if header.get("format") != FORMAT:
        raise BundleError(
            f"{path} is not a detector (format {header.get('format')!r}, expected {FORMAT!r}): "
            "write one with `cinemae bundle`"
        )
    try:
        config = typed.read(json.loads(header["settings"]), Settings, saved=True)
        num_held_out, step = int(header["num_held_out"]), int(header["step"])
        seen = _seen_of(json.loads(header["seen"]))
        hashes = {k: header[k] for k in _HASHES if k in header}
        images, card = (header[k] for k in ("held_out_images", "card"))
        sources = tuple(int(n) for n in json.loads(header.get("held_out_sources", "[]")))
        if len(sources) not in (0, num_held_out):
            raise ValueError(f"{len(sources)} held_out_sources, expected {num_held_out}")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{path} has a damaged header ({type(error).__name__}: {error}): write the file again "
            "with `cinemae bundle`"
        ) from error
    backbone, encoder = (
        _frozen_file(path, kind, getattr(config, kind), file, hashes)
        for kind, file in given.items()
    )
    config = dataclasses.replace(config, backbone=backbone, global_backbone=encoder)
    frozen = loading.load_backbone(config)
    resuming.require_backbone(hashes, frozen, path)
    _require_counts(path, flat, num_held_out, config.num_seeds)
    like = jax.eval_shape(  # shapes alone: sizes in a header may be anything
        lambda: {
            "heads": trained.head_template(config, frozen),
            "held_out": HeldOut.unknown(num_held_out, config.num_seeds),
        }
    )
    tree = _unflatten(path, flat, like)
    held_out = tree["held_out"]
    detector = TrainedDetector(frozen, tree["heads"], config, step, held_out, images, sources)
    return Bundle(detector, path.name.removesuffix(".safetensors"), card, seen)


def _frozen_file(path: Path, kind: str, name: str, given: str, hashes: Mapping[str, str]) -> str:
    """The file of a detector's backbone or global backbone (``kind``): given, beside it, or named.

    A detector without a global backbone has no ``name`` for it: the result is empty.

    Raises:
      weights.BackboneError: if there is no such file.
    """
    if not name:
        return ""
    name = Path(name).name  # `save` writes a name: a file must not lead to other folders
    beside = path.parent / name
    found = given or (str(beside) if beside.is_file() else name)
    if not weights.resolve(found).is_file():
        what, digest = kind.replace("_", " "), hashes.get(f"{kind}_sha256", "")[:12]
        raise weights.BackboneError(
            f"{path} needs the {what} {name} (sha256 {digest}…): put it next to the detector, or "
            f"name its file as the {what}"
        )
    return found


def _flatten(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All arrays by path, with their dtypes (float32, int32)."""
    flat = traverse_util.flatten_dict(serialization.to_state_dict(dict(tree)), sep="/")
    return {name: np.ascontiguousarray(values) for name, values in flat.items()}


def _unflatten(path: Path, flat: Mapping[str, np.ndarray], like: Mapping[str, Any]) -> Any:
    shapes = traverse_util.flatten_dict(serialization.to_state_dict(dict(like)), sep="/")
    expected = {name: (a.shape, a.dtype) for name, a in shapes.items()}
    found = {name: (a.shape, a.dtype) for name, a in flat.items()}
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if wrong:
        raise BundleError(
            f"{path} is damaged: arrays do not fit its settings: {', '.join(wrong[:5])}"
        )
    if infinite := [n for n, a in flat.items() if n.startswith("heads") and not _finite(a)]:
        raise BundleError(f"{path} is damaged: non-finite values in {', '.join(infinite[:5])}")
    nested = traverse_util.unflatten_dict(dict(flat), sep="/")
    return serialization.from_state_dict(dict(like), nested)


def _require_counts(
    path: Path, flat: Mapping[str, np.ndarray], num_held_out: int, num_seeds: int
) -> None:
    """Compares the counts in a header with the arrays that are there, before any is allocated."""
    logit = flat.get("held_out/logit", np.zeros(0))
    found = dict(zip(("num_held_out", "num_seeds"), logit.shape, strict=False))
    for name, said in (("num_held_out", num_held_out), ("num_seeds", num_seeds)):
        if found.get(name) != said:
            raise BundleError(
                f"{path} is damaged: its header says {name} {said}, its arrays {found.get(name)}: "
                "copy it again, or write it again with `cinemae bundle`"
            )


def _finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).all())


# --- what the head was trained on ---------------------------------------------------------------


def _seen_by(bank: Path) -> TrainingView | None:
    """Facts of the training files from the run's bank; None without one."""
    parts = sorted((bank / "train").glob("*.parquet"))
    if not parts:
        return None
    facts = pq.read_table(parts, columns=["format", "width", "height"])
    facts = facts.filter(pc.greater(facts["width"], 0))  # 0: unreadable header
    if not len(facts):
        return None
    sides = pc.min_max(pc.min_element_wise(facts["width"], facts["height"])).as_py()
    formats = {SAME_FORMAT.get(name, name) for name in pc.unique(facts["format"]).to_pylist()}
    return TrainingView(tuple(sorted(formats)), (sides["min"], sides["max"]))


def _seen_of(record: Mapping[str, Any] | None) -> TrainingView | None:
    if record is None:
        return None
    low, high = record["shorter_sides"]
    return TrainingView(tuple(record["formats"]), (int(low), int(high)))
