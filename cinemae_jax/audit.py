"""cinemae audit ROOT: what a detector's accuracy on a data set is worth.

Without a detector: how much of the task file facts and a coarse spectrum solve by themselves.
Exit codes: 0 all done; 1 some images cannot be read, each named in the report; 2 usage.
"""

import argparse
import contextlib
import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cinemae_jax import audit_tables, bundle
from cinemae_jax.audit_sections import Sections
from cinemae_jax.console import (
    OK,
    SOME_FAILED,
    Parser,
    accept_any_name,
    count,
    fail,
    report_console,
    versions,
)
from cinemae_jax.data import catalog, diagnosis, doctor, shortcuts
from cinemae_jax.data.bad import BadImages
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.doctor import Examination
from cinemae_jax.data.equalise import require_possible
from cinemae_jax.evaluation import audit, probes
from cinemae_jax.evaluation.attacks import Attack
from cinemae_jax.evaluation.audit import Resampling
from cinemae_jax.files import require_writable, write_json
from cinemae_jax.trained import TrainedDetector

SCHEMA_VERSION = 1
PIPE_WIDTH = 160  # characters a line, where there is no terminal to fit
VERSIONED = ("cinemae_jax", "jax", "flax", "numpy", "pillow", "scikit-learn")


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: name of the command first.
    """
    options = parser().parse_args(argv[1:])
    accept_any_name()
    try:
        _require_possible(options)
        with contextlib.redirect_stdout(sys.stderr):  # progress is none of the report
            report = run(options)
        if options.json:
            write_json(options.json, report)
    except (ValueError, OSError) as error:
        return fail(error)
    audit_tables.show(report, report_console(PIPE_WIDTH))
    return SOME_FAILED if report["unreadable"] else OK


def parser() -> Parser:
    arguments = Parser(
        prog="cinemae audit",
        description="Says what an accuracy on a data set is worth: what files alone give away, and "
        "what of a detector's accuracy is left under other conditions.",
        epilog="exit codes: 0 all done, 1 some images cannot be read, 2 usage; see docs/audit.md",
    )
    add = arguments.add_argument
    add("root", help="folder of the data set, or a list of images")
    add("--quarantine", metavar="F", help="list of images to leave out, of `cinemae doctor`")
    add("--detector", metavar="D", help="run, file of `cinemae bundle`, or bundled name (tiny)")
    add("--backbone", default="", metavar="F", help="its backbone's file, if it has moved")
    add("--json", type=Path, metavar="F", help="write the whole report here")
    add("--images", type=count, default=0, metavar="N", help="of each class and generator (all)")
    add("--side", type=count, default=256, metavar="S", help="equalised short side (256)")
    add("--quality", type=count, default=90, metavar="Q", help="equalised JPEG quality (90)")
    add(
        "--train-root", default="", metavar="ROOT", help="to train controls on (ROOT's train split)"
    )
    add("--train-images", type=count, default=0, metavar="N", help="of each class, for them (all)")
    add("--no-controls", action="store_true", help="do not train controls")
    add("--robustness", action="store_true", help="corruptions and white-box attacks, too")
    add("--attack-images", type=count, default=16, metavar="N", help="of each cell (16; 0: all)")
    add("--attack-steps", type=count, default=10, metavar="N", help="gradient steps (10)")
    add("--attack-draws", type=count, default=4, metavar="N", help="mask draws a step (4)")
    add("--bootstrap", type=count, default=1000, metavar="N", help="resamples (1000)")
    return arguments


def _require_possible(options: argparse.Namespace) -> None:
    """Fails before the hours of an audit, not after them."""
    require_writable(options.json)
    if not options.detector and (options.robustness or options.train_root):
        raise ValueError("--robustness and --train-root need a --detector")
    Attack(options.attack_steps, options.attack_draws)
    require_possible(options.side, options.quality)


# --- the audit ----------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole audit, as a report that is ready for JSON.

    Raises:
      ValueError, OSError: what a user can mend.
    """
    started = time.perf_counter()
    resampling = Resampling(bootstrap=options.bootstrap)
    images = catalog.scan(options.root)
    if options.quarantine:
        images = images.without_listed(options.quarantine)
    detector = _detector(options) if options.detector else None
    if detector:
        resampling = dataclasses.replace(
            resampling, confidence=detector.settings.eval.confidence, seed=detector.settings.seed
        )
    examined = doctor.examine(options.root, quarantine=options.quarantine)
    report = _files(examined, images, detector, resampling)
    if detector:
        with tempfile.TemporaryDirectory(prefix="cinemae-audit-") as folder:
            bad = BadImages(Path(folder, "bad_images.csv"))
            parts = Sections(options, detector, images, resampling, bad)
            report |= parts.run()
            report["verdict"] += parts.said
    return _ready(
        {
            "schema": SCHEMA_VERSION,
            "root": str(options.root),
            "images": images.fingerprint,
            "resampling": resampling,
            "versions": versions(VERSIONED),
            **report,
            "seconds": round(time.perf_counter() - started, 1),
        }
    )


def _detector(options: argparse.Namespace) -> TrainedDetector:
    """The detector, set to read files as the audit finds them."""
    found = bundle.load(options.detector, backbone=options.backbone).detector
    data = dataclasses.replace(found.settings.data, root=options.root, source="folder")
    return dataclasses.replace(found, settings=dataclasses.replace(found.settings, data=data))


def _files(
    examined: Examination,
    images: Catalog,
    detector: TrainedDetector | None,
    resampling: Resampling,
) -> dict[str, Any]:
    """What the files give away without any detector."""
    named = detector.settings.data.train_generators if detector else ()
    learned = [name for name in named if name in images.generators] if named else images.generators
    found = probes.probe(examined, train_generators=learned, **dataclasses.asdict(resampling))
    alone = diagnosis.find_shortcuts(examined)
    bad = examined.unreadable.select(["path", "reason", "error"]).to_pylist()
    return {
        "unreadable": bad,
        "probes": found,
        "shortcuts": alone,
        "verdict": [*shortcuts.in_words(alone), *audit.probes_in_words(found)],
    }


def _ready(value: Any) -> Any:
    """For JSON: records as objects, what is undefined as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _ready(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _ready(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_ready(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
