"""A trained detector on labelled images: one row per generator, every score, a report.

    python -m cinemae_jax.evaluate --config configs/sd14.py --workdir runs/sd14 \\
        --config.data.root=/data/GenImage

Reads the best checkpoint of --workdir, or ``eval.detector`` if one is named.  The fields of the
config that count are those of ``settings.EvaluationSettings``; everything else is part of the
trained detector.  Writes eval.json, eval.csv, scores.csv, report.html, report.md, receipt.json (for
``cinemae verify``) and, if an image could not be read, bad_images.csv; replaces older ones.
"""

import dataclasses
import sys
from pathlib import Path

from ml_collections import ConfigDict

from cinemae_jax import typed, weights
from cinemae_jax.data.unread import BadImage
from cinemae_jax.detector import bundle, loading
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import results
from cinemae_jax.features import splits
from cinemae_jax.features.run import Run
from cinemae_jax.runtime import collectives, jobs, progress
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import EvaluationSettings, Settings


def evaluate(
    config: EvaluationSettings, workdir: Path, replicas: Replicas | None = None
) -> list[BadImage]:
    """Evaluates a detector on the config's images; returns those that could not be read."""
    run = Run.start(workdir, replicas)
    detector = _named(config) if config.eval.detector else _trained(config, workdir)
    detector = dataclasses.replace(detector, settings=detector.settings.evaluated_as(config))
    images = splits.read_test(detector.settings.data)
    collectives.require_equal(
        {
            "detector": [detector.backbone.hashes, detector.step],
            "test_images": images.fingerprint,
        }
    )
    results.evaluate(detector, detector.online(images, run.replicas), run)
    splits.share_unread(run.unread)
    splits.report_unread(workdir, run.unread.of(images))
    return run.unread.of(images)


def _trained(config: EvaluationSettings, workdir: Path) -> TrainedDetector:
    """The detector of the run in ``workdir``."""
    detector = loading.load(
        workdir, backbone=config.backbone, global_backbone=config.global_backbone
    )
    if (trained_on := detector.settings.data.root) != config.root:
        progress.say(
            f"caution   the run was trained on {trained_on}; its results in {workdir} are "
            f"replaced by those on {config.root}"
        )
    return detector


def _named(config: EvaluationSettings) -> TrainedDetector:
    """The detector that the config names; the config's files stand in for missing ones."""
    try:
        return bundle.load(config.eval.detector).detector
    except weights.BackboneError:
        backbone, encoder = (
            path if path and weights.resolve(path).is_file() else ""
            for path in (config.backbone, config.global_backbone)
        )
        if not backbone and not encoder:
            raise
    return bundle.load(config.eval.detector, backbone=backbone, global_backbone=encoder).detector


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> list[BadImage]:
        whole = typed.read(config.to_dict(), Settings)
        return evaluate(whole.evaluation, workdir, jobs.replicas())

    return jobs.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
