"""Measures the rows of an ablation: values with intervals, and differences to the first row."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Bool, Float, Int

from cinemae_jax.evaluation import metrics
from cinemae_jax.evaluation.bootstrap import Weighted, resamples
from cinemae_jax.evaluation.generalisation import Generalisation
from cinemae_jax.evaluation.metrics import Estimate, estimates

# Metrics of the table (means over generators) and their titles.
METRICS = {"accuracy": "accuracy", "auc": "AUC"}
# Phases of a run, timed in seconds, and their titles.
PHASES = {"bank": "bank", "training": "train", "evaluation": "evaluate"}
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class RowScores:
    """Scores of the test images by the heads of one row; N images, S heads.

    Attributes:
      path, generator: (N,) str.
      label: (N,) 1 for AI.
      logit: (N, S), NaN where an image could not be read.
    """

    path: np.ndarray
    generator: np.ndarray
    label: Int[np.ndarray, " n"]
    logit: Float[np.ndarray, "n s"]

    @property
    def scored(self) -> Bool[np.ndarray, " n"]:
        return ~np.isnan(self.logit).any(axis=1)

    def same_images(self, other: "RowScores") -> bool:
        """Whether both rows scored the same images, so that differences can be paired."""
        names = ("path", "generator", "label", "scored")
        return all(np.array_equal(getattr(self, n), getattr(other, n)) for n in names)


@dataclasses.dataclass(frozen=True)
class Finished:
    """One row that has run.

    Attributes:
      scores: of the test images.
      seconds: by phase (``PHASES``).
      resumed: whether the run was interrupted; ``seconds`` then lack the time before.
      trained_parameters: number per seed.
      train_generators: of the row's head.
      milliseconds: per image, from images in memory to logits (``timing``); None if not measured.
    """

    scores: RowScores
    seconds: Mapping[str, float]
    resumed: bool
    trained_parameters: int
    train_generators: tuple[str, ...] = ()
    milliseconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
      name: of the row.
      reported: mean accuracy in the paper, per cent; None if there is none.
      failure: why the row has no results; empty if it has.
      values: by metric: mean over generators and heads, with its interval.
      deviations: by metric: sample standard deviation over heads; NaN for one head.
      differences: by metric: this row minus the first; empty for the first row, and for rows that
        scored other images.
      accuracy: by generator, mean over heads.
      cost: seconds and parameters; None if the row failed.
    """

    name: str
    reported: float | None
    failure: str = ""
    values: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    deviations: Mapping[str, float] = dataclasses.field(default_factory=dict)
    differences: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    cost: Finished | None = None

    @property
    def generalisation(self) -> Generalisation:
        """Accuracy on the row's training generators and on the others."""
        return Generalisation.of(self.accuracy, self.cost.train_generators if self.cost else ())


def read_scores(path: Path) -> RowScores:
    """Reads the scores.csv that ``evaluate`` writes."""
    strings = dict.fromkeys(("path", "generator", "error"), pa.string())
    convert = pyarrow.csv.ConvertOptions(
        column_types=strings, null_values=[""], strings_can_be_null=True
    )
    table = pyarrow.csv.read_csv(path, convert_options=convert)
    count = sum(name == "logit" or name.startswith("logit_") for name in table.column_names)
    names = ["logit", *(f"logit_{i}" for i in range(1, count))]
    logits = [table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names]
    return RowScores(
        np.array(table["path"].to_pylist()),
        np.array(table["generator"].to_pylist()),
        table["label"].to_numpy().astype(np.int64),
        np.stack(logits, axis=1),
    )


def replicates(scores: RowScores, *, times: int, seed: int) -> Float[np.ndarray, "s m r"]:
    """Means over generators per head and metric (``METRICS``), then their bootstrap resamples.

    Rows with the same images get the same resamples, so that their differences are paired.  Values
    equal those of ``metrics.evaluate`` and ``compare``.  A generator without any readable image
    makes the mean NaN.

    Returns:
      (S, metrics, 1 + times): the value itself first.
    """
    keep = scores.scored
    label, logit = scores.label[keep], scores.logit[keep]
    names, generator = np.unique(scores.generator, return_inverse=True)
    generator = generator[keep]
    members = [np.flatnonzero(generator == i) for i in range(len(names))]
    ready = [[Weighted.of(label[own], head) for head in logit[own].T] for own in members]
    once = np.ones((1, len(label)))
    drawn = resamples(2 * generator + label, None, times=times, seed=seed)
    means = [
        np.mean([_metrics(heads, w[:, own]) for heads, own in zip(ready, members, strict=True)], 0)
        for w in itertools.chain([once], drawn)
    ]
    return np.concatenate(means, axis=-1)


def _metrics(heads: Sequence[Weighted], weights: np.ndarray) -> Float[np.ndarray, "s m b"]:
    by_head = (head.metrics(weights) for head in heads)
    return np.array([[found[name] for name in METRICS] for found in by_head])


def by_generator(scores: RowScores) -> dict[str, float]:
    """Accuracy of every generator, mean over heads; NaN without readable images."""
    keep = scores.scored
    found = {}
    for name in np.unique(scores.generator):
        own = keep & (scores.generator == name)
        by_head = [metrics.accuracy(scores.label[own], head) for head in scores.logit[own].T]
        found[str(name)] = float(np.mean(by_head))
    return found


def lines(
    rows: Mapping[str, Finished | str],
    reported: Mapping[str, float | None],
    *,
    bootstrap: int,
    confidence: float,
    seed: int,
) -> list[Line]:
    """Measures all rows.

    Args:
      rows: by name, in order: the finished row, or the reason for its failure.
      reported: mean accuracy in the paper by name, per cent.
      bootstrap, confidence, seed: as in ``metrics.evaluate``.
    """
    drawn = {
        name: replicates(row.scores, times=bootstrap, seed=seed)
        for name, row in rows.items()
        if isinstance(row, Finished)
    }
    first, *_ = rows
    reference = rows[first]

    def one(name: str, row: Finished | str) -> Line:
        if isinstance(row, str):
            return Line(name, reported[name], failure=row)
        own = drawn[name]
        comparable = isinstance(reference, Finished) and row.scores.same_images(reference.scores)
        differences = (
            estimates(own.mean(axis=0) - drawn[first].mean(axis=0), confidence, METRICS)
            if comparable and name != first
            else {}
        )
        spread = own[:, :, 0].std(axis=0, ddof=1) if len(own) > 1 else np.full(len(METRICS), NAN)
        return Line(
            name,
            reported[name],
            values=estimates(own.mean(axis=0), confidence, METRICS),
            deviations=dict(zip(METRICS, spread.tolist(), strict=True)),
            differences=differences,
            accuracy=by_generator(row.scores),
            cost=row,
        )

    return [one(name, row) for name, row in rows.items()]
