"""A whole audit as one report, ready for JSON."""

import argparse
import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from cinemae_jax.audit import probes, sentences
from cinemae_jax.audit.comparisons import Resampling
from cinemae_jax.audit.sections import Sections
from cinemae_jax.data import catalog
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.inspect import diagnosis, examination, shortcuts
from cinemae_jax.data.inspect.examination import Examination
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import bundle
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.runtime.console import (
    versions,
)

SCHEMA_VERSION = 1
VERSIONED = ("cinemae_jax", "jax", "flax", "numpy", "pillow", "scikit-learn")


# --- the audit ----------------------------------------------------------------------------------


def audited_report(options: argparse.Namespace) -> dict[str, Any]:
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
    examined = examination.examine(options.root, quarantine=options.quarantine)
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
        "verdict": [*shortcuts.in_words(alone), *sentences.probes_in_words(found)],
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
