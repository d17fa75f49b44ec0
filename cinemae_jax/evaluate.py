"""A trained detector on labelled images: a row a generator, scores of every image, a report.

    python -m cinemae_jax.evaluate --config configs/sd14.py --workdir runs/sd14 \\
        --config.data.root=/data/GenImage

Reads the best checkpoint of --workdir.  Of the config only ``data.root``, ``data.test_generators``,
``data.num_threads`` and ``eval`` count: everything else is part of the trained detector.  Writes
eval.json, eval.csv, scores.csv, report.html and, where there were any, bad_images.csv.
"""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from cinemae_jax import cli, settings, trained
from cinemae_jax.data import catalog
from cinemae_jax.data.bad import BadImage, BadImages, count_by_class
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.distributed import Replicas
from cinemae_jax.evaluation import metrics, report
from cinemae_jax.model.detector import STATISTICS
from cinemae_jax.settings import Settings
from cinemae_jax.trained import TrainedDetector


def score(
    detector: TrainedDetector, images: Catalog, replicas: Replicas
) -> tuple[pa.Table, list[BadImage]]:
    """Scores every image exactly once.

    Returns:
      The catalog's columns and ``logit``, ``probability``, s1–s3 by name, ``low_context`` and
      ``error``; images that could not be read have nulls and a reason.  And those images.
    """
    count = len(images)
    logit = np.full(count, np.nan, np.float32)
    stats = np.full((count, len(STATISTICS)), np.nan, np.float32)
    low_context = np.zeros(count, bool)
    errors: list[str | None] = [None] * count
    bad = BadImages(images)
    scorer = trained.Scorer(detector.settings.detector, replicas)
    batch_size = detector.settings.eval.batch_size
    batches = cli.progress(
        scorer.batches(images, detector.settings, detector.backbone.config.image_size),
        0,
        math.ceil(count / batch_size),
        "evaluate",
    )
    results = scorer(detector.head.params, detector.frozen(), (batch for _, batch in batches))
    for batch, scores in results:
        bad.note(batch)
        rows = batch["row"][batch["valid"]]
        logit[rows] = scores.logit[batch["valid"]]
        stats[rows] = scores.stats[batch["valid"]]
        low_context[rows] = scores.low_context[batch["valid"]]
        for row, error in zip(batch["row"], batch["error"], strict=True):
            if error:
                errors[int(row)] = str(error)
    unread = np.isnan(logit)
    columns = {
        "logit": logit,
        "probability": 1 / (1 + np.exp(-logit.astype(np.float64))),
        **{name: stats[:, i] for i, name in enumerate(STATISTICS)},
        "low_context": low_context,
    }
    table = images.table
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, mask=unread))
    return table.append_column("error", pa.array(errors, pa.string())), bad.listed


def evaluate(
    detector: TrainedDetector, images: Catalog, workdir: Path, replicas: Replicas | None = None
) -> list[BadImage]:
    """Scores, measures, writes the results and prints the table; returns unreadable images."""
    replicas = replicas or Replicas()
    config = detector.settings
    replicas.check_batch_size(config.eval.batch_size)
    table, bad = score(detector, images, replicas)
    error = table["error"]
    rows = metrics.evaluate(
        table["label"].to_numpy(),
        table["logit"].to_numpy(zero_copy_only=False),
        np.array(table["generator"].to_pylist()),
        np.array([e is None for e in error.to_pylist()]),
        bootstrap=config.eval.bootstrap,
        confidence=config.eval.confidence,
        seed=config.seed,
    )
    facts = {
        "backbone": trained.describe(detector.backbone),
        "backbone_sha256": detector.backbone.sha256,
        "checkpoint_step": detector.step,
        "data_root": str(images.root),
        "bad_images": count_by_class(bad),
        "low_context_images": int(np.sum(table["low_context"].to_numpy(zero_copy_only=False) == 1)),
        "settings": dataclasses.asdict(config),
    }
    report.write(workdir, rows, table, facts)
    cli.say(report.as_text(rows, config.eval.confidence))
    cli.say(f"report    {workdir / 'report.html'}")
    return bad


def run(config: Settings, workdir: Path, replicas: Replicas | None = None) -> list[BadImage]:
    """Evaluates the best checkpoint of ``workdir`` on the config's data."""
    detector = trained.load(workdir, backbone=config.backbone)
    data = dataclasses.replace(
        detector.settings.data,
        root=config.data.root,
        test_generators=config.data.test_generators,
        num_threads=config.data.num_threads,
    )
    used = dataclasses.replace(detector.settings, data=data, eval=config.eval)
    images = catalog.scan(data.root).select(generators=data.test_generators or None, split="val")
    bad = evaluate(dataclasses.replace(detector, settings=used), images, workdir, replicas)
    return cli.report_bad_images(workdir, bad)


def main(argv: list[str] | None = None) -> int:
    def job(config: ConfigDict, workdir: Path) -> Any:
        return run(settings.read(config.to_dict()), workdir)

    return cli.run_config(sys.argv if argv is None else argv, job)


if __name__ == "__main__":
    sys.exit(main())
