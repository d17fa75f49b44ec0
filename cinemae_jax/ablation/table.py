"""The table of an ablation: for a terminal, as Markdown, CSV and JSON, and as a plot."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cinemae_jax.ablation.effects import METRICS, NAN, PHASES, Line
from cinemae_jax.evaluation.metrics import Estimate
from cinemae_jax.evaluation.report import format_interval, format_value

TEXT_WIDTH = 200  # characters, at most


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
    """A line as text: values in per cent, a dash for missing ones."""
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
    """What the columns mean, in one line."""
    return (
        "Means over generators, per cent: mean of seeds ± standard deviation over seeds "
        f"[{confidence:.0%} bootstrap interval]. Δ: paired difference to the first row. reported: "
        "accuracy in the paper, on GenImage. trained: trained parameters per seed. +: the run was "
        "interrupted, and the time before that is missing."
    )


def as_text(title: str, table: Sequence[Line], confidence: float) -> str:
    """The table for a terminal, with its legend and the reasons for failed rows."""
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
    """One sentence per failed row."""
    return [f"Row {line.name!r} failed: {line.failure}" for line in table if line.failure]


def as_markdown(title: str, table: Sequence[Line], confidence: float) -> str:
    """The same as a Markdown page."""

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
    """A line as plain values: fractions instead of per cent, None for missing values."""

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
      table: of ``effects.lines``.
      confidence: of the intervals.
      facts: further entries of ablation.json, for example versions.
    """
    records = [as_record(line) for line in table]
    page = as_markdown(title, table, confidence)
    (workdir / "ablation.md").write_text(page, encoding="utf-8")
    pyarrow.csv.write_csv(pa.Table.from_pylist(records), workdir / "ablation.csv")
    result = {"title": title, "rows": records, **facts}
    (workdir / "ablation.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    plot(title, table).savefig(workdir / "ablation.svg", metadata={"Date": None})


def plot(title: str, table: Sequence[Line]) -> Figure:
    """A point with its interval per row and metric; reported accuracies as crosses."""
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
