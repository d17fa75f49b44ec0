"""Results for people and programs: terminal table, eval.json, eval.csv, scores.csv, report.html."""

import base64
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
import numpy as np
import pyarrow as pa
import pyarrow.csv
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sklearn.metrics import roc_curve

from cinemae_jax.evaluation.metrics import METRICS, Estimate, Row

TITLES = {
    "accuracy": "accuracy",
    "nature_accuracy": "nature right",
    "ai_accuracy": "ai right",
    "ap": "AP",
    "auc": "AUC",
}
PACKAGES = ("cinemae_jax", "jax", "flax", "optax", "numpy", "pillow", "scikit-learn")
TEXT_WIDTH = 120  # columns; longer generator names are cut
CLASS_COLOURS = {"nature": "#2a7fb8", "ai": "#d1603d"}


def as_text(rows: Sequence[Row], confidence: float) -> str:
    """The table as plain text: per cent, with the intervals of accuracy and AUC."""
    table = Table(
        title=f"accuracy at probability 0.5; [{confidence:.0%} bootstrap interval]", box=SIMPLE
    )
    table.add_column("generator", no_wrap=True)
    for name in ("nature", "ai", "unread", *TITLES.values()):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        if row.name == "mean":
            table.add_section()
        cells = [
            format_estimate(row.metrics[m], with_interval=m in ("accuracy", "auc")) for m in TITLES
        ]
        table.add_row(row.name, str(row.nature), str(row.ai), str(row.bad), *map(escape, cells))
    buffer = io.StringIO()
    Console(file=buffer, width=TEXT_WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines())


def format_estimate(estimate: Estimate, *, with_interval: bool = True) -> str:
    """For example ``91.2 [88.0, 94.1]``, in per cent; a dash where undefined."""
    if math.isnan(estimate.value):
        return "–"
    text = f"{100 * estimate.value:.1f}"
    if math.isnan(estimate.low) or not with_interval:
        return text
    return f"{text} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


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
    result = {"results": [_as_json(row) for row in rows], **facts}
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
    environment.filters["estimate"] = format_estimate
    return environment.get_template("report.html.j2").render(
        rows=rows,
        titles=TITLES,
        plots=[(title, _svg_data(figure)) for title, figure in _plots(scores)],
        facts=facts,
        settings=json.dumps(facts["settings"], indent=2),
    )


def versions() -> dict[str, str]:
    """Of Python and the packages that a number depends on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def _plots(scores: pa.Table) -> list[tuple[str, Figure]]:
    valid = scores.filter(pa.compute.is_valid(scores["logit"]))
    generators = sorted(set(valid["generator"].to_pylist()))
    columns = {
        name: valid[name].to_numpy()
        for name in (
            "label",
            "probability",
            "variability",
            "mean_anomaly",
            "perturbation_sensitivity",
        )
    }
    of = np.array(valid["generator"].to_pylist())
    return [
        ("ROC by generator", _roc(columns["label"], columns["probability"], of, generators)),
        ("Probability of AI by generator", _strips(columns, of, generators)),
        ("The three LCAS statistics by class, all generators", _statistics(columns)),
    ]


def _roc(
    labels: np.ndarray, probability: np.ndarray, of: np.ndarray, generators: Sequence[str]
) -> Figure:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for name in generators:
        y, p = labels[of == name], probability[of == name]
        if len(set(y)) == 2:
            axes.plot(*roc_curve(y, p)[:2], label=name)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="photographs called AI", ylabel="AI images called AI", aspect="equal")
    axes.legend(fontsize="small", frameon=False)
    return figure


def _strips(columns: dict[str, np.ndarray], of: np.ndarray, generators: Sequence[str]) -> Figure:
    figure = Figure(figsize=(7, 0.6 * len(generators) + 1.2), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    for line, name in enumerate(generators):
        for label, (kind, colour) in enumerate(CLASS_COLOURS.items()):
            values = columns["probability"][(of == name) & (columns["label"] == label)]
            height = line + (0.2 if label else -0.2) + jitter.uniform(-0.12, 0.12, len(values))
            axes.scatter(
                values,
                height,
                s=7,
                alpha=0.5,
                color=colour,
                linewidths=0,
                label=kind if line == 0 else None,
            )
    axes.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.set(
        xlim=(-0.02, 1.02),
        xlabel="probability of AI",
        yticks=range(len(generators)),
        yticklabels=generators,
    )
    axes.invert_yaxis()
    axes.legend(fontsize="small", frameon=False, loc="upper center", ncols=2)
    return figure


def _statistics(columns: dict[str, np.ndarray]) -> Figure:
    names = ("variability", "mean_anomaly", "perturbation_sensitivity")
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, 3), names, strict=True):
        low, high = np.quantile(columns[name], [0.005, 0.995])
        bins = np.linspace(low, high if high > low else low + 1, 31)
        for label, (kind, colour) in enumerate(CLASS_COLOURS.items()):
            values = columns[name][columns["label"] == label]
            axes.hist(values, bins, density=True, alpha=0.5, color=colour, label=kind)
        axes.set(title=name.replace("_", " "), yticks=[])
    figure.axes[0].legend(fontsize="small", frameon=False)
    return figure


def _svg_data(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return base64.b64encode(buffer.getvalue()).decode()


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
