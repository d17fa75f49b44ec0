"""cinemae verify RECEIPT: scores the images of an evaluation again and lists what changed.

Exit codes: 0 equal; 1 scores differ or images are missing; 2 the receipt cannot be replayed.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cinemae_jax.commands import frozen
from cinemae_jax.data import collection
from cinemae_jax.data.catalog import Catalog, CatalogError
from cinemae_jax.detector import bundle
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import receipt, replay
from cinemae_jax.evaluation.receipt import Receipt, ReceiptError
from cinemae_jax.evaluation.replay import BANK_TOLERANCE
from cinemae_jax.runtime.console import OK, SOME_FAILED, Parser, count, fail
from cinemae_jax.settings import DataSettings, Source


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: command name, then its arguments.
    """
    options = parser().parse_args(argv[1:])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result
            old = receipt.read(options.receipt)
            detector = _detector(options, old)
            images = _images(detector.settings.data)
            done = replay.replay(
                old, detector, images, sample=options.sample, tolerance=options.tolerance
            )
    except (ValueError, OSError) as error:
        return fail(error)
    print(f"receipt   {options.receipt}: {len(old.images)} images, scored {_how(old)}")
    print("\n".join(done.in_words()))
    return SOME_FAILED if done.found else OK


def _detector(options: argparse.Namespace, old: Receipt) -> TrainedDetector:
    """The evaluated detector, set to read the receipt's data set."""
    name = options.detector or old.detector or options.receipt.absolute().parent
    detector = bundle.load(
        name, backbone=options.backbone, global_backbone=options.global_backbone
    ).detector
    data = dataclasses.replace(
        detector.settings.data,
        root=options.root or old.data["root"],
        source=cast(Source, old.data["source"]),  # DataSettings checks it
        quarantine="",
    )
    settings = dataclasses.replace(detector.settings, data=data)
    return dataclasses.replace(detector, settings=settings)


def _images(data: DataSettings) -> Catalog:
    try:
        return collection.scan(data.root, source=data.source)
    except CatalogError as error:
        raise ReceiptError(f"{error}; if it has moved, pass --root") from error


def _how(old: Receipt) -> str:
    devices = old.facts["devices"]
    where = f"{devices['count']} x {devices['kind']}"
    return f"online on {where}" if old.is_exact else f"from a bank on {where}"


def parser() -> Parser:
    arguments = Parser(
        prog="cinemae verify",
        description="Scores the images of an evaluation again and compares the scores with its "
        "receipt.",
        epilog="exit codes: 0 equal, 1 scores differ, 2 cannot be replayed; see docs/report.md",
    )
    add = arguments.add_argument
    add("receipt", type=Path, help="receipt.json of an evaluation")
    add(
        "--detector",
        "--workdir",
        metavar="D",
        help="run folder, bundle file, or bundled name (default: the evaluated detector)",
    )
    frozen.add_options(arguments)
    add("--root", default="", metavar="ROOT", help="data set, if moved")
    add(
        "--sample",
        type=count,
        default=0,
        metavar="N",
        help="number of images, rounded up to whole batches (all)",
    )
    add(
        "--tolerance",
        type=float,
        metavar="T",
        help="largest logit difference that counts as equal "
        f"(0; {BANK_TOLERANCE:g} for scores from a bank)",
    )
    return arguments
