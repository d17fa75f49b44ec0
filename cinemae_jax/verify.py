"""cinemae verify RECEIPT: scores the images of an evaluation again, and says equal or where not.

Exit codes: 0 equal; 1 some scores differ, or images are gone; 2 it cannot be replayed.
"""

import contextlib
import dataclasses
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cinemae_jax import bundle, cli, evaluate, receipt
from cinemae_jax.console import Parser, count, fail
from cinemae_jax.data.bad import BadImages
from cinemae_jax.data.catalog import Catalog, CatalogError
from cinemae_jax.distributed import Replicas
from cinemae_jax.features import Extractor, OnlineSet
from cinemae_jax.receipt import Difference, Receipt, ReceiptError
from cinemae_jax.settings import Settings, Source
from cinemae_jax.trained import TrainedDetector

EQUAL, DIFFERENT, IMPOSSIBLE = 0, 1, 2
BANK_TOLERANCE = 1e-4
"""Of a logit, where the receipt's scores came from a bank: other batch shapes round otherwise,
and no difference as small as this changes what a score means."""
LISTED = 10


@dataclasses.dataclass(frozen=True)
class Replay:
    """What came of scoring again.

    Attributes:
      num_images: that were compared.
      found: those whose scores differ, in the receipt's order.
      largest: difference of a logit.
      tolerance: up to which a difference counted as none.
      changes: what else is not as it was.
    """

    num_images: int
    found: list[Difference]
    largest: float
    tolerance: float
    changes: list[str]

    def in_words(self) -> list[str]:
        """A verdict first, then where and why."""
        said = []
        if self.found:
            said.append(
                f"differs   {len(self.found)} of {self.num_images} images by more than "
                f"{self.tolerance:g}; largest difference of a logit {self.largest:.3g}"
            )
            said += [f"          {one.path}: was {one.words}" for one in self.found[:LISTED]]
            if len(self.found) > LISTED:
                said.append(f"          and {len(self.found) - LISTED} more")
        elif self.tolerance:
            said.append(
                f"equal     {self.num_images} images within {self.tolerance:g}; largest difference "
                f"of a logit {self.largest:.3g}"
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
    """Scores the images of a receipt again, as ``evaluate`` does from the images themselves.

    They come in the receipt's order and batches, since neighbours and shapes may decide a last bit.

    Args:
      old: the receipt.
      detector: to score with.
      images: the data set; what the receipt does not name is left alone.
      sample: number of images, rounded up to whole batches, which are spread evenly; 0 takes all.
      tolerance: of a logit; None allows none, and ``BANK_TOLERANCE`` for scores from a bank.
      replicas: devices; None takes as many as the receipt had, if there are.

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
            f"{detector.settings.num_seeds}"
        )
    scored = dataclasses.replace(detector, settings=_settings(old, detector))
    replicas.check_batch_size(old.batch_size, "the receipt's batch_size")
    with tempfile.TemporaryDirectory(prefix="cinemae-verify-") as folder:
        bad = BadImages(Path(folder, cli.BAD_IMAGES))
        once = OnlineSet(found, Extractor(scored.settings, scored.backbone, replicas))
        table = evaluate.score(scored, once, bad, replicas)
    new = {image.example_id: image for image in receipt.images_of(table, scored.settings.num_seeds)}
    different, largest = receipt.differences(wanted, new, tolerance)
    facts = receipt.facts_of(scored, replicas)
    if not sample:
        facts |= {"images": found.fingerprint}
    before = {name: value for name, value in old.facts.items() if name in facts}
    return Replay(len(wanted), different, largest, tolerance, receipt.changes(before, facts))


def sampled(old: Receipt, count: int) -> Sequence[receipt.Image]:
    """At least ``count`` images in whole batches, evenly spread; 0 or too many: all."""
    num_batches = math.ceil(len(old.images) / old.batch_size)
    wanted = math.ceil(count / old.batch_size)
    if not count or wanted >= num_batches:
        return old.images
    starts = old.batch_size * np.linspace(0, num_batches - 1, wanted).round().astype(int)
    return [image for start in starts for image in old.images[start : start + old.batch_size]]


def _rows(images: Catalog, example_ids: Sequence[int]) -> Catalog:
    """The images with some ids, in that order; those that are gone are left out."""
    at = pc.index_in(
        pa.array(example_ids, pa.uint64()), images.table["example_id"].combine_chunks()
    )
    if at.null_count == len(at):
        raise ReceiptError(
            f"none of the receipt's {len(example_ids)} images is in {images.root}: "
            "--root names their data set"
        )
    return dataclasses.replace(images, table=images.table.take(at.drop_null()))


def _devices(old: Receipt) -> Replicas:
    """As many as there were: the shape of a device's share may decide a last bit."""
    count = int(old.facts["devices"]["count"])
    return Replicas(tuple(jax.devices()[:count])) if count < jax.device_count() else Replicas()


def _settings(old: Receipt, detector: TrainedDetector) -> Settings:
    """Those of the detector, with the receipt's batches and error rates."""
    config, known = detector.settings, old.facts["calibration"]
    measured = dataclasses.replace(
        config.eval, batch_size=old.batch_size, fpr=known["fpr"], fnr=known["fnr"]
    )
    return dataclasses.replace(config, eval=measured)


# --- the command --------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: name of the command first.
    """
    options = parser().parse_args(argv[1:])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # progress is none of the answer
            old = receipt.read(options.receipt)
            named = options.detector or old.detector or options.receipt.absolute().parent
            detector = bundle.load(named, backbone=options.backbone).detector
            data = dataclasses.replace(
                detector.settings.data,
                root=options.root or old.data["root"],
                source=cast(Source, old.data["source"]),  # which DataSettings checks
                quarantine="",
            )
            detector = dataclasses.replace(
                detector, settings=dataclasses.replace(detector.settings, data=data)
            )
            try:
                images = data.scan()
            except CatalogError as error:
                raise ReceiptError(
                    f"{error}; if the data set has moved, name it by --root"
                ) from error
            done = replay(old, detector, images, sample=options.sample, tolerance=options.tolerance)
    except (ValueError, OSError) as error:
        return fail(error)
    print(f"receipt   {options.receipt}: {len(old.images)} images, scored {_how(old)}")
    print("\n".join(done.in_words()))
    return DIFFERENT if done.found else EQUAL


def _how(old: Receipt) -> str:
    devices = old.facts["devices"]
    where = f"{devices['count']} x {devices['kind']}"
    return f"online on {where}" if old.is_exact else f"from a bank on {where}"


def parser() -> Parser:
    arguments = Parser(
        prog="cinemae verify",
        description="Scores the images of an evaluation again and compares with its receipt.",
        epilog="exit codes: 0 equal, 1 scores differ, 2 cannot be replayed; see docs/report.md",
    )
    add = arguments.add_argument
    add("receipt", type=Path, help="receipt.json of an evaluation")
    add(
        "--detector",
        "--workdir",
        metavar="D",
        help="workdir of a run, or a bundled detector (default: the one that was evaluated)",
    )
    add("--backbone", default="", metavar="F", help="its backbone's file, if it has moved")
    add("--root", default="", metavar="ROOT", help="the data set, if it has moved")
    add(
        "--sample",
        type=count,
        default=0,
        metavar="N",
        help="images, in whole batches (all)",
    )
    add(
        "--tolerance",
        type=float,
        metavar="T",
        help=f"of a logit (0; {BANK_TOLERANCE:g} for scores from a bank)",
    )
    return arguments
