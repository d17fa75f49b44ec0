"""Results as a terminal table, JSON, CSV, and self-contained HTML and Markdown pages."""

import dataclasses
import io
import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.csv
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cinemae_jax.evaluation import audited, metrics, phrases, reported, signal, summary
from cinemae_jax.evaluation.bootstrap import ECE_BINS
from cinemae_jax.evaluation.generalisation import Generalisation
from cinemae_jax.evaluation.metrics import METRICS, Estimate, Row
from cinemae_jax.runtime.console import csv_cell, printable, versions

# Table title → metric → column title.  All numbers are per cent.
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
    "at a fixed false-positive rate, and calibration": {
        "tpr_at_fpr_1": "TPR at 1 % FPR",
        "tpr_at_fpr_5": "TPR at 5 % FPR",
        "ece": "ECE",
        "brier": "Brier",
    },
}
WITH_INTERVAL = ("accuracy", "auc", "accuracy_calibrated")  # in the terminal table
PACKAGES = ("cinemae_jax", "jax", "flax", "optax", "numpy", "pillow", "scikit-learn")
TEXT_WIDTH = 160  # characters per line, at most
NAME_WIDTH = 28  # longer generator names are cut off


def as_text(rows: Sequence[Row], confidence: float) -> str:
    """The tables as plain text, in per cent, with intervals of accuracy and AUC."""
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
        table.add_row(
            printable(row.name), str(row.nature), str(row.ai), str(row.bad), *map(escape, cells)
        )
    return table


def shown(rows: Sequence[Row]) -> dict[str, dict[str, str]]:
    """``TABLES`` without the table of the calibrated threshold if there is none."""
    return {
        title: columns
        for title, columns in TABLES.items()
        if "accuracy_calibrated" not in columns
        or any(not math.isnan(row.metrics["accuracy_calibrated"].value) for row in rows)
    }


def worst_in_words(rows: Sequence[Row]) -> list[str]:
    """A sentence naming the generators with the lowest accuracy and the lowest AUC."""
    found = metrics.worst(rows)
    said = [
        f"{name} {format_value(found[metric].metrics[metric])} "
        f"{format_interval(found[metric].metrics[metric])}".strip()
        + f" ({found[metric].name})"
        for metric, name in (("accuracy", "accuracy"), ("auc", "AUC"))
        if metric in found
    ]
    return [f"Worst generator: {'; '.join(said)}."] if said else []


def generalisation(rows: Sequence[Row], facts: Mapping[str, Any]) -> Generalisation:
    """Accuracy on the detector's training generators and on the others."""
    accuracy = {row.name: row.metrics["accuracy"].value for row in rows[:-1]}
    return Generalisation.of(
        accuracy, facts["settings"].get("data", {}).get("train_generators", ())
    )


def undefined(rows: Sequence[Row]) -> list[str]:
    """A sentence for every generator that makes the mean undefined."""
    return [
        f"No mean: {row.name} has {row.nature} readable nature and {row.ai} readable ai images."
        for row in rows
        if row is not rows[-1] and math.isnan(row.metrics["auc"].value)
    ]


def format_value(estimate: Estimate) -> str:
    """Per cent, for example ``91.2``; a dash if undefined."""
    return "–" if math.isnan(estimate.value) else f"{100 * estimate.value:.1f}"


def format_interval(estimate: Estimate) -> str:
    """Per cent, for example ``[88.0, 94.1]``; empty without an interval."""
    if math.isnan(estimate.low):
        return ""
    return f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


@dataclasses.dataclass(frozen=True)
class Hard:
    """One of the images that the detector got most wrong.

    Attributes:
      path: below the data root.
      label: name of its class.
      generator: whose set it belongs to.
      probability: calibrated probability of AI.
      verdict: at the calibrated thresholds.
      is_wrong: whether the head's probability is on the wrong side of 0.5.
      thumbnail, heatmap: data URIs of small JPEGs; may be empty.
      note: why there is no thumbnail; empty if there is one.
    """

    path: str
    label: str
    generator: str
    probability: float
    verdict: str
    is_wrong: bool
    thumbnail: str
    heatmap: str
    note: str


def write(
    workdir: Path,
    rows: Sequence[Row],
    scores: pa.Table,
    facts: Mapping[str, Any],
    hardest: Sequence[Hard] = (),
) -> None:
    """Writes eval.json, eval.csv, scores.csv, report.html and report.md into ``workdir``.

    The pages include an audit.json in ``workdir`` if it belongs to the same detector and images.

    Args:
      workdir: created if missing.
      rows: of ``metrics.evaluate``.
      scores: of ``scores.score``, one row per image.
      facts: what the numbers rest on (hashes, settings, counts), as JSON values.
      hardest: images to show.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    facts = {**facts, "command": command(), "versions": versions(PACKAGES)}
    worst = {metric: row.name for metric, row in metrics.worst(rows).items()}
    result = {
        "results": [_as_json(row) for row in rows],
        "worst_generator": worst,
        "generalisation": generalisation(rows, facts).as_record(),
        **facts,
    }
    (workdir / "eval.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    pyarrow.csv.write_csv(
        _plain(pa.Table.from_pylist([_as_record(row) for row in rows])), workdir / "eval.csv"
    )
    pyarrow.csv.write_csv(_plain(scores), workdir / "scores.csv")
    for name, text in pages(workdir, rows, scores, facts, hardest).items():
        (workdir / name).write_text(text, encoding="utf-8")


def pages(
    workdir: Path,
    rows: Sequence[Row],
    scores: pa.Table,
    facts: Mapping[str, Any],
    hardest: Sequence[Hard] = (),
) -> dict[str, str]:
    """report.html and report.md by file name; see ``write`` for the arguments."""
    from cinemae_jax.evaluation import plots  # matplotlib takes a second: only reports pay

    found, why_not = audited.read(workdir / audited.FILE, facts)
    to_unseen = generalisation(rows, facts)
    known = {
        "rows": rows,
        "tables": shown(rows),
        "headlines": summary.headlines(rows, found, to_unseen),
        "doubts": summary.doubts(rows, facts, found, why_not) + to_unseen.warnings(),
        "worst": worst_in_words(rows) + to_unseen.in_words(),
        "undefined": undefined(rows),
        "ece_bins": ECE_BINS,
        "beside": reported.beside(rows),
        "reported": reported,
        "audited": found,
        "equalised": list(_compared(found)),
        "audit_command": _audit_command(workdir, facts),
        "measured": found.signal if found else None,
        "signal": signal,
        "nll_curves": plots.nll_curves(found.signal.conditions) if found and found.signal else [],
        "sections": plots.sections(scores, found.changes if found else ()),
        "hardest": hardest,
        "facts": facts,
        "settings": json.dumps(facts["settings"], indent=2),
    }
    return {name: _environment(name).get_template(f"{name}.j2").render(known) for name in PAGES}


PAGES = ("report.html", "report.md")


def _environment(page: str) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cinemae_jax.evaluation", "."),
        autoescape=page.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "value": format_value,
        "two": _two_decimals,
        "interval": format_interval,
        "signed": phrases.signed,
        "md": _markdown,
    }
    return environment


def _two_decimals(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _markdown(text: object) -> str:
    """Text with Markdown's special characters escaped, on one line."""
    return "".join(f"\\{c}" if c in r"\`*_[]<>|#" else c for c in " ".join(str(text).split()))


def _compared(found: audited.Audited | None) -> Iterator[tuple[Row, Row, Row]]:
    """Rows of raw and equalised images and their difference, by generator."""
    if found:
        parts = found.equalised
        yield from zip(parts.before, parts.after, parts.difference, strict=True)


def _audit_command(workdir: Path, facts: Mapping[str, Any]) -> str:
    data = facts["settings"]["data"]
    root = data["root"] if data["source"] == "folder" else "FOLDER"  # of the original files
    detector = facts["settings"]["eval"]["detector"] or str(workdir)
    words = ["cinemae", "audit", root, "--detector", detector, "--robustness"]
    if data["quarantine"]:
        words += ["--quarantine", data["quarantine"]]
    return shlex.join([*words, "--json", str(workdir / audited.FILE)])


def command() -> str:
    """The command line of this process, quoted for a shell."""
    return shlex.join(sys.orig_argv)


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
    """The table for CSV: dictionary columns as strings, and text that no program runs."""
    fields = [
        pa.field(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type)
        for f in table.schema
    ]
    table = table.cast(pa.schema(fields))
    for i, field in enumerate(fields):
        if pa.types.is_string(field.type):
            values = [text if text is None else csv_cell(text) for text in table[i].to_pylist()]
            table = table.set_column(i, field.name, pa.array(values, pa.string()))
    return table
