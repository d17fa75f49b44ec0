"""The images that a detector got most wrong, as thumbnails and heat maps for the report."""

import base64
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from PIL import Image

from cinemae_jax.data import collection
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.decode import decode
from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.data.refusal import DecodeError
from cinemae_jax.detector import heatmap
from cinemae_jax.detector.heatmap import LcasMap
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation.report import Hard

COUNT = 6  # images per class
SIDE = 180  # longest side of a thumbnail, pixels
JPEG_QUALITY = 80

Draw = Callable[[Image.Image, int], LcasMap]


def find(
    detector: TrainedDetector, images: Catalog, scores: pa.Table, count: int = COUNT
) -> list[Hard]:
    """The photographs with the highest scores and the AI images with the lowest, worst first.

    Decodes these images again, with the usual limits.  The heat maps cost about as much as scoring
    a few dozen images.

    Args:
      detector: that gave the scores; its first head counts.
      images: the scored catalog.
      scores: of ``scores.with_verdicts``; one row per image of the catalog.
      count: images per class, at most.
    """
    read = collection.open_images(images, source=detector.settings.data.source).read
    draw = _drawer(detector)
    return [
        _hard(scores.slice(row, 1).to_pylist()[0], functools.partial(read, row), draw)
        for row in _rows(scores, count)
    ]


def _rows(scores: pa.Table, count: int) -> Iterator[int]:
    logit, label = scores["logit"].to_numpy(), scores["label"].to_numpy()
    for kind in range(len(CLASS_NAMES)):
        own = np.flatnonzero((label == kind) & np.isfinite(logit))
        wrongness = logit[own] if kind == 0 else -logit[own]
        yield from own[np.argsort(-wrongness, kind="stable")][:count].tolist()


def _hard(record: Mapping[str, Any], read: Callable[[], bytes], draw: Draw | None) -> Hard:
    thumbnail = overlay = note = ""
    try:
        image = decode(read())
    except (DecodeError, OSError) as error:  # it was readable when it was scored
        note = str(error)
    else:
        if draw:
            lcas_map = draw(image, record["example_id"])
            image, overlay = lcas_map.image, _data_uri(lcas_map.overlay())
        thumbnail = _data_uri(image)
    return Hard(
        path=record["path"],
        label=CLASS_NAMES[record["label"]],
        generator=record["generator"],
        probability=record["probability"],
        verdict=record["verdict"],
        is_wrong=(record["logit"] > 0) != bool(record["label"]),
        thumbnail=thumbnail,
        heatmap=overlay,
        note=note,
    )


def _drawer(detector: TrainedDetector) -> Draw | None:
    """Draws heat maps with the masks of the scores and further ones; None without a decoder."""
    if not detector.backbone.config.has_decoder:
        return None
    config = detector.settings
    frozen = jax.device_put((detector.backbone, detector.first_head, detector.mask_key))
    transform = config.data.eval_transform(detector.backbone.config.image_size)
    return lambda image, example_id: heatmap.compute(
        frozen, image, example_id, transform, config.detector
    )


def _data_uri(image: Image.Image) -> str:
    """A small JPEG without the metadata of the file."""
    small = Image.fromarray(np.asarray(image))
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
