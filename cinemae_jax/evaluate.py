"""A trained detector on labelled images: a row a generator, scores of every image, a report.

    python -m cinemae_jax.evaluate --config configs/sd14.py --workdir runs/sd14 \
        --config.data.root=/data/GenImage

Reads the best checkpoint of --workdir, or ``eval.detector`` if one is named.  Of the config only
``data.root``, ``data.source``, ``data.quarantine``, ``data.test_generators``, ``data.num_threads``
and ``eval`` count (not ``eval.fpr`` and ``eval.fnr`` of a detector that is named: its promises are
its own), and ``backbone`` where that file exists (of a named detector, where its own does not):
everything else is part of the trained detector.  Writes eval.json, eval.csv, scores.csv,
report.html, report.md, receipt.json (for ``cinemae verify``) and, where there were any,
bad_images.csv, in place of those that are there.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cinemae_jax import typed, weights
from cinemae_jax.data.unread import BadImage, BadImages
from cinemae_jax.detector import bundle, loading
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import results
from cinemae_jax.features import splits
from cinemae_jax.features.extraction import Extractor
from cinemae_jax.features.sources import OnlineSet
from cinemae_jax.runtime import collectives, jobs, progress
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings


def run(config: Settings, workdir: Path, replicas: Replicas | None = None) -> list[BadImage]:
    """Evaluates a detector on the config's data; returns the images that could not be read."""
    if config.eval.detector:
        detector = _named(config)
    else:
        detector = loading.load(workdir, backbone=config.backbone)
        if (trained_on := detector.settings.data.root) != config.data.root:
            progress.say(
                f"caution   the run was trained on {trained_on}; its results in {workdir} are "
                f"replaced by those on {config.data.root}"
            )
    data = dataclasses.replace(
        detector.settings.data,
        root=config.data.root,
        source=config.data.source,
        quarantine=config.data.quarantine,
        test_generators=config.data.test_generators,
        num_threads=config.data.num_threads,
    )
    asked = config.eval
    if asked.detector:  # its verdicts are those that `predict` gives
        own = detector.settings.eval
        asked = dataclasses.replace(asked, fpr=own.fpr, fnr=own.fnr)
    used = dataclasses.replace(detector.settings, data=data, eval=asked)
    everything = data.scan()
    progress.say(everything.explain())
    splits.report_skipped(everything)
    images = everything.select(generators=data.test_generators or None, split="val")
    replicas = replicas or Replicas()
    bad = BadImages(workdir / splits.BAD_IMAGES, replicas.host)
    collectives.require_equal(
        {"detector": [detector.backbone.sha256, detector.step], "test_images": images.fingerprint}
    )
    once = OnlineSet(images, Extractor(used, detector.backbone, replicas))
    results.evaluate(dataclasses.replace(detector, settings=used), once, workdir, bad, replicas)
    splits.share_bad_images(bad)
    splits.report_bad_images(workdir, bad.of(images))
    return bad.of(images)


def _named(config: Settings) -> TrainedDetector:
    """The detector that the config names, on the config's backbone where its own is not there."""
    try:
        return bundle.load(config.eval.detector).detector
    except weights.BackboneError:
        if not weights.resolve(config.backbone).is_file():
            raise
    return bundle.load(config.eval.detector, backbone=config.backbone).detector


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> Any:
        return run(typed.read(config.to_dict(), Settings), workdir)

    return jobs.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
