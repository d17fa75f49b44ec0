"""cinemae verify RECEIPT: scores the images of an evaluation again, and says equal or where not.

Exit codes: 0 equal; 1 some scores differ, or images are gone; 2 it cannot be replayed.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cinemae_jax.data import collection
from cinemae_jax.data.catalog import CatalogError
from cinemae_jax.detector import bundle
from cinemae_jax.evaluation import receipt, replay
from cinemae_jax.evaluation.receipt import Receipt, ReceiptError
from cinemae_jax.evaluation.replay import BANK_TOLERANCE
from cinemae_jax.runtime.console import Parser, count, fail
from cinemae_jax.settings import Source

EQUAL, DIFFERENT, IMPOSSIBLE = 0, 1, 2


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
                images = collection.scan(data.root, source=data.source)
            except CatalogError as error:
                raise ReceiptError(
                    f"{error}; if the data set has moved, name it by --root"
                ) from error
            done = replay.replay(
                old, detector, images, sample=options.sample, tolerance=options.tolerance
            )
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
