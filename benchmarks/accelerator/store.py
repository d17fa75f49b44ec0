"""Results on disk: JSON that grows row by row, and the table made of it."""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.accelerator.sections import SECTIONS

Row = dict[str, Any]
FINISHED = ("measured", "skipped")


def read(file: Path) -> dict[str, Any]:
    """What has been measured so far; empty if nothing has."""
    return json.loads(file.read_text()) if file.exists() else {}


def write(file: Path, results: dict[str, Any]) -> None:
    """Writes the JSON, complete or not at all, and the table beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, file)
    file.with_suffix(".md").write_text(table(results))


def put(file: Path, name: str, **section: Any) -> None:
    """Replaces one section."""
    results = read(file)
    results["sections"][name] = section
    write(file, results)


def fail(file: Path, name: str, reason: str) -> None:
    """Notes that a section ended before its time; its rows are kept."""
    rows = read(file)["sections"].get(name, {}).get("rows", [])
    put(file, name, status="failed", reason=reason, rows=rows)


def is_finished(results: dict[str, Any], name: str) -> bool:
    """Whether a section need not be measured again."""
    return results["sections"].get(name, {}).get("status") in FINISHED


def problems(results: dict[str, Any], names: list[str]) -> list[str]:
    """What is wrong or missing, one line each."""
    found = []
    for name in names:
        section = results["sections"].get(name)
        if section is None:
            found.append(f"{name}: not measured, out of time: run the same command again")
            continue
        if section["status"] not in FINISHED:
            found.append(f"{name}: {section['status']}: {section.get('reason', '')}")
        found += [
            f"{name}: {row['what']}: {row['error']:.2g} exceeds {row['bound']:.2g}"
            for row in section["rows"]
            if row.get("ok") is False
        ]
    return found


def table(results: dict[str, Any]) -> str:
    """All sections as Markdown."""
    machine = results.get("machine", {})
    lines = [f"{name}: {value}" for name, value in machine.items()]
    for name, section in results.get("sections", {}).items():
        lines += ["", f"## {SECTIONS[name].title} ({name})", ""]
        note = section.get("reason", "")
        if section["status"] != "measured" or note:
            lines += [f"{section['status']}: {note}", ""]
        rows = section["rows"]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if rows:
            lines += [_line(columns), _line(["---"] * len(columns))]
            lines += [_line([_cell(row.get(column)) for column in columns]) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
