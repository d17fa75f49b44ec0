"""Scores the test images, computes the metrics, writes report and receipt."""

import dataclasses

import pyarrow as pa
import pyarrow.compute as pc

from cinemae_jax.data.unread import count_by_class
from cinemae_jax.detector import trained
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import hardest, metrics, receipt, report, scores
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.features.run import Run
from cinemae_jax.features.sources import FeatureSet
from cinemae_jax.runtime import collectives, progress


def evaluate(detector: TrainedDetector, images: FeatureSet, run: Run) -> None:
    """Scores the images on all hosts; the first host computes the metrics and writes the files."""
    size = detector.settings.eval.batch_size
    run.replicas.check_batch_size(size, "config.eval.batch_size")
    run.unread.forget(images.images)
    table = scores.score(detector, images, run.replicas, run.unread)
    if run.replicas.host.index == 0:
        write_results(detector, images, table, run)
    collectives.barrier("the report is written")


def write_results(detector: TrainedDetector, images: FeatureSet, table: pa.Table, run: Run) -> None:
    """Computes the metrics of a table of scores, writes all files and prints the summary."""
    config, calibration, workdir = detector.settings, detector.calibration(), run.workdir
    table = scores.with_verdicts(table, calibration)
    resampling = Resampling(config.eval.bootstrap, config.eval.confidence, config.seed)
    rows = metrics.evaluate(scores.scored_images(table), resampling, calibration=calibration)
    by_seed = scores.over_seeds(detector, table)
    facts = {
        "backbone": trained.describe(detector.backbone),
        **detector.backbone.hashes,
        "head_sha256": trained.head_sha256(detector.heads),
        "checkpoint_step": detector.step,
        "calibration": calibration.to_dict(),
        "over_seeds": by_seed,
        "data_root": str(images.images.root),
        "test_images": images.images.fingerprint,
        "left_out": images.images.skipped,
        "bad_images": count_by_class(run.unread.of(images.images)),
        "low_context_images": pc.sum(table["low_context"]).as_py() or 0,
        "receipt": str(workdir / receipt.FILE),
        "settings": dataclasses.asdict(config),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    proof = receipt.of(detector, images, table, run.replicas, report.command())
    receipt.write(workdir / receipt.FILE, proof)
    shown = hardest.find(detector, images.images, table)
    report.write(workdir, rows, table, facts, shown)
    progress.say(report.as_text(rows, config.eval.confidence))
    to_unseen = report.generalisation(rows, facts)
    progress.say("\n".join([*to_unseen.in_words(), *to_unseen.warnings(), *calibration.in_words()]))
    if by_seed:
        progress.say(
            f"{config.num_seeds} heads, mean over generators: "
            + ", ".join(
                f"{name.replace('_', ' ')} {100 * found['mean']:.1f} ± "
                f"{100 * found['deviation']:.1f}"
                for name, found in by_seed["mean"].items()
            )
            + " (mean ± standard deviation); the table shows the first head"
        )
    progress.say(f"report    {workdir / 'report.html'}")
