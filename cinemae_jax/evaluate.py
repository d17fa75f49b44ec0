"""A trained detector on labelled images: a row a generator, scores of every image, a report.

    python -m cinemae_jax.evaluate --config configs/sd14.py --workdir runs/sd14 \\
        --config.data.root=/data/GenImage

Reads the best checkpoint of --workdir.  Of the config only ``data.root``, ``data.source``,
``data.quarantine``, ``data.test_generators``, ``data.num_threads`` and ``eval`` count, and
``backbone`` where that file exists: everything else is part of the trained detector.  Writes
eval.json, eval.csv, scores.csv, report.html and, where there were any, bad_images.csv.
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

from cinemae_jax import cli, settings, trained
from cinemae_jax.data.bad import BadImage, BadImages, count_by_class
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.distributed import Replicas
from cinemae_jax.evaluation import metrics, report
from cinemae_jax.model.config import STATISTICS
from cinemae_jax.settings import Settings
from cinemae_jax.trained import TrainedDetector


def score(
    detector: TrainedDetector, images: Catalog, bad: BadImages, replicas: Replicas
) -> pa.Table:
    """Scores every image exactly once.

    Returns:
      The catalog's columns and ``logit``, ``probability``, s1–s3 by name (as the head takes them),
      ``uniform_share``, ``low_context`` and ``error``; images that could not be read have nulls
      and a reason, and are noted in ``bad``.
    """
    config = detector.settings
    count = len(images)
    logit = np.full(count, np.nan, np.float32)
    stats = np.full((count, len(STATISTICS)), np.nan, np.float32)
    uniform_share = np.full(count, np.nan, np.float32)
    errors: list[str | None] = [None] * count
    scorer = trained.Scorer(config.detector, replicas)
    batches = cli.progress(
        scorer.batches(images, config, detector.backbone.config.image_size),
        0,
        math.ceil(count / config.eval.batch_size),
        "evaluate",
    )
    results = scorer(detector.head.params, detector.frozen(), (batch for _, batch in batches))
    for batch, scores in results:
        bad.note(images, batch)
        valid, rows = batch["valid"], batch["row"]
        logit[rows[valid]] = scores.logit[valid]
        stats[rows[valid]] = scores.stats[valid]
        uniform_share[rows[valid]] = scores.uniform_share[valid]
        for row, error in zip(rows, batch["error"], strict=True):
            if error:
                errors[int(row)] = str(error)
    columns = {
        "logit": logit,
        "probability": 1 / (1 + np.exp(-logit.astype(np.float64))),
        **{name: stats[:, i] for i, name in enumerate(STATISTICS)},
        "uniform_share": uniform_share,
        "low_context": uniform_share > config.detector.low_context_share,
    }
    unread = np.array([error is not None for error in errors])
    table = images.table
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, mask=unread))
    return table.append_column("error", pa.array(errors, pa.string()))


def evaluate(
    detector: TrainedDetector,
    images: Catalog,
    workdir: Path,
    bad: BadImages,
    replicas: Replicas | None = None,
) -> None:
    """Scores, measures, writes the results and prints the table."""
    replicas = replicas or Replicas()
    config = detector.settings
    replicas.check_batch_size(config.eval.batch_size, "config.eval.batch_size")
    bad.forget(images)
    table = score(detector, images, bad, replicas)
    rows = metrics.evaluate(
        table["label"].to_numpy(),
        table["logit"].to_numpy(zero_copy_only=False),
        np.array(table["generator"].to_pylist()),
        np.array(table["error"].is_null()),
        bootstrap=config.eval.bootstrap,
        confidence=config.eval.confidence,
        seed=config.seed,
    )
    facts = {
        "backbone": trained.describe(detector.backbone),
        "backbone_sha256": detector.backbone.sha256,
        "checkpoint_step": detector.step,
        "data_root": str(images.root),
        "test_images": images.fingerprint,
        "left_out": images.skipped,
        "bad_images": count_by_class(bad.of(images)),
        "low_context_images": pc.sum(table["low_context"]).as_py() or 0,
        "settings": dataclasses.asdict(config),
    }
    report.write(workdir, rows, table, facts)
    cli.say(report.as_text(rows, config.eval.confidence))
    cli.say(f"report    {workdir / 'report.html'}")


def run(config: Settings, workdir: Path, replicas: Replicas | None = None) -> list[BadImage]:
    """Evaluates the best checkpoint of ``workdir`` on the config's data; returns unread images."""
    detector = trained.load(workdir, backbone=config.backbone)
    data = dataclasses.replace(
        detector.settings.data,
        root=config.data.root,
        source=config.data.source,
        quarantine=config.data.quarantine,
        test_generators=config.data.test_generators,
        num_threads=config.data.num_threads,
    )
    used = dataclasses.replace(detector.settings, data=data, eval=config.eval)
    everything = data.scan()
    cli.say(everything.explain())
    cli.report_skipped(everything)
    images = everything.select(generators=data.test_generators or None, split="val")
    bad = BadImages(workdir / cli.BAD_IMAGES)
    evaluate(dataclasses.replace(detector, settings=used), images, workdir, bad, replicas)
    cli.report_bad_images(workdir, bad.of(images))
    return bad.of(images)


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> Any:
        return run(settings.read(config.to_dict(), Settings), workdir)

    return cli.run_config(sys.argv if argv is None else argv, job, __doc__)


if __name__ == "__main__":
    sys.exit(main())
