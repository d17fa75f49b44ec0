"""What an anomaly statistic is worth: does it repeat, separate the classes, and in which direction?

In: statistics of every image under two draws of masks.  Out: one row per source of features, score
and statistic, with a value per generator and their mean.  All of it is written to the JSON file of
an audit and read back for the report.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.ndimage import gaussian_filter1d
from scipy.stats import iqr, ks_2samp, rankdata

from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.evaluation.bootstrap import Names, Resampling, Weights, resamples
from cinemae_jax.evaluation.metrics import NAN, Estimate, estimates
from cinemae_jax.model.config import Score

# The score that is a negative log-likelihood given the context, and its statistic for an image.
NLL: Score = "context_nll"
MEAN = "mean_anomaly"
SHORT = {"variability": "s1", "mean_anomaly": "s2", "perturbation_sensitivity": "s3"}
# The control of the NLL: the contrast of the visible patches alone.
CONTROL = "log_variance"
# Below this correlation, less than half of a statistic's variation repeats with other masks.
LEAST_RETEST = 0.5
# Above this overlap of the classes the paper speaks of a failure (its second signature).
MOST_OVERLAP = 0.8
WARNING = (
    f"retest below {LEAST_RETEST:g} (mostly mask noise), or overlap above {MOST_OVERLAP:g} (the "
    "paper's second signature of failure)"
)
LEAST_IMAGES = 2  # per class of a generator, to compare its classes
OVERLAP_BINS = 4096

Values = Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Worth:
    """What one statistic is worth on one generator, or the mean over generators; NaN if undefined.

    Attributes:
      name: of the generator.
      nature, ai: number of images.
      retest: correlation over images of the statistic between two draws of masks.
      auc: of the statistic as a score for AI: below 0.5 where AI images have the lower values.
      beyond: AUC of what the mean log σ² does not explain (``residual``), fitted over both classes.
      overlap: of the classes' densities, 0 to 1.
      ks: Kolmogorov–Smirnov distance of the classes.
    """

    name: str
    nature: int
    ai: int
    retest: float
    auc: Estimate
    beyond: Estimate
    overlap: float
    ks: float


@dataclasses.dataclass(frozen=True)
class SignalRow:
    """One statistic of one score.

    Attributes:
      source: of the features.
      score, statistic: names.
      generators: one entry each, sorted by name.
      mean: over them.
      gains: |AUC of the mean - 0.5| minus that of a control, by name of the control, paired;
        only for the first source.
    """

    source: str
    score: str
    statistic: str
    generators: tuple[Worth, ...]
    mean: Worth
    gains: Mapping[str, Estimate]

    @property
    def lower(self) -> list[str]:
        """Generators whose AI images have measurably lower values."""
        return [one.name for one in self.generators if one.auc.high < 0.5]

    @property
    def higher(self) -> list[str]:
        """Generators whose AI images have measurably higher values."""
        return [one.name for one in self.generators if one.auc.low > 0.5]

    @property
    def overlapping(self) -> list[str]:
        """Generators whose classes overlap by more than ``MOST_OVERLAP``."""
        return [one.name for one in self.generators if one.overlap > MOST_OVERLAP]


@dataclasses.dataclass(frozen=True)
class Curve:
    """The NLL of one class of a generator against the number of masked patches used.

    Attributes:
      generator, label: name of the generator and of the class.
      patches: numbers of patches, ascending.
      median: over images, of the mean NLL of so many patches of an image.
      low, high: quartiles over images.
    """

    generator: str
    label: str
    patches: tuple[int, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Condition:
    """All statistics of the images in one condition, for example equalised."""

    name: str
    rows: tuple[SignalRow, ...]
    curves: tuple[Curve, ...]

    def of(self, score: str) -> list[SignalRow]:
        """The rows of a score from the first source, the detector's backbone."""
        return [r for r in self.rows if r.score == score and r.source == self.rows[0].source]

    def beside(self, row: SignalRow) -> list[SignalRow]:
        """The same statistic from the other sources."""
        same = row.score, row.statistic
        return [r for r in self.rows if (r.score, r.statistic) == same and r.source != row.source]


@dataclasses.dataclass(frozen=True)
class Repeat:
    """How well the statistics of a score repeat with one kind of masks.

    Attributes:
      masking: ``DetectorConfig.masking``.
      retest: by statistic: correlation of two draws of masks, mean over generators.
    """

    masking: str
    retest: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Signal:
    """The signal section of an audit.

    Attributes:
      num_runs: K, masking runs of each of the two draws.
      mismatch_weight: λ.
      score: that the detector's head reads; empty if it reads other numbers.
      conditions: raw images, then equalised ones.
      too_few: generators with fewer than ``LEAST_IMAGES`` readable images of a class.
      sentences: what it means.
      masking: kind of masks of all of this but ``repeats``.
      repeats: of raw images, by kind of masks, for the score that the head reads (else the NLL).
    """

    num_runs: int
    mismatch_weight: float
    score: str
    conditions: tuple[Condition, ...]
    too_few: tuple[str, ...]
    sentences: tuple[str, ...] = ()
    masking: str = "random"
    repeats: tuple[Repeat, ...] = ()


# --- one statistic ------------------------------------------------------------------------------


def retest(first: Values, second: Values) -> float:
    """Pearson's correlation of two measurements of the same images; NaN if one is constant."""
    if not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return NAN
    return float(np.corrcoef(first, second)[0, 1])


def ks_distance(nature: Values, ai: Values) -> float:
    """Largest difference of the classes' empirical distribution functions."""
    return float(ks_2samp(nature, ai).statistic)


def overlap(nature: Values, ai: Values) -> float:
    """∫ min(p, q) of the classes' densities, estimated with a Gaussian kernel.

    The bandwidth is Silverman's, per class.  Noise of the densities makes small samples overlap
    less than their populations: two samples of 30 images from one population by about 0.84.
    """
    widths = [_bandwidth(values) for values in (nature, ai)]
    low = min(nature.min(), ai.min()) - 4 * max(widths)
    high = max(nature.max(), ai.max()) + 4 * max(widths)
    if not high > low:
        return 1.0  # one value for all images
    edges = np.linspace(low, high, OVERLAP_BINS + 1)
    size = edges[1] - edges[0]
    densities = [
        gaussian_filter1d(
            np.histogram(values, edges)[0] / len(values), max(width / size, 0.5), mode="constant"
        )
        for values, width in zip((nature, ai), widths, strict=True)
    ]
    return float(np.minimum(*densities).sum())


def _bandwidth(values: Values) -> float:
    spreads = [float(values.std(ddof=1)), float(iqr(values)) / 1.349]
    return 0.9 * min(s for s in spreads if s > 0 or s == max(spreads)) * len(values) ** -0.2


def residual(values: Values, control: Values) -> Values:
    """What remains of a statistic's ranks after a linear regression on the ranks of a control.

    Ranks, because an error in the units of σ² is a curved function of log σ², not a straight one.
    """
    ranks, controls = (rankdata(x) - (len(x) + 1) / 2 for x in (values, control))
    power = controls @ controls
    remains = ranks - (controls @ ranks / power if power > 0 else 0.0) * controls
    return np.where(np.abs(remains) < 1e-9 * len(values), 0.0, remains)


def weighted_auc(is_ai: Bool[np.ndarray, " n"], values: Values, weights: Weights) -> Values:
    """Area under the ROC curve under each weighting, (B,)."""
    order = np.argsort(values, kind="stable")
    ordered, ai = values[order], is_ai[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    drawn = weights[:, order]
    true, false = (np.cumsum(drawn * own, axis=1)[:, ends] for own in (ai, ~ai))
    new_true, new_false = (np.diff(part, axis=1, prepend=0) for part in (true, false))
    pairs = true[:, -1] * false[:, -1]
    return np.einsum("bu,bu->b", new_true, false - new_false / 2) / pairs


# --- all statistics -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """Statistics of N images from several sources, S statistics each.

    Attributes:
      label: (N,) 1 for AI.
      generator: (N,) names.
      names: (score, statistic) of every column.
      values: by source: (N, 2 draws, S); NaN for unread images.  The first source is the one that
        the others are controls of.
    """

    label: Int[np.ndarray, " n"]
    generator: Names
    names: Sequence[tuple[str, str]]
    values: Mapping[str, Float[np.ndarray, "n 2 s"]]

    @property
    def scored(self) -> Bool[np.ndarray, " n"]:
        """Images that every source could measure."""
        return np.all([np.isfinite(v).all(axis=(1, 2)) for v in self.values.values()], axis=0)


def comparable(drawn: Drawn) -> tuple[list[str], list[str]]:
    """Names of the generators with enough images of both classes, and of the others."""
    kept: list[str] = []
    left_out: list[str] = []
    for name in sorted(set(drawn.generator.tolist())):
        own = drawn.label[drawn.scored & (drawn.generator == name)]
        enough = min((own == 0).sum(), (own == 1).sum()) >= LEAST_IMAGES
        (kept if enough else left_out).append(name)
    return kept, left_out


def measure(drawn: Drawn, resampling: Resampling) -> list[SignalRow]:
    """One row per source and statistic.

    Every number but the retest correlation is that of the first draw.  Each class of a generator
    keeps its size in a resample, and all sources and statistics share the resamples.

    Args:
      drawn: statistics, with the column (``CONTROL``, ``MEAN``) among them.
      resampling: settings of the intervals.
    """
    generators, _ = comparable(drawn)
    if not generators:
        return []
    measured = [_Generator(drawn, name, i, resampling) for i, name in enumerate(generators)]
    by_source = {
        source: [[one.worth(source, s) for one in measured] for s in range(len(drawn.names))]
        for source in drawn.values
    }

    def separation(source: str, name: tuple[str, str]) -> Values:
        """|mean AUC - 0.5|: the value, then its resamples."""
        found = by_source[source][list(drawn.names).index(name)]
        return np.abs(np.mean([aucs[0] for _, aucs in found], axis=0) - 0.5)

    first, *others = drawn.values

    def gains(name: tuple[str, str]) -> dict[str, Estimate]:
        controls = {other: separation(other, name) for other in others}
        controls["log σ²"] = separation(first, (CONTROL, MEAN))
        own = separation(first, name)
        differences = np.array([own - control for control in controls.values()])
        return estimates(differences, resampling.confidence, controls)

    rows = []
    for source, columns in by_source.items():
        for name, found in zip(drawn.names, columns, strict=True):
            worths = tuple(worth for worth, _ in found)
            mean = _mean(worths, np.mean([aucs for _, aucs in found], axis=0), resampling)
            gained = gains(name) if source == first else {}
            rows.append(SignalRow(source, *name, worths, mean, gained))
    return rows


class _Generator:
    """The images of one generator, and their resamples."""

    def __init__(self, drawn: Drawn, name: str, index: int, resampling: Resampling) -> None:
        own = drawn.scored & (drawn.generator == name)
        self._name, self._is_ai, self._resampling = name, drawn.label[own] == 1, resampling
        self._values = {source: values[own] for source, values in drawn.values.items()}
        first = next(iter(drawn.values))
        control = list(drawn.names).index((CONTROL, MEAN))
        self._control = self._values[first][:, 0, control].astype(np.float64)
        times, seed = resampling.bootstrap, resampling.seed + index
        once = np.ones((1, len(self._is_ai)))
        self._weights = [
            once,
            *resamples(self._is_ai.astype(np.int64), None, times=times, seed=seed),
        ]

    def worth(self, source: str, column: int) -> tuple[Worth, Float[np.ndarray, "2 r"]]:
        """What a statistic is worth, and its two AUCs with their resamples."""
        first, second = self._values[source][:, :, column].astype(np.float64).T
        aucs = np.array([self._auc(first), self._auc(residual(first, self._control))])
        nature, ai = first[~self._is_ai], first[self._is_ai]
        found = estimates(aucs, self._resampling.confidence, ("auc", "beyond"))
        same = retest(first, second)
        num_ai = int(self._is_ai.sum())
        counts = len(self._is_ai) - num_ai, num_ai
        both = overlap(nature, ai), ks_distance(nature, ai)
        return Worth(self._name, *counts, same, found["auc"], found["beyond"], *both), aucs

    def _auc(self, values: Values) -> Values:
        drawn = (weighted_auc(self._is_ai, values, weights) for weights in self._weights)
        return np.concatenate(list(drawn))


def _mean(worths: Sequence[Worth], aucs: Float[np.ndarray, "2 r"], resampling: Resampling) -> Worth:
    found = estimates(aucs, resampling.confidence, ("auc", "beyond"))
    nature, ai = (sum(getattr(one, name) for one in worths) for name in ("nature", "ai"))
    same, *both = (
        float(np.mean([getattr(one, name) for one in worths]))
        for name in ("retest", "overlap", "ks")
    )
    return Worth("mean", nature, ai, same, found["auc"], found["beyond"], *both)


def repeats(drawn: Drawn, score: str) -> list[Repeat]:
    """How well a score's statistics repeat, one entry per source: here, a kind of masks."""
    kept, _ = comparable(drawn)

    def mean(values: Float[np.ndarray, "n 2 s"], column: int) -> float:
        each = [drawn.scored & (drawn.generator == name) for name in kept]
        return float(np.mean([retest(*values[own][:, :, column].T) for own in each]))

    return [
        Repeat(
            masking,
            {name: mean(values, i) for i, (of, name) in enumerate(drawn.names) if of == score},
        )
        for masking, values in drawn.values.items()
        if kept
    ]


def curves(
    label: Int[np.ndarray, " n"],
    generator: Names,
    nll: Float[np.ndarray, "n p"],
    patches: Sequence[int],
) -> list[Curve]:
    """One curve per generator and class that has images.

    Args:
      label: 1 for AI.
      generator: names.
      nll: mean NLL of the first ``patches[i]`` masked patches of every image; NaN if unread.
      patches: numbers of patches, ascending.
    """
    found = []
    for name in sorted(set(generator.tolist())):
        for i, of_class in enumerate(CLASS_NAMES):
            own = nll[(generator == name) & (label == i) & np.isfinite(nll).all(axis=1)]
            if len(own):
                low, median, high = (
                    tuple(part.tolist()) for part in np.quantile(own, (0.25, 0.5, 0.75), axis=0)
                )
                found.append(Curve(name, of_class, tuple(patches), median, low, high))
    return found


# --- from JSON ----------------------------------------------------------------------------------


def read(record: Mapping[str, Any]) -> Signal:
    """The section from the JSON file of an audit, where null stands for NaN.

    Raises:
      KeyError, TypeError, ValueError: if the record is not such a section.
    """
    conditions = tuple(
        Condition(
            str(one["name"]),
            tuple(_row(row) for row in one["rows"]),
            tuple(map(_curve, one["curves"])),
        )
        for one in record["conditions"]
    )
    return Signal(
        int(record["num_runs"]),
        float(record["mismatch_weight"]),
        str(record["score"]),
        conditions,
        tuple(map(str, record["too_few"])),
        tuple(map(str, record["sentences"])),
        str(record.get("masking", "random")),
        tuple(
            Repeat(str(one["masking"]), {k: _number(v) for k, v in one["retest"].items()})
            for one in record.get("repeats", ())
        ),
    )


def _row(record: Mapping[str, Any]) -> SignalRow:
    return SignalRow(
        str(record["source"]),
        str(record["score"]),
        str(record["statistic"]),
        tuple(map(_worth, record["generators"])),
        _worth(record["mean"]),
        {name: _estimate(gain) for name, gain in record["gains"].items()},
    )


def _worth(record: Mapping[str, Any]) -> Worth:
    return Worth(
        str(record["name"]),
        int(record["nature"]),
        int(record["ai"]),
        _number(record["retest"]),
        _estimate(record["auc"]),
        _estimate(record["beyond"]),
        _number(record["overlap"]),
        _number(record["ks"]),
    )


def _curve(record: Mapping[str, Any]) -> Curve:
    return Curve(
        str(record["generator"]),
        str(record["label"]),
        tuple(map(int, record["patches"])),
        *(tuple(map(float, record[name])) for name in ("median", "low", "high")),
    )


def _estimate(record: Mapping[str, float | None]) -> Estimate:
    return Estimate(*(_number(record[end]) for end in ("value", "low", "high")))


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)
