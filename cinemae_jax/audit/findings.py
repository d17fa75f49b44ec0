"""All that an audit found, as one report that is ready for JSON."""

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Any

from cinemae_jax.audit import sections
from cinemae_jax.audit.options import AuditOptions
from cinemae_jax.audit.sections import AuditSection, DetectorAudit
from cinemae_jax.data import catalog
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.inspect import examination
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import bundle
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.runtime.console import versions

SCHEMA_VERSION = 1
VERSIONED = ("cinemae_jax", "jax", "flax", "numpy", "pillow", "scikit-learn")


def report(options: AuditOptions) -> dict[str, Any]:
    """Runs a whole audit.

    Raises:
      ValueError, OSError: mistakes that the user can fix.
    """
    started = time.perf_counter()
    images = catalog.scan(options.root)
    if options.quarantine:
        images = images.without_listed(options.quarantine)
    images.require_both_classes("the data set")
    detector = _load(options) if options.detector else None
    resampling = _resampling(options, detector)
    examined = examination.examine(options.root, quarantine=options.quarantine)
    files = sections.files_alone(examined, _train_generators(images, detector), resampling)
    others = _detector_sections(options, detector, images, resampling) if detector else []
    verdict = [sentence for section in (files, *others) for sentence in section.sentences]
    result = {
        "schema": SCHEMA_VERSION,
        "root": str(options.root),
        "images": images.fingerprint,
        "resampling": resampling,
        "versions": versions(VERSIONED),
        **files.found,
        "verdict": verdict,
    }
    for section in others:
        result |= section.found
    return as_json(result | {"seconds": round(time.perf_counter() - started, 1)})


def _load(options: AuditOptions) -> TrainedDetector:
    """The detector, with settings that read the audited files."""
    found = bundle.load(
        options.detector, backbone=options.backbone, global_backbone=options.global_backbone
    ).detector
    data = dataclasses.replace(found.settings.data, root=options.root, source="folder")
    return dataclasses.replace(found, settings=dataclasses.replace(found.settings, data=data))


def _resampling(options: AuditOptions, detector: TrainedDetector | None) -> Resampling:
    if detector is None:
        return Resampling(options.bootstrap)
    return Resampling(options.bootstrap, detector.settings.eval.confidence, detector.settings.seed)


def _train_generators(images: Catalog, detector: TrainedDetector | None) -> list[str]:
    """The generators that the detector was trained on and that are here; without one, all."""
    named = detector.settings.data.train_generators if detector else ()
    return [name for name in named if name in images.generators] if named else images.generators


def _detector_sections(
    options: AuditOptions, detector: TrainedDetector, images: Catalog, resampling: Resampling
) -> list[AuditSection]:
    with tempfile.TemporaryDirectory(prefix="cinemae-audit-") as folder:
        bad = BadImages(Path(folder, "bad_images.csv"))
        return DetectorAudit(options, detector, images, resampling, bad).sections()


def as_json(value: Any) -> Any:
    """Plain values for JSON: dataclasses as objects, NaN and infinity as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
