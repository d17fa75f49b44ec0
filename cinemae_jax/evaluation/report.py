"""Results for people and programs: terminal table, eval.json, eval.csv, scores.csv, report.html."""

import dataclasses
import importlib.metadata
import io
import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.csv
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cinemae_jax.evaluation import metrics
from cinemae_jax.evaluation.bootstrap import ECE_BINS
from cinemae_jax.evaluation.metrics import METRICS, Estimate, Row
from cinemae_jax.evaluation.plots import plots

TABLES = {
    "accuracy at probability 0.5, and ranking": {
        "accuracy": "accuracy",
        "nature_accuracy": "nature right",
        "ai_accuracy": "ai right",
        "ap": "AP",
        "auc": "AUC",
    },
    "at the calibrated threshold": {
        "accuracy_calibrated": "accuracy",
        "nature_accuracy_calibrated": "nature right",
        "ai_accuracy_calibrated": "ai right",
    },
    "at a rate of false alarms, and calibration": {
        "tpr_at_fpr_1": "found at 1 %",
        "tpr_at_fpr_5": "found at 5 %",
        "ece": "ECE",
        "brier": "Brier",
    },
}
"""Of each table: metric and column title.  All numbers are per cent."""
WITH_INTERVAL = ("accuracy", "auc", "accuracy_calibrated")  # on the terminal
PACKAGES = ("cinemae_jax", "jax", "flax", "optax", "numpy", "pillow", "scikit-learn")
TEXT_WIDTH = 160  # columns at most; the table takes what it needs
NAME_WIDTH = 28  # longer generator names are cut


def as_text(rows: Sequence[Row], confidence: float) -> str:
    """The tables as plain text: per cent, with the intervals of accuracy and AUC."""
    buffer = io.StringIO()
    console = Console(file=buffer, width=TEXT_WIDTH, color_system=None)
    for title, columns in shown(rows).items():
        console.print(_table(rows, f"{title}; [{confidence:.0%} bootstrap interval]", columns))
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join([*lines, *worst_in_words(rows), *undefined(rows)])


def _table(rows: Sequence[Row], title: str, columns: Mapping[str, str]) -> Table:
    table = Table(title=title, box=SIMPLE)
    table.add_column("generator", no_wrap=True, max_width=NAME_WIDTH)
    for name in ("nature", "ai", "unread", *columns.values()):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row is rows[-1]:
            table.add_section()
        cells = [format_value(row.metrics[m]) for m in columns]
        for i, name in enumerate(columns):
            if name in WITH_INTERVAL:
                cells[i] = f"{cells[i]} {format_interval(row.metrics[name])}".strip()
        table.add_row(row.name, str(row.nature), str(row.ai), str(row.bad), *map(escape, cells))
    return table


def shown(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """``TABLES``; that of the calibrated threshold only if there is one."""
    return {
        title: columns
        for title, columns in TABLES.items()
        if "accuracy_calibrated" not in columns
        or any(not math.isnan(row.metrics["accuracy_calibrated"].value) for row in rows)
    }


def worst_in_words(rows: Sequence[Row]) -> list[str]:
    """One sentence: the generator with the lowest accuracy, and that with the lowest AUC."""
    found = metrics.worst(rows)
    said = [
        f"{name} {format_value(found[metric].metrics[metric])} "
        f"{format_interval(found[metric].metrics[metric])}".strip()
        + f" ({found[metric].name})"
        for metric, name in (("accuracy", "accuracy"), ("auc", "AUC"))
        if metric in found
    ]
    return [f"Worst generator: {'; '.join(said)}."] if said else []


def undefined(rows: Sequence[Row]) -> list[str]:
    """One sentence for every generator that makes the mean undefined."""
    return [
        f"No mean: {row.name} has {row.nature} readable nature and {row.ai} readable ai images."
        for row in rows
        if row is not rows[-1] and math.isnan(row.metrics["auc"].value)
    ]


def format_value(estimate: Estimate) -> str:
    """In per cent, for example ``91.2``; a dash where undefined."""
    return "–" if math.isnan(estimate.value) else f"{100 * estimate.value:.1f}"


def format_interval(estimate: Estimate) -> str:
    """In per cent, for example ``[88.0, 94.1]``; empty where there is none."""
    if math.isnan(estimate.low):
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def write(workdir: Path, rows: Sequence[Row], scores: pa.Table, facts: Mapping[str, Any]) -> None:
    """Writes eval.json, eval.csv, scores.csv and report.html into ``workdir``.

    Args:
      workdir: made if it is missing.
      rows: of ``metrics.evaluate``.
      scores: one row an image, as ``evaluate.score`` returns it.
      facts: what the numbers rest on (hashes, settings, counts); JSON-able.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    facts = {**facts, "command": " ".join(sys.argv), "versions": versions()}
    worst = {metric: row.name for metric, row in metrics.worst(rows).items()}
    result = {"results": [_as_json(row) for row in rows], "worst_generator": worst, **facts}
    (workdir / "eval.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    pyarrow.csv.write_csv(
        pa.Table.from_pylist([_as_record(row) for row in rows]), workdir / "eval.csv"
    )
    pyarrow.csv.write_csv(_plain(scores), workdir / "scores.csv")
    (workdir / "report.html").write_text(as_html(rows, scores, facts), encoding="utf-8")


def as_html(rows: Sequence[Row], scores: pa.Table, facts: Mapping[str, Any]) -> str:
    """One self-contained page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cinemae_jax.evaluation", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": format_value, "interval": format_interval}
    return environment.get_template("report.html.j2").render(
        rows=rows,
        tables=shown(rows),
        worst=worst_in_words(rows),
        ece_bins=ECE_BINS,
        plots=plots(scores),
        undefined=undefined(rows),
        facts=facts,
        settings=json.dumps(facts["settings"], indent=2),
    )


def versions() -> dict[str, str]:
    """Of Python and the packages that a number depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def _as_json(row: Row) -> dict[str, Any]:
    record = dataclasses.asdict(row)
    record["metrics"] = {
        name: {k: None if math.isnan(v) else v for k, v in values.items()}
        for name, values in record["metrics"].items()
    }
    return record


def _as_record(row: Row) -> dict[str, Any]:
    record: dict[str, Any] = {
        "generator": row.name,
        "nature": row.nature,
        "ai": row.ai,
        "bad": row.bad,
    }
    for name in METRICS:
        estimate = row.metrics[name]
        record |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return record


def _plain(table: pa.Table) -> pa.Table:
    """Dictionary columns as strings, which CSV needs."""
    fields = [
        pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type)
        for f in table.schema
    ]
    return table.cast(pa.schema(fields))
