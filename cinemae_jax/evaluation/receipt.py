"""The receipt of an evaluation: every score to the last bit, and all that it depends on.

``evaluate`` writes it beside its report; ``cinemae verify`` scores the images again and compares.
"""

import dataclasses
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from PIL import features as pillow

from cinemae_jax.detector import trained
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.features.sources import BankedSet, FeatureSet
from cinemae_jax.runtime.console import versions
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.runtime.files import replacing

FILE = "receipt.json"
FORMAT = "cinemae-receipt-1"
ONLINE, BANK = "online", "bank"

# Those that a score passes through.
PACKAGES = ("cinemae_jax", "jax", "jaxlib", "flax", "grain", "numpy", "pillow")
# Of Pillow: what turns files into pixels.
DECODERS = ("libjpeg_turbo", "jpg", "zlib", "zlib_ng", "webp", "avif", "libtiff", "jpg_2000")


class ReceiptError(ValueError):
    """A receipt that cannot be read or replayed; the message says why."""


@dataclasses.dataclass(frozen=True)
class Image:
    """What was said of one image.

    Attributes:
      example_id: of the catalog: a hash of its path below the data root.
      path: as the catalog had it.
      logits: float32 as Python floats, one a head; NaN where it could not be read.
      error: why it could not be read, or None.
    """

    example_id: int
    path: str
    logits: tuple[float, ...]
    error: str | None


@dataclasses.dataclass(frozen=True)
class Receipt:
    """Scores, and what they rest on.

    Attributes:
      facts: nested; all that a score depends on, and the settings of the devices (``facts_of``).
      source: ``online``, where the backbone saw the images while they were scored; ``bank``, where
        it had seen them before, in batches of its own.
      batch_size: of images through the backbone, over all devices.
      data: ``root`` and ``source`` of the data set, as the config has them.
      detector: file or name that was evaluated; empty for the run in the receipt's folder.
      command: that wrote it.
      images: in the order in which they were scored.
    """

    facts: dict[str, Any]
    source: str
    batch_size: int
    data: dict[str, str]
    detector: str
    command: str
    images: tuple[Image, ...]

    @property
    def is_exact(self) -> bool:
        """Whether a replay on the same machine must repeat every bit.

        Numbers of a bank come from batches of another shape, on which rounding depends.
        """
        return self.source == ONLINE


def of(
    detector: TrainedDetector,
    images: FeatureSet,
    table: pa.Table,
    replicas: Replicas,
    command: str,
) -> Receipt:
    """The receipt of an evaluation.

    Args:
      detector: that gave the scores, with the settings of this evaluation.
      images: where the features came from.
      table: of ``evaluate.score``.
      replicas: devices.
      command: for people to repeat.
    """
    config = detector.settings
    banked = isinstance(images, BankedSet)
    return Receipt(
        facts=facts_of(detector, replicas) | {"images": images.images.fingerprint},
        source=BANK if banked else ONLINE,
        batch_size=config.features.batch_size if banked else config.eval.batch_size,
        data={"root": config.data.root, "source": config.data.source},
        detector=config.eval.detector,
        command=command,
        images=tuple(images_of(table, config.num_seeds)),
    )


def images_of(table: pa.Table, num_heads: int) -> Iterator[Image]:
    """Scores of ``evaluate.score`` as a receipt has them."""
    names = ["logit", *(f"logit_{i}" for i in range(1, num_heads))]
    logits = np.stack([table[name].to_numpy(zero_copy_only=False) for name in names], axis=1)
    columns = (table[name].to_pylist() for name in ("example_id", "path", "error"))
    for example_id, path, error, row in zip(*columns, logits.tolist(), strict=True):
        yield Image(example_id, path, tuple(row), error)


def facts_of(detector: TrainedDetector, replicas: Replicas) -> dict[str, Any]:
    """All that a score depends on besides the images, as JSON has it."""
    config, devices = detector.settings, list(replicas.mesh.devices.flat)
    transform = config.data.eval_transform(detector.backbone.config.image_size)
    facts = {
        "backbone_sha256": detector.backbone.sha256,
        "head_sha256": trained.head_sha256(detector.heads),
        "checkpoint_step": detector.step,
        "seeds": {
            "masks": config.features.seed,
            "head": config.seed,
            "num_heads": config.num_seeds,
        },
        "preprocessing": {"transform": repr(transform), "decoders": decoders()},
        "detector": dataclasses.asdict(config.detector),
        "calibration": detector.calibration().to_dict(),
        "devices": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "matmul_precision": jax.config.values["jax_default_matmul_precision"],
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
        },
        "versions": versions(PACKAGES),
    }
    return json.loads(json.dumps(facts))


def decoders() -> dict[str, str]:
    """Versions of the libraries inside Pillow that decode files, those that it has."""
    found = {name: pillow.version(name) for name in DECODERS if pillow.check(name)}
    return {name: str(version) for name, version in found.items() if version}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A phrase for every fact that is another one: ``versions.jax was '0.10.2', is '0.12.0'``."""
    old, new = dict(_dotted(before)), dict(_dotted(after))
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


# --- on disk ------------------------------------------------------------------------------------


def write(path: Path, receipt: Receipt) -> None:
    """Writes JSON, an image a line; complete or not at all.

    Logits are hexadecimal floats (C99, ``float.fromhex``), which hold every bit.
    """
    head = {"format": FORMAT} | {
        field.name: getattr(receipt, field.name)
        for field in dataclasses.fields(receipt)
        if field.name != "images"
    }
    lines = (
        json.dumps(
            {
                "example_id": str(image.example_id),  # 64 bits are too many for JSON elsewhere
                "path": image.path,
                "logits": [logit.hex() for logit in image.logits],
                "error": image.error,
            }
        )
        for image in receipt.images
    )
    with replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
        file.write(json.dumps(head, indent=1).removesuffix("\n}"))
        file.write(',\n "images": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n")


def read(path: str | os.PathLike[str]) -> Receipt:
    """Reads what ``write`` wrote.

    Raises:
      ReceiptError: if it is no receipt.
      OSError: if there is no such file.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']!r}, expected {FORMAT!r}")
        facts, batch_size = dict(record["facts"]), int(record["batch_size"])
        needed = (facts["calibration"]["fpr"], facts["calibration"]["fnr"])
        if min(batch_size, int(facts["devices"]["count"]), *needed) <= 0:
            raise ValueError("batch size, number of devices and error rates must be positive")
        return Receipt(
            facts=facts,
            source=str(record["source"]),
            batch_size=batch_size,
            data={name: str(record["data"][name]) for name in ("root", "source")},
            detector=str(record["detector"]),
            command=str(record["command"]),
            images=tuple(_image(one) for one in record["images"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ReceiptError(
            f"{path} is no receipt of `python -m cinemae_jax.evaluate`: {error}"
        ) from error


def _image(record: Mapping[str, Any]) -> Image:
    logits = tuple(map(float.fromhex, record["logits"]))
    return Image(int(record["example_id"]), record["path"], logits, record["error"])


# --- comparison ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Difference:
    """An image of which something else is said now.

    Attributes:
      path: of the image.
      by: largest difference of a logit; infinite where it can be read only then or only now.
      words: what was, what is.
    """

    path: str
    by: float
    words: str


def differences(
    before: Sequence[Image], after: Mapping[int, Image], tolerance: float
) -> tuple[list[Difference], float]:
    """Images whose scores are not the same, in their order; and the largest difference of all.

    Args:
      before: of a receipt.
      after: of a replay, by example id.
      tolerance: difference of a logit up to which it counts as the same; 0 allows none.
    """
    found, largest = [], 0.0
    for old in before:
        new = after.get(old.example_id)
        if new is None:
            found.append(Difference(old.path, float("inf"), f"{_said(old)}; is not there now"))
        elif (by := _distance(old, new)) > tolerance:
            found.append(Difference(old.path, by, f"{_said(old)}; is {_said(new)} ({by:.2g})"))
        else:
            largest = max(largest, by)
    return found, max([largest, *(one.by for one in found)])


def _distance(old: Image, new: Image) -> float:
    if bool(old.error) != bool(new.error):
        return float("inf")
    a, b = np.array(old.logits), np.array(new.logits)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        by = np.where(same, 0.0, np.abs(a - b))
    return float(np.where(np.isnan(by), np.inf, by).max(initial=0.0))


def _said(image: Image) -> str:
    return image.error or ", ".join(f"{logit:.9g}" for logit in image.logits)
