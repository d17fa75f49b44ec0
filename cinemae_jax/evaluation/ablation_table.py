"""The rows of an ablation as one table: intervals, differences to the first row, costs, a plot."""

import dataclasses
import io
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cinemae_jax.evaluation.bootstrap import Weighted, resamples
from cinemae_jax.evaluation.metrics import Estimate, interval
from cinemae_jax.evaluation.report import format_interval, format_value

METRICS = {"accuracy": "accuracy", "auc": "AUC"}
"""Means over generators that the table shows, and their titles."""
PHASES = {"bank": "bank", "training": "train", "evaluation": "evaluate"}
"""Parts of a row's cost in seconds, and their titles."""
TEXT_WIDTH = 200  # columns at most; the table takes what it needs
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the heads of one row say of the test images; N images, S heads.

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

    def same_images(self, other: "Scores") -> bool:
        """Whether the same images were scored, so that differences can be paired."""
        names = ("path", "generator", "label", "scored")
        return all(np.array_equal(getattr(self, n), getattr(other, n)) for n in names)


@dataclasses.dataclass(frozen=True)
class Finished:
    """One row that has run.

    Attributes:
      scores: of the test images.
      seconds: by ``PHASES``.
      resumed: whether the run was interrupted, so that seconds lack what an earlier call has spent.
      trained_parameters: of one seed.
    """

    scores: Scores
    seconds: Mapping[str, float]
    resumed: bool
    trained_parameters: int


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
      name: of the row.
      reported: mean accuracy in the paper, per cent, if there is one.
      failure: why the row has no results; empty if it has.
      values: by metric: mean over generators and heads, with its interval.
      deviations: by metric, over heads (of a sample); NaN for one head.
      differences: by metric: values less those of the first row; empty for that row itself, and
        where other images were scored.
      cost: seconds and parameters; None where the row has failed.
    """

    name: str
    reported: float | None
    failure: str = ""
    values: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    deviations: Mapping[str, float] = dataclasses.field(default_factory=dict)
    differences: Mapping[str, Estimate] = dataclasses.field(default_factory=dict)
    cost: Finished | None = None


def read_scores(path: Path) -> Scores:
    """scores.csv, as ``evaluate`` writes it."""
    strings = dict.fromkeys(("path", "generator", "error"), pa.string())
    convert = pyarrow.csv.ConvertOptions(
        column_types=strings, null_values=[""], strings_can_be_null=True
    )
    table = pyarrow.csv.read_csv(path, convert_options=convert)
    count = sum(name == "logit" or name.startswith("logit_") for name in table.column_names)
    names = ["logit", *(f"logit_{i}" for i in range(1, count))]
    logits = [table[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in names]
    return Scores(
        np.array(table["path"].to_pylist()),
        np.array(table["generator"].to_pylist()),
        table["label"].to_numpy().astype(np.int64),
        np.stack(logits, axis=1),
    )


def replicates(scores: Scores, *, times: int, seed: int) -> Float[np.ndarray, "s m r"]:
    """Of each head and of ``METRICS``: the mean over generators, and then its resamples.

    Rows with the same images get the same resamples, so that their differences are paired; so do
    ``metrics.evaluate`` and ``compare``, which this equals.  A generator none of whose images could
    be read makes the mean undefined.
    """
    keep = scores.scored
    label, logit = scores.label[keep], scores.logit[keep]
    names, generator = np.unique(scores.generator, return_inverse=True)
    generator = generator[keep]
    members = [np.flatnonzero(generator == i) for i in range(len(names))]
    ready = [[Weighted.of(label[own], head) for head in logit[own].T] for own in members]
    once = np.ones((1, len(label)))
    drawn = resamples(2 * generator + label, None, times=times, seed=seed)
    found = [
        np.mean([_metrics(heads, w[:, own]) for heads, own in zip(ready, members, strict=True)], 0)
        for w in itertools.chain([once], drawn)
    ]
    return np.concatenate(found, axis=-1)


def _metrics(heads: Sequence[Weighted], weights: np.ndarray) -> Float[np.ndarray, "s m b"]:
    by_head = (head.metrics(weights) for head in heads)
    return np.array([[found[name] for name in METRICS] for found in by_head])


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
      rows: by name, in order: what has run, or why it has failed.
      reported: by name.
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
            _estimates(own.mean(axis=0) - drawn[first].mean(axis=0), confidence)
            if comparable and name != first
            else {}
        )
        spread = own[:, :, 0].std(axis=0, ddof=1) if len(own) > 1 else np.full(len(METRICS), NAN)
        return Line(
            name,
            reported[name],
            values=_estimates(own.mean(axis=0), confidence),
            deviations=dict(zip(METRICS, spread.tolist(), strict=True)),
            differences=differences,
            cost=row,
        )

    return [one(name, row) for name, row in rows.items()]


def _estimates(results: Float[np.ndarray, "m r"], confidence: float) -> dict[str, Estimate]:
    return {
        name: interval(float(result[0]), result[1:], confidence)
        for name, result in zip(METRICS, results, strict=True)
    }


# --- output -------------------------------------------------------------------------------------


def header() -> list[str]:
    """Titles of the columns."""
    return [
        "row",
        *METRICS.values(),
        *(f"Δ {title}" for title in METRICS.values()),
        "reported",
        "unread",
        "seeds",
        "trained",
        *(f"{title} s" for title in PHASES.values()),
    ]


def cells(line: Line) -> list[str]:
    """A line as text; per cent, a dash where there is nothing."""
    reported = "–" if line.reported is None else f"{line.reported:.1f}"
    if line.cost is None:
        return [line.name, "failed", *["–"] * 3, reported, *["–"] * (3 + len(PHASES))]
    scores, more = line.cost.scores, "+" if line.cost.resumed else ""
    return [
        line.name,
        *(_value(line.values[m], line.deviations[m]) for m in METRICS),
        *(_difference(line.differences.get(m)) for m in METRICS),
        reported,
        str(int((~scores.scored).sum())),
        str(scores.logit.shape[1]),
        f"{line.cost.trained_parameters:,}",
        *(f"{line.cost.seconds[phase]:.1f}{more}" for phase in PHASES),
    ]


def _value(estimate: Estimate, deviation: float) -> str:
    over_seeds = "" if math.isnan(deviation) else f" ± {100 * deviation:.1f}"
    return f"{format_value(estimate)}{over_seeds} {format_interval(estimate)}".strip()


def _difference(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "–"
    return f"{100 * estimate.value:+.1f} {format_interval(estimate)}".strip()


def legend(confidence: float) -> str:
    """What the columns are, in one line."""
    return (
        "Means over generators, per cent: mean of heads ± deviation over seeds "
        f"[{confidence:.0%} bootstrap interval]; Δ: paired difference to the first row; reported: "
        "accuracy in the paper, on GenImage; trained: parameters of one head; +: an interrupted "
        "run took longer."
    )


def as_text(title: str, table: Sequence[Line], confidence: float) -> str:
    """The table for a terminal, and why rows failed."""
    shown = Table(title=title, box=SIMPLE)
    for i, name in enumerate(header()):
        shown.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in table:
        shown.add_row(*map(escape, cells(line)))
    buffer = io.StringIO()
    Console(file=buffer, width=TEXT_WIDTH, color_system=None).print(shown)
    text = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join([*text, legend(confidence), *failures(table)])


def failures(table: Sequence[Line]) -> list[str]:
    """One sentence for every row that failed."""
    return [f"Row {line.name!r} failed: {line.failure}" for line in table if line.failure]


def as_markdown(title: str, table: Sequence[Line], confidence: float) -> str:
    """The same for a page."""

    def row(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    parts = [
        row(header()),
        row(["---", *["--:"] * (len(header()) - 1)]),
        *map(row, map(cells, table)),
    ]
    notes = [legend(confidence), *failures(table)]
    return "\n\n".join([f"# {title}", "\n".join(parts), *notes]) + "\n"


def as_record(line: Line) -> dict[str, Any]:
    """A line as plain values, None where there is nothing; shares, not per cent."""

    def known(value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else value

    record: dict[str, Any] = {"row": line.name, "failure": line.failure or None}
    for name in METRICS:
        for prefix, of in ((name, line.values), (f"{name}_difference", line.differences)):
            estimate = of.get(name, Estimate(NAN, NAN, NAN))
            record[prefix] = known(estimate.value)
            record |= {f"{prefix}_{end}": known(getattr(estimate, end)) for end in ("low", "high")}
        record[f"{name}_deviation"] = known(line.deviations.get(name))
    record["reported_accuracy"] = None if line.reported is None else line.reported / 100
    cost = line.cost
    record["unread"] = int((~cost.scores.scored).sum()) if cost else None
    record["seeds"] = cost.scores.logit.shape[1] if cost else None
    record["trained_parameters"] = cost.trained_parameters if cost else None
    record |= {f"{phase}_seconds": cost.seconds[phase] if cost else None for phase in PHASES}
    return record | {"resumed": cost.resumed if cost else None}


def write(
    workdir: Path,
    title: str,
    table: Sequence[Line],
    confidence: float,
    facts: Mapping[str, Any],
) -> None:
    """Writes ablation.md, ablation.csv, ablation.json and ablation.svg into ``workdir``.

    Args:
      workdir: of the ablation.
      title: of the table.
      table: of ``lines``.
      confidence: of the intervals.
      facts: what the numbers rest on; JSON-able.
    """
    records = [as_record(line) for line in table]
    page = as_markdown(title, table, confidence)
    (workdir / "ablation.md").write_text(page, encoding="utf-8")
    pyarrow.csv.write_csv(pa.Table.from_pylist(records), workdir / "ablation.csv")
    result = {"title": title, "rows": records, **facts}
    (workdir / "ablation.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    plot(title, table).savefig(workdir / "ablation.svg", metadata={"Date": None})


def plot(title: str, table: Sequence[Line]) -> Figure:
    """A point and its interval for every row and metric; reported accuracies as crosses."""
    figure = Figure(figsize=(9, 0.4 * len(table) + 1.4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(METRICS), sharey=True)
    heights = {line.name: -i for i, line in enumerate(table)}
    for axes, (metric, label) in zip(panels, METRICS.items(), strict=True):
        for line in table:
            estimate = line.values.get(metric, Estimate(NAN, NAN, NAN))
            if math.isnan(estimate.value):
                continue
            height, value = heights[line.name], 100 * estimate.value
            axes.plot([100 * estimate.low, 100 * estimate.high], [height] * 2, color="#2a7fb8")
            axes.plot([value], [height], "o", color="#2a7fb8")
            if metric == "accuracy" and line.reported is not None:
                axes.plot([line.reported], [height], "x", color="#d1603d")
        axes.set(xlabel=f"{label}, per cent")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set(yticks=list(heights.values()), yticklabels=list(heights))
    if any(line.reported is not None for line in table):
        panels[0].plot([], [], "x", color="#d1603d", label="reported (GenImage)")
        figure.legend(loc="outside lower center", fontsize="small", frameon=False)
    return figure
