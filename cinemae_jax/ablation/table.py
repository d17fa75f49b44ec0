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
from cinemae_jax.evaluation.generalisation import percent
from cinemae_jax.evaluation.metrics import Estimate
from cinemae_jax.evaluation.report import format_interval, format_value

TEXT_WIDTH = 220  # characters, at most
NAME_WIDTH = 14  # of a generator in a heading, which then goes on below


def header(timed: bool = False) -> list[str]:
    """Titles of the columns.

    Args:
      timed: whether the time per image was measured.
    """
    return [
        "row",
        *METRICS.values(),
        *(f"Δ {title}" for title in METRICS.values()),
        "reported",
        "unread",
        "seeds",
        "trained",
        *(f"{title} s" for title in PHASES.values()),
        *["ms/image"] * timed,
    ]


def is_timed(table: Sequence[Line]) -> bool:
    """Whether the time per image of any row was measured."""
    return any(line.cost and line.cost.milliseconds is not None for line in table)


def cells(line: Line, timed: bool = False) -> list[str]:
    """A line as text: values in per cent, a dash for missing ones."""
    reported = "–" if line.reported is None else f"{line.reported:.1f}"
    if line.cost is None:
        return [line.name, "failed", *["–"] * 3, reported, *["–"] * (3 + len(PHASES) + timed)]
    scores, more = line.cost.scores, "+" if line.cost.resumed else ""
    milliseconds = line.cost.milliseconds
    return [
        line.name,
        *(_value(line.values[m], line.deviations[m]) for m in METRICS),
        *(_difference(line.differences.get(m)) for m in METRICS),
        reported,
        str(int((~scores.scored).sum())),
        str(scores.logit.shape[1]),
        f"{line.cost.trained_parameters:,}",
        *(f"{line.cost.seconds[phase]:.1f}{more}" for phase in PHASES),
        *["–" if milliseconds is None else f"{milliseconds:.3g}"] * timed,
    ]


def by_generator(table: Sequence[Line]) -> list[list[str]]:
    """Accuracy by generator, per cent: titles, then a row per line that did not fail.

    Training generators come first and are marked; then the others, their summary and the drop.
    """
    done = [line for line in table if line.cost]
    every = {name: None for line in done for name in line.accuracy}
    learned = [n for n in every if all(n in x.generalisation.training_generators for x in done)]
    others = [name for name in every if name not in learned]
    found = [
        [
            "row",
            *(f"{name} (trained on)" for name in learned),
            *others,
            *("in-domain", "unseen", "drop", "worst", "std"),
        ]
    ]
    for line in done:
        own = line.generalisation
        summary = own.in_domain, own.unseen, own.drop, own.worst, own.deviation
        values = [*(line.accuracy.get(name, NAN) for name in (*learned, *others)), *summary]
        found.append([line.name, *map(percent, values)])
    return found


def _value(estimate: Estimate, deviation: float) -> str:
    over_seeds = "" if math.isnan(deviation) else f" ± {100 * deviation:.1f}"
    return f"{format_value(estimate)}{over_seeds} {format_interval(estimate)}".strip()


def _difference(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "–"
    return f"{100 * estimate.value:+.1f} {format_interval(estimate)}".strip()


def legend(confidence: float, timed: bool = False) -> str:
    """What the columns mean, in one line."""
    meaning = (
        "Means over generators, per cent: mean of seeds ± standard deviation over seeds "
        f"[{confidence:.0%} bootstrap interval]. Δ: paired difference to the first row. reported: "
        "accuracy in the paper, on GenImage. trained: trained parameters per seed. +: the run was "
        "interrupted, and the time before that is missing."
    )
    times = (
        " ms/image: images in memory to logits, without compilation, fastest of several "
        "repetitions."
    )
    return meaning + times * timed


GENERATORS = "Accuracy by generator"
GENERATORS_LEGEND = (
    "Per cent, mean of seeds. in-domain: mean over training generators; unseen: mean over the "
    "others; drop: their difference, points; worst: lowest of all; std: standard deviation over "
    "generators."
)


def as_text(title: str, table: Sequence[Line], confidence: float) -> str:
    """The table for a terminal, with its legend and the reasons for failed rows."""
    timed = is_timed(table)
    first = _as_text(title, [header(timed), *(cells(line, timed) for line in table)])
    second = _as_text(GENERATORS, by_generator(table), max_width=NAME_WIDTH)
    notes = [legend(confidence, timed), *failures(table)]
    return "\n".join([*first, *notes, *second, GENERATORS_LEGEND, *drops(table)])


def _as_text(title: str, rows: Sequence[Sequence[str]], max_width: int | None = None) -> list[str]:
    """Lines of a table; the first row holds the titles, which wrap at ``max_width``."""
    shown = Table(title=title, box=SIMPLE)
    for i, name in enumerate(rows[0]):
        narrow = max_width if i else None
        justify: Any = "right" if i else "left"
        fixed = narrow is None
        shown.add_column(
            escape(name), justify=justify, no_wrap=fixed, max_width=narrow, overflow="fold"
        )
    for row in rows[1:]:
        shown.add_row(*map(escape, row))
    buffer = io.StringIO()
    Console(file=buffer, width=TEXT_WIDTH, color_system=None).print(shown)
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


def drops(table: Sequence[Line]) -> list[str]:
    """One sentence per row whose accuracy drops a lot from training generators to unseen ones."""
    return [
        f"Row {line.name!r}: {warning}"
        for line in table
        for warning in line.generalisation.warnings()
    ]


def failures(table: Sequence[Line]) -> list[str]:
    """One sentence per failed row."""
    return [f"Row {line.name!r} failed: {line.failure}" for line in table if line.failure]


def as_markdown(title: str, table: Sequence[Line], confidence: float) -> str:
    """The same as a Markdown page."""

    def row(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    def lines(rows: Sequence[Sequence[str]]) -> str:
        first, *others = rows
        ruler = ["---", *["--:"] * (len(first) - 1)]
        return "\n".join(map(row, [first, ruler, *others]))

    timed = is_timed(table)
    main = lines([header(timed), *(cells(line, timed) for line in table)])
    notes = [legend(confidence, timed), *failures(table)]
    second = [f"## {GENERATORS}", lines(by_generator(table)), GENERATORS_LEGEND, *drops(table)]
    return "\n\n".join([f"# {title}", main, *notes, *second]) + "\n"


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
    found = line.generalisation
    record |= {
        "in_domain_accuracy": known(found.in_domain),
        "unseen_accuracy": known(found.unseen),
        "accuracy_drop": known(found.drop),
        "worst_accuracy": known(found.worst),
        "worst_generator": found.worst_generator or None,
        "generator_deviation": known(found.deviation),
    }
    record["milliseconds_per_image"] = cost.milliseconds if cost else None
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
    accuracies = [
        {name: None if math.isnan(value) else value for name, value in line.accuracy.items()}
        for line in table
    ]
    rows = [
        record | {"accuracy_by_generator": accuracy}
        for record, accuracy in zip(records, accuracies, strict=True)
    ]
    result = {"title": title, "rows": rows, **facts}
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
