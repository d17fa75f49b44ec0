"""A trained detector on labelled images: a row a generator, scores of every image, a report.

    python -m cinemae_jax.evaluate --config configs/sd14.py --workdir runs/sd14 \\
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
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ml_collections import ConfigDict

from cinemae_jax import bundle, cli, distributed, hardest, jobs, receipt, settings, trained, weights
from cinemae_jax.data.bad import BadImage, BadImages, count_by_class
from cinemae_jax.distributed import Replicas
from cinemae_jax.evaluation import metrics, report
from cinemae_jax.evaluation.calibration import Calibration
from cinemae_jax.features import Extractor, FeatureSet, OnlineSet
from cinemae_jax.settings import Settings
from cinemae_jax.trained import TrainedDetector


def score(
    detector: TrainedDetector, images: FeatureSet, bad: BadImages, replicas: Replicas
) -> pa.Table:
    """Scores every image exactly once, by every head.

    Returns:
      The catalog's columns and ``logit``, ``probability``, the statistics by name (as the head
      takes them), ``uniform_share``, ``low_context`` and ``error``; with several heads, these are
      those of the first, and ``logit_1``, ... those of the others.  Images that could not be read
      have nulls and a reason, and are noted in ``bad``.
    """
    config = detector.settings
    count, num_heads = len(images.images), config.num_seeds
    names = config.detector.statistics if config.detector.anomaly == "statistics" else ()
    logit = np.full((count, num_heads), np.nan, np.float32)
    stats = np.full((count, len(names)), np.nan, np.float32)
    uniform_share = np.full(count, np.nan, np.float32)
    errors: list[str | None] = [None] * count
    scorer = trained.Scorer(config.detector, detector.backbone.config.num_patches, replicas)
    num_batches = math.ceil(count / config.eval.batch_size)
    batches = cli.progress(images.scoring(), 0, num_batches, "evaluate")
    for batch, scores in scorer(detector.heads, (batch for _, batch in batches)):
        bad.note(images.images, batch)
        valid, rows = batch["valid"], batch["row"]
        logit[rows[valid]] = scores.logit[valid]
        stats[rows[valid]] = scores.stats[valid, 0, : len(names)]
        uniform_share[rows[valid]] = scores.uniform_share[valid]
        for row, error in zip(rows, batch["error"], strict=True):
            if error:
                errors[int(row)] = str(error)
    columns: dict[str, np.ndarray] = {
        "logit": logit[:, 0],
        "probability": 1 / (1 + np.exp(-logit[:, 0].astype(np.float64))),
        **{name: stats[:, i] for i, name in enumerate(names)},
        "uniform_share": uniform_share,
        "low_context": uniform_share > config.detector.low_context_share,
        **{f"logit_{i}": logit[:, i] for i in range(1, num_heads)},
    }
    unread = np.array([error is not None for error in errors])
    table = images.images.table
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, mask=unread))
    return table.append_column("error", pa.array(errors, pa.string()))


def evaluate(
    detector: TrainedDetector,
    images: FeatureSet,
    workdir: Path,
    bad: BadImages,
    replicas: Replicas | None = None,
) -> None:
    """Scores the images on all hosts; the first one measures and writes the results."""
    replicas = replicas or Replicas()
    config = detector.settings
    replicas.check_batch_size(config.eval.batch_size, "config.eval.batch_size")
    bad.forget(images.images)
    calibration = detector.calibration()
    table = with_verdicts(score(detector, images, bad, replicas), calibration)
    if replicas.host.index == 0:
        write_results(detector, table, calibration, images, workdir, bad, replicas)
    distributed.barrier("the report is written")


def write_results(
    detector: TrainedDetector,
    table: pa.Table,
    calibration: Calibration,
    images: FeatureSet,
    workdir: Path,
    bad: BadImages,
    replicas: Replicas,
) -> None:
    """Measures a table of scores, writes the results and prints the table."""
    config = detector.settings
    rows = metrics.evaluate(
        *measured(table),
        bootstrap=config.eval.bootstrap,
        confidence=config.eval.confidence,
        seed=config.seed,
        calibration=calibration,
    )
    by_seed = over_seeds(detector, table)
    facts = {
        "backbone": trained.describe(detector.backbone),
        "backbone_sha256": detector.backbone.sha256,
        "head_sha256": trained.head_sha256(detector.heads),
        "checkpoint_step": detector.step,
        "calibration": calibration.to_dict(),
        "over_seeds": by_seed,
        "data_root": str(images.images.root),
        "test_images": images.images.fingerprint,
        "left_out": images.images.skipped,
        "bad_images": count_by_class(bad.of(images.images)),
        "low_context_images": pc.sum(table["low_context"]).as_py() or 0,
        "receipt": str(workdir / receipt.FILE),
        "settings": dataclasses.asdict(config),
    }
    workdir.mkdir(parents=True, exist_ok=True)
    proof = receipt.of(detector, images, table, replicas, report.command())
    receipt.write(workdir / receipt.FILE, proof)
    shown = hardest.find(detector, images.images, table)
    report.write(workdir, rows, table, facts, shown)
    cli.say(report.as_text(rows, config.eval.confidence))
    cli.say("\n".join(calibration.in_words()))
    if by_seed:
        cli.say(
            f"{config.num_seeds} heads, mean of generators: "
            + ", ".join(
                f"{name.replace('_', ' ')} {100 * found['mean']:.1f} ± "
                f"{100 * found['deviation']:.1f}"
                for name, found in by_seed["mean"].items()
            )
            + "; the table is the first one's"
        )
    cli.say(f"report    {workdir / 'report.html'}")


def with_verdicts(table: pa.Table, calibration: Calibration) -> pa.Table:
    """A table of scores and what they mean: ``calibrated_probability`` and ``verdict``."""
    unread = table["error"].is_valid().to_numpy()
    logit = table["logit"].to_numpy(zero_copy_only=False)
    low_context = table["low_context"].fill_null(True).to_numpy(zero_copy_only=False)
    for name, values in (
        ("calibrated_probability", calibration.probability(logit)),
        ("verdict", calibration.verdict(logit, low_context)),
    ):
        table = table.append_column(name, pa.array(values, mask=unread))
    return table


def measured(
    table: pa.Table, logit: str = "logit"
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, logits, generators and whether an image was read, as ``metrics.evaluate`` takes."""
    return (
        table["label"].to_numpy(),
        table[logit].to_numpy(zero_copy_only=False),
        np.array(table["generator"].to_pylist()),
        np.array(table["error"].is_null()),
    )


ACROSS_SEEDS = ("accuracy", "auc")


def over_seeds(
    detector: TrainedDetector, table: pa.Table
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation (of a sample) over heads: by generator, then by metric.

    Empty for a single head.
    """
    num_heads = detector.settings.num_seeds
    if num_heads == 1:
        return {}
    per_head = [
        metrics.evaluate(
            *measured(table, f"logit_{i}" if i else "logit"), bootstrap=0, confidence=0.0, seed=0
        )
        for i in range(num_heads)
    ]
    return {
        rows[0].name: {
            name: {
                "mean": float(np.mean([row.metrics[name].value for row in rows])),
                "deviation": float(np.std([row.metrics[name].value for row in rows], ddof=1)),
            }
            for name in ACROSS_SEEDS
        }
        for rows in zip(*per_head, strict=True)
    }


def run(config: Settings, workdir: Path, replicas: Replicas | None = None) -> list[BadImage]:
    """Evaluates a detector on the config's data; returns the images that could not be read."""
    if config.eval.detector:
        detector = _named(config)
    else:
        detector = trained.load(workdir, backbone=config.backbone)
        if (trained_on := detector.settings.data.root) != config.data.root:
            cli.say(
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
    cli.say(everything.explain())
    cli.report_skipped(everything)
    images = everything.select(generators=data.test_generators or None, split="val")
    replicas = replicas or Replicas()
    bad = BadImages(workdir / cli.BAD_IMAGES, replicas.host)
    distributed.require_equal(
        {"detector": [detector.backbone.sha256, detector.step], "test_images": images.fingerprint}
    )
    once = OnlineSet(images, Extractor(used, detector.backbone, replicas))
    evaluate(dataclasses.replace(detector, settings=used), once, workdir, bad, replicas)
    cli.share_bad_images(bad)
    cli.report_bad_images(workdir, bad.of(images))
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
        return run(settings.read(config.to_dict(), Settings), workdir)

    return jobs.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
