"""A detector as a StableHLO artefact that runs on any XLA runtime, without this package.

Two files: the program with all weights (``jax.export``), and a JSON record of the preprocessing it
expects and the calibration of its logits.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export
from jaxtyping import Float, UInt32

from cinemae_jax import __version__, weights
from cinemae_jax.data.modes import BACKGROUND
from cinemae_jax.data.transforms import MultiCrop, Pixels, Views
from cinemae_jax.detector import inference
from cinemae_jax.detector.api import OPINION, Detector
from cinemae_jax.runtime.files import replacing

FORMAT = "cinemae-export-1"
# Default platforms of an artefact.
PLATFORMS = ("cpu", "cuda", "tpu")


class ExportError(ValueError):
    """An artefact that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Artefact:
    """An exported detector.

    Attributes:
      program: of ``jax.export``; its ``call`` takes crops and example ids.
      record: content of the JSON file.
    """

    program: jax_export.Exported
    record: dict[str, Any]

    def __call__(
        self, images: Pixels, example_ids: UInt32[np.ndarray, " b"]
    ) -> Float[np.ndarray, " b"]:
        """Logits of any number of images from their crops and example ids.

        With a global encoder, the images are ``Views`` with an axis of images in front.
        """
        return np.asarray(self.program.call(*jax.tree.leaves(images), example_ids))


def record_path(path: str | os.PathLike[str]) -> Path:
    """The JSON file of an artefact."""
    return Path(path).with_name(Path(path).name + ".json")


def save(
    path: str | os.PathLike[str], detector: Detector, *, platforms: Sequence[str] = PLATFORMS
) -> dict[str, Any]:
    """Writes an artefact and its record; returns the record.

    Args:
      path: of the artefact; the record goes to ``record_path``.
      detector: loaded with its default number of runs.
      platforms: that the program is lowered for.

    Raises:
      ValueError: if the detector uses more runs than in training.
    """
    trained = detector.trained
    if detector.runs != trained.settings.detector.num_runs:
        raise ValueError(
            f"the detector was loaded with {detector.runs} masking runs per image: load it with "
            f"the {trained.settings.detector.num_runs} of its training to export it"
        )
    logits = inference.make_logits(trained.settings.detector)
    frozen = trained.backbone, trained.first_head

    shown = detector.transform.shape, detector.transform.global_shape
    squares = [shape for shape in shown if shape]

    def program(*arguments: jax.Array) -> jax.Array:
        *images, example_ids = arguments
        pixels: Any = Views._make(images) if len(images) > 1 else images[0]
        return logits(*frozen, trained.mask_key, pixels, example_ids).logit[:, 0]

    (batch,) = jax_export.symbolic_shape("b")
    shapes = (
        *(jax.ShapeDtypeStruct((batch, *shape), np.uint8) for shape in squares),
        jax.ShapeDtypeStruct((batch,), np.uint32),
    )
    exported = jax_export.export(jax.jit(program), platforms=tuple(platforms))(*shapes)
    path = Path(path)
    _replace(path, exported.serialize())
    record = _record(detector) | {
        "platforms": list(platforms),
        "artefact_sha256": weights.file_sha256(path),
    }
    _replace(record_path(path), (json.dumps(record, indent=1) + "\n").encode())
    return record


def load(path: str | os.PathLike[str]) -> Artefact:
    """Loads an artefact.

    Raises:
      ExportError: if one of the two files is missing or damaged, or they do not match.
    """
    for needed in (Path(path), record_path(path)):
        if not needed.is_file():
            raise ExportError(f"{needed} is missing: `cinemae export` writes both files")
    try:
        record = json.loads(record_path(path).read_text())
    except ValueError as error:
        raise ExportError(f"{record_path(path)} is not valid JSON: {error}") from error
    if record.get("format") != FORMAT:
        raise ExportError(f"{record_path(path)} does not have the format {FORMAT!r}")
    if record["artefact_sha256"] != weights.file_sha256(Path(path)):
        raise ExportError(f"{path} and {record_path(path)} do not match: export again")
    return Artefact(jax_export.deserialize(bytearray(Path(path).read_bytes())), record)


def _record(detector: Detector) -> dict[str, Any]:
    trained, transform = detector.trained, detector.transform
    return {
        "format": FORMAT,
        "version": __version__,
        "jax": jax.__version__,
        "detector": detector.name,
        **trained.backbone.hashes,
        "note": OPINION,
        "inputs": {
            "images": "uint8 (b, crops, size, size, 3), RGB",
            **_global_input(transform),
            "example_ids": "uint32 (b,), by which the masks of each image are drawn",
        },
        "output": "float32 (b,), logit of AI, averaged over crops",
        "preprocessing": {
            "orientation": "EXIF applied",
            "transparency": f"composited over {list(BACKGROUND)}",
            "colour": "8-bit RGB; colour profiles are not applied",
            "resize": transform.resize,
            "resize_rule": "shorter side to this many pixels, longer side rounded down, Pillow's "
            "bicubic filter; 0: no resize",
            "crops": transform.num_crops,
            "size": transform.size,
            "crop_rule": "one crop: the centre, margins halved and rounded to even; several: a "
            "square grid, evenly spaced from corner to corner, row by row; short sides are "
            "reflected (numpy.pad, symmetric)",
            "example_id": "last 4 bytes, big-endian, of the 8-byte blake2b hash of "
            "'<width>x<height>:' and the decoded RGB bytes",
        },
        "masks": {"seed": trained.settings.features.seed, "runs": detector.runs},
        "calibration": detector.calibration.to_dict(),
    }


def _global_input(transform: MultiCrop) -> dict[str, str]:
    """The second input of a detector with a global encoder."""
    if not (view := transform.view):
        return {}
    if view.of == "crop":
        made = "every crop"
    elif view.shortest_edge:
        made = f"the image with its shorter side at {view.shortest_edge} pixels, centre square"
    else:
        made = "the whole image"
    size = f"{view.size} x {view.size} pixels, Pillow's {view.interpolation} filter"
    return {"global_images": f"uint8 (b, squares, size, size, 3), RGB: {made}, at {size}"}


def _replace(path: Path, content: bytes | bytearray) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)
