"""Scores the images of a receipt again and compares the scores."""

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import receipt, scores
from cinemae_jax.evaluation.receipt import Difference, Receipt, ReceiptError
from cinemae_jax.features.run import UNREAD
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.runtime import differences
from cinemae_jax.runtime.console import printable
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings

# Logit tolerance for scores from a bank: batches of another shape round differently, and a
# difference this small does not change the meaning of a score.
BANK_TOLERANCE = 1e-4
LISTED = 10  # changed images printed at most


@dataclasses.dataclass(frozen=True)
class Replay:
    """The result of a replay.

    Attributes:
      num_images: number of compared images.
      found: images whose scores changed, in the receipt's order.
      largest: largest logit difference.
      tolerance: largest logit difference that counts as equal.
      changes: facts of the receipt that changed.
    """

    num_images: int
    found: list[Difference]
    largest: float
    tolerance: float
    changes: list[str]

    def in_words(self) -> list[str]:
        """Lines to print: the result, the changed images, the changed facts."""
        said = []
        if self.found:
            said.append(
                f"differs   {len(self.found)} of {self.num_images} images by more than "
                f"{self.tolerance:g}; largest logit difference {self.largest:.3g}"
            )
            said += [
                printable(f"          {one.path}: was {one.words}") for one in self.found[:LISTED]
            ]
            if len(self.found) > LISTED:
                said.append(f"          and {len(self.found) - LISTED} more")
        elif self.tolerance:
            said.append(
                f"equal     {self.num_images} images within {self.tolerance:g}; largest logit "
                f"difference {self.largest:.3g}"
            )
        else:
            said.append(f"equal     {self.num_images} images, every score to the last bit")
        return said + [f"changed   {change}" for change in self.changes]


def replay(
    old: Receipt,
    detector: TrainedDetector,
    images: Catalog,
    *,
    sample: int = 0,
    tolerance: float | None = None,
    replicas: Replicas | None = None,
) -> Replay:
    """Scores the images of a receipt again from their files, as ``evaluate`` does.

    Order and batches are the receipt's: batch neighbours and shapes can change the last bit.

    Args:
      old: the receipt.
      detector: scores the images.
      images: the data set; images that the receipt does not name are ignored.
      sample: number of images, rounded up to whole, evenly spread batches; 0 takes all.
      tolerance: largest logit difference that counts as equal; None means 0, or
        ``BANK_TOLERANCE`` for scores from a bank.
      replicas: devices; None takes as many as the receipt used, if available.

    Raises:
      ReceiptError: if nothing can be compared.
    """
    if tolerance is None:
        tolerance = 0.0 if old.is_exact else BANK_TOLERANCE
    replicas = replicas or _devices(old)
    wanted = sampled(old, sample)
    found = _rows(images, [image.example_id for image in wanted])
    num_heads = {len(image.logits) for image in old.images}
    if num_heads != {detector.settings.num_seeds}:
        raise ReceiptError(
            f"the receipt has scores of {max(num_heads, default=0)} heads, the detector has "
            f"{detector.settings.num_seeds}: name the evaluated detector with --detector"
        )
    scored = dataclasses.replace(detector, settings=_settings(old, detector))
    replicas.check_batch_size(old.batch_size, "the receipt's batch_size")
    with tempfile.TemporaryDirectory(prefix="cinemae-verify-") as folder:
        unread = BadImages(Path(folder, UNREAD))
        table = scores.score(scored, scored.online(found, replicas), replicas, unread)
    new = {image.example_id: image for image in receipt.images_of(table, scored.settings.num_seeds)}
    different, largest = receipt.differences(wanted, new, tolerance)
    facts = receipt.facts_of(scored, replicas)
    if not sample:
        facts |= {"images": found.fingerprint}
    before = {name: value for name, value in old.facts.items() if name in facts}
    # fields of the detector that are newer than the receipt had their default
    before["detector"] = dataclasses.asdict(DetectorConfig()) | before["detector"]
    changes = [f"{name} {words}" for name, words in differences.changes(before, facts).items()]
    return Replay(len(wanted), different, largest, tolerance, changes)


def sampled(old: Receipt, count: int) -> Sequence[receipt.Image]:
    """At least ``count`` images in whole, evenly spread batches; all if ``count`` is 0."""
    num_batches = math.ceil(len(old.images) / old.batch_size)
    wanted = math.ceil(count / old.batch_size)
    if not count or wanted >= num_batches:
        return old.images
    starts = old.batch_size * np.linspace(0, num_batches - 1, wanted).round().astype(int)
    return [image for start in starts for image in old.images[start : start + old.batch_size]]


def _rows(images: Catalog, example_ids: Sequence[int]) -> Catalog:
    """The images with these ids, in this order, without missing ones."""
    at = pc.index_in(
        pa.array(example_ids, pa.uint64()), images.table["example_id"].combine_chunks()
    )
    if at.null_count == len(at):
        raise ReceiptError(
            f"{images.root} holds none of the receipt's {len(example_ids)} images: name their "
            "data set with --root"
        )
    return dataclasses.replace(images, table=images.table.take(at.drop_null()))


def _devices(old: Receipt) -> Replicas:
    """As many devices as the receipt used: the shape of a shard can change the last bit."""
    count = int(old.facts["devices"]["count"])
    return Replicas(tuple(jax.devices()[:count])) if count < jax.device_count() else Replicas()


def _settings(old: Receipt, detector: TrainedDetector) -> Settings:
    """The detector's settings with the receipt's batch size and error rates."""
    config, known = detector.settings, old.facts["calibration"]
    measured = dataclasses.replace(
        config.eval, batch_size=old.batch_size, fpr=known["fpr"], fnr=known["fnr"]
    )
    return dataclasses.replace(config, eval=measured)
