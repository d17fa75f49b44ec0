"""The receipt of an evaluation: every score to the last bit, and everything it depends on.

``evaluate`` writes it next to its report; ``cinemae verify`` scores the images again and compares.
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

# Packages that can change a score.
PACKAGES = ("cinemae_jax", "jax", "jaxlib", "flax", "grain", "numpy", "pillow")
# Pillow's libraries that turn files into pixels.
DECODERS = ("libjpeg_turbo", "jpg", "zlib", "zlib_ng", "webp", "avif", "libtiff", "jpg_2000")


class ReceiptError(ValueError):
    """A receipt that cannot be read or replayed."""


@dataclasses.dataclass(frozen=True)
class Image:
    """The scores of one image.

    Attributes:
      example_id: the catalog's hash of the path below the data root.
      path: below the data root.
      logits: float32 values as Python floats, one per head; NaN if the image is unread.
      error: why the image is unread, or None.
    """

    example_id: int
    path: str
    logits: tuple[float, ...]
    error: str | None


@dataclasses.dataclass(frozen=True)
class Receipt:
    """Scores and everything they depend on.

    Attributes:
      facts: nested; backbone, head, seeds, preprocessing, devices, versions (``facts_of``).
      source: ``online`` if features were computed during the evaluation; ``bank`` if they were
        stored before, in batches of another size.
      batch_size: images per backbone batch, over all devices.
      data: ``root`` and ``source`` of the data set, as in the config.
      detector: file or name of the evaluated detector; empty for the run in the receipt's folder.
      command: command line of the evaluation.
      images: in scoring order.
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
        """Whether a replay on the same machine must reproduce every bit.

        Features of a bank come from batches of another shape, which changes the rounding.
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
      detector: evaluated detector, with the settings of this evaluation.
      images: source of the features.
      table: of ``scores.score``.
      replicas: devices.
      command: command line to repeat the evaluation.
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
    """Rows of ``scores.score`` as images of a receipt."""
    names = ["logit", *(f"logit_{i}" for i in range(1, num_heads))]
    logits = np.stack([table[name].to_numpy(zero_copy_only=False) for name in names], axis=1)
    columns = (table[name].to_pylist() for name in ("example_id", "path", "error"))
    for example_id, path, error, row in zip(*columns, logits.tolist(), strict=True):
        yield Image(example_id, path, tuple(row), error)


def facts_of(detector: TrainedDetector, replicas: Replicas) -> dict[str, Any]:
    """Everything a score depends on besides the images, as JSON values."""
    config, devices = detector.settings, list(replicas.mesh.devices.flat)
    backbone = detector.backbone
    transform = config.data.eval_transform(backbone.config.image_size, backbone.preprocessing)
    view = {"global_view": repr(transform.view)} if transform.view else {}
    facts = {
        **backbone.hashes,
        "head_sha256": trained.head_sha256(detector.heads),
        "checkpoint_step": detector.step,
        "seeds": {
            "masks": config.features.seed,
            "head": config.seed,
            "num_heads": config.num_seeds,
        },
        "preprocessing": {"transform": repr(transform), **view, "decoders": decoders()},
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
    """Versions of the decoding libraries that this Pillow was built with."""
    found = {name: pillow.version(name) for name in DECODERS if pillow.check(name)}
    return {name: str(version) for name, version in found.items() if version}


# --- on disk ------------------------------------------------------------------------------------


def write(path: Path, receipt: Receipt) -> None:
    """Writes a receipt as JSON with one line per image, atomically.

    Logits are hexadecimal floats (C99, ``float.fromhex``), which keep every bit.
    """
    head = {"format": FORMAT} | {
        field.name: getattr(receipt, field.name)
        for field in dataclasses.fields(receipt)
        if field.name != "images"
    }
    lines = (
        json.dumps(
            {
                "example_id": str(image.example_id),  # 64 bits: many JSON readers would round
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
    """Reads a receipt.

    Raises:
      ReceiptError: if the file is not a valid receipt.
      OSError: if the file cannot be read.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        record = json.loads(text)
        if record["format"] != FORMAT:
            raise ValueError(f"format is {record['format']!r}, expected {FORMAT!r}")
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
            f"{path} is not a receipt ({type(error).__name__}: {error}): use the {FILE} that "
            "`python -m cinemae_jax.evaluate` wrote"
        ) from error


def _image(record: Mapping[str, Any]) -> Image:
    logits = tuple(map(float.fromhex, record["logits"]))
    return Image(int(record["example_id"]), record["path"], logits, record["error"])


# --- comparison ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Difference:
    """An image whose scores changed.

    Attributes:
      path: of the image.
      by: largest logit difference; infinite if the image was read only once, then or now.
      words: the old and the new scores, or errors.
    """

    path: str
    by: float
    words: str


def differences(
    before: Sequence[Image], after: Mapping[int, Image], tolerance: float
) -> tuple[list[Difference], float]:
    """The images whose scores changed, in order, and the largest logit difference of all images.

    Args:
      before: images of a receipt.
      after: images of a replay, by example id.
      tolerance: largest logit difference that counts as equal; 0 requires equal bits.
    """
    found, largest = [], 0.0
    for old in before:
        new = after.get(old.example_id)
        if new is None:
            found.append(Difference(old.path, float("inf"), f"{_said(old)}; is missing now"))
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
