"""The images that a detector got most wrong, small enough for a report, and what surprised it."""

import base64
import functools
import io
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from PIL import Image

from cinemae_jax.data import collection
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.decode import DecodeError, decode
from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.detector import heatmap, inference, inputs
from cinemae_jax.detector.heatmap import LcasMap
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation.report import Hard
from cinemae_jax.model.config import DetectorConfig

COUNT = 6  # of each class
SIDE = 180  # pixels at most
JPEG_QUALITY = 80


def find(
    detector: TrainedDetector, images: Catalog, scores: pa.Table, count: int = COUNT
) -> list[Hard]:
    """Photographs with the highest scores and AI images with the lowest, most wrong first.

    Each is decoded again, with the limits of any other image; the maps cost about as much as
    scoring a few dozen images.

    Args:
      detector: that scored them; the first head counts.
      images: the catalog that was scored.
      scores: of ``evaluate.with_verdicts``; a row an image of the catalog.
      count: of each class at most.
    """
    read = collection.open_images(images, source=detector.settings.data.source).read
    mapped = _Mapper(detector) if detector.backbone.config.has_decoder else None
    found = []
    for row in _rows(scores, count):
        record = scores.slice(row, 1).to_pylist()[0]
        thumbnail = shown = ""
        try:
            picture = decode(read(row))
        except (DecodeError, OSError) as error:  # it was there when it was scored
            note = str(error)
        else:
            note = ""
            if mapped:
                lcas_map = mapped(picture, record["example_id"])
                picture, shown = lcas_map.image, _data_uri(overlay(lcas_map))
            thumbnail = _data_uri(picture)
        found.append(
            Hard(
                path=record["path"],
                label=CLASS_NAMES[record["label"]],
                generator=record["generator"],
                probability=record["calibrated_probability"],
                verdict=record["verdict"],
                is_wrong=(record["logit"] > 0) != bool(record["label"]),
                thumbnail=thumbnail,
                heatmap=shown,
                note=note,
            )
        )
    return found


def _rows(scores: pa.Table, count: int) -> Iterator[int]:
    logit, label = scores["logit"].to_numpy(), scores["label"].to_numpy()
    for kind in range(len(CLASS_NAMES)):
        own = np.flatnonzero((label == kind) & np.isfinite(logit))
        wrongness = logit[own] if kind == 0 else -logit[own]
        yield from own[np.argsort(-wrongness, kind="stable")][:count].tolist()


class _Mapper:
    """Heatmaps under the masks that the scores rest on, and further ones."""

    def __init__(self, detector: TrainedDetector) -> None:
        config = detector.settings
        self._transform = config.data.eval_transform(detector.backbone.config.image_size)
        self._frozen = jax.device_put((detector.backbone, detector.first_head, detector.mask_key))
        self._maps = _compiled(config.detector)

    def __call__(self, image: Image.Image, example_id: int) -> LcasMap:
        crops = inputs.crops(image, self._transform)
        values, hidden = jax.device_get(
            self._maps(*self._frozen, crops, np.uint32(example_id & 0xFFFFFFFF))
        )
        how: dict[str, Any] = {"runs": heatmap.RUNS, "score": heatmap.SHOWN}
        return heatmap.assemble(image, self._transform, values, hidden, **how)


@functools.cache
def _compiled(config: DetectorConfig) -> Any:
    return jax.jit(inference.make_maps(config, heatmap.RUNS, heatmap.SHOWN))


def overlay(lcas_map: LcasMap) -> Image.Image:
    """The map over the picture in grey; grey alone where nothing was looked at."""
    from matplotlib import colormaps  # a second, which only reports pay

    values = lcas_map.values
    known = np.isfinite(values)
    low, high = np.quantile(values[known], heatmap.QUANTILES) if known.any() else (0.0, 1.0)
    level = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-12), 0, 1)
    colours = 255 * colormaps["inferno"](level)[..., :3]
    grey = np.asarray(lcas_map.image.convert("L"), np.float64)[..., None]
    opacity = heatmap.OVERLAY * known[..., None]
    return Image.fromarray(np.round((1 - opacity) * grey + opacity * colours).astype(np.uint8))


def _data_uri(image: Image.Image) -> str:
    """A small JPEG, without anything that the file said besides its pixels."""
    small = Image.fromarray(np.asarray(image))
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
