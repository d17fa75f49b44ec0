"""Scores of a trained detector on labelled images: a table with one row per image."""

import math

import numpy as np
import pyarrow as pa

from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import scoring
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import metrics
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.metrics import ScoredImages
from cinemae_jax.features.sources import FeatureSet
from cinemae_jax.runtime import progress
from cinemae_jax.runtime.devices import Replicas


def score(
    detector: TrainedDetector, images: FeatureSet, replicas: Replicas, unread: BadImages
) -> pa.Table:
    """Scores every image exactly once with every head.

    Returns:
      The catalog's columns plus ``logit``, ``raw_probability`` (its sigmoid, not calibrated), the
      statistics by name (the head's inputs), ``uniform_share``, ``low_context`` and ``error``.
      With several heads, these are those of the first; ``logit_1``, … are those of the others.
      Unread images have nulls and a reason, and are added to ``unread``.
    """
    config = detector.settings
    count, num_heads = len(images.images), config.num_seeds
    detector_config = config.detector
    names = detector_config.statistics if detector_config.anomaly == "statistics" else ()
    if detector_config.fusion == "frequency":
        names = ()
    logit = np.full((count, num_heads), np.nan, np.float32)
    stats = np.full((count, len(names)), np.nan, np.float32)
    uniform_share = np.full(count, np.nan, np.float32)
    errors: list[str | None] = [None] * count
    scorer = scoring.Scorer(config.detector, detector.backbone.config.num_patches, replicas)
    num_batches = math.ceil(count / config.eval.batch_size)
    batches = progress.steps(images.scoring(), 0, num_batches, "evaluate")
    for batch, scores in scorer(detector.heads, (batch for _, batch in batches)):
        unread.note(images.images, batch)
        valid, rows = batch["valid"], batch["row"]
        logit[rows[valid]] = scores.logit[valid]
        stats[rows[valid]] = scores.stats[valid, 0, : len(names)]
        uniform_share[rows[valid]] = scores.uniform_share[valid]
        for row, error in zip(rows, batch["error"], strict=True):
            if error:
                errors[int(row)] = str(error)
    columns: dict[str, np.ndarray] = {
        "logit": logit[:, 0],
        "raw_probability": 1 / (1 + np.exp(-logit[:, 0].astype(np.float64))),
        **{name: stats[:, i] for i, name in enumerate(names)},
        "uniform_share": uniform_share,
        "low_context": uniform_share > config.detector.low_context_share,
        **{f"logit_{i}": logit[:, i] for i in range(1, num_heads)},
    }
    without = np.array([error is not None for error in errors])
    table = images.images.table
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values, mask=without))
    return table.append_column("error", pa.array(errors, pa.string()))


def with_verdicts(table: pa.Table, calibration: Calibration) -> pa.Table:
    """Adds the calibrated ``probability`` and ``verdict`` to a table of scores.

    ``calibrated_probability`` is the same column under its older name.
    """
    unread = table["error"].is_valid().to_numpy()
    logit = table["logit"].to_numpy(zero_copy_only=False)
    low_context = table["low_context"].fill_null(True).to_numpy(zero_copy_only=False)
    probability = calibration.probability(logit)
    for name, values in (
        ("probability", probability),
        ("calibrated_probability", probability),
        ("verdict", calibration.verdict(logit, low_context)),
    ):
        table = table.append_column(name, pa.array(values, mask=unread))
    return table


def scored_images(table: pa.Table, logit: str = "logit") -> ScoredImages:
    """Input of ``metrics.evaluate`` from a table of scores.

    Args:
      table: of ``score``.
      logit: column, ``logit`` for the first head.
    """
    return ScoredImages(
        table["label"].to_numpy(),
        table[logit].to_numpy(zero_copy_only=False),
        np.array(table["generator"].to_pylist()),
        np.array(table["error"].is_null()),
    )


ACROSS_SEEDS = ("accuracy", "auc")


def over_seeds(
    detector: TrainedDetector, table: pa.Table
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and sample standard deviation over heads, by generator and metric.

    Empty for a single head.
    """
    num_heads = detector.settings.num_seeds
    if num_heads == 1:
        return {}
    columns = ["logit", *(f"logit_{i}" for i in range(1, num_heads))]
    per_head = [
        metrics.evaluate(scored_images(table, column), Resampling(bootstrap=0))
        for column in columns
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
