"""cinemae doctor ROOT: opens every image of a data set and reports its problems.

Exit codes: 0 every file is readable; 1 some are not, each named in the report; 2 usage.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cinemae_jax.data.inspect import diagnosis, examination
from cinemae_jax.data.inspect.shortcuts import ALL, FACTS, rounded
from cinemae_jax.data.text import number, tally
from cinemae_jax.runtime.console import (
    OK,
    SOME_FAILED,
    Parser,
    fail,
    positive,
    printable,
    report_console,
    versions,
)
from cinemae_jax.runtime.files import replacing, require_writable, write_json

LISTED = 10  # unreadable files and leaks shown on the terminal
FEW = 3  # files shown for every other finding
ROWS = 40  # rows per table
PIPE_WIDTH = 140  # characters per line when the output is not a terminal

VERSIONED = ("cinemae_jax", "numpy", "pillow", "pyarrow", "scikit-learn")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code.

    Args:
      argv: the command's name, then its arguments.
    """
    options = parser().parse_args(argv[1:])
    try:
        for path in (options.json, options.quarantine):
            require_writable(path)
        examined = examination.examine(options.root, workers=options.workers)
        reported = diagnosis.report(examined) | {"versions": versions(VERSIONED)}
        if options.json:
            write_json(options.json, reported)
        if options.quarantine:
            _write_quarantine(options.quarantine, reported)
    except (ValueError, OSError) as error:
        return fail(error)
    show(reported, report_console(PIPE_WIDTH))
    return SOME_FAILED if reported["counts"]["unreadable"] else OK


def parser() -> argparse.ArgumentParser:
    arguments = Parser(
        prog="cinemae doctor",
        description="Open every image of a data set and report its problems.",
        epilog="exit codes: 0 every file is readable, 1 some are not, 2 usage; see docs/data.md",
    )
    arguments.add_argument("root", help="folder of the data set, a list, or nature=DIR,ai=DIR")
    arguments.add_argument("--json", type=Path, metavar="F", help="write the full report to F")
    arguments.add_argument(
        "--quarantine",
        type=Path,
        metavar="F",
        help="write a CSV (path, reason) to F: unreadable files, and training copies of images "
        "that are also in another split",
    )
    arguments.add_argument(
        "--workers", type=positive, metavar="N", help="number of processes (default: one per core)"
    )
    return arguments


# --- files --------------------------------------------------------------------------------------


def _write_quarantine(path: Path, reported: dict[str, Any]) -> None:
    with (
        replacing(path) as partial,
        open(partial, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "reason"))
        writer.writerows(diagnosis.quarantine(reported))


# --- terminal -----------------------------------------------------------------------------------


def show(reported: dict[str, Any], console: Console) -> None:
    """Prints a summary; the JSON file has the full report."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    counts = reported["counts"]
    console.print(_groups(reported["groups"]))
    if reported["shortcuts"]:
        console.print(_shortcuts(reported["shortcuts"]))
    if counts["left_out"]:
        say(f"left out: {counts['left_out']:,} ({tally(counts['left_out_by_reason'])})")
    for name, found in reported["findings"].items():
        classes = tally(found["by_label"])
        say(f"{name}: {number(found['count'], 'file')} ({classes}): {found['meaning']}")
        _list(say, found["paths"], found["count"], FEW)
    for where in ("splits", "classes"):
        leaks = reported["duplicates"][f"across_{where}"]
        if leaks:
            say(f"duplicates across {where}: {number(len(leaks), 'set')} (a leak)")
            _list(say, _in_lines(leaks), len(leaks), LISTED)
    if within := reported["duplicates"]["within"]:
        num_sets = reported["duplicates"]["num_within"]
        say(f"duplicates within one split and class: {number(num_sets, 'set')}")
        _list(say, _in_lines(within), num_sets, FEW)
    if bad := reported["unreadable"]:
        say(f"unreadable: {number(len(bad), 'file')}")
        _list(say, [f"{row['path']}: {row['error']}" for row in bad], len(bad), LISTED)
    say("")
    for sentence in reported["verdict"]:
        say(f"- {printable(sentence)}")
    rate = counts["scanned"] / max(reported["seconds"], 1e-3)
    scanned = number(counts["scanned"], "file")
    say(f"{scanned} in {reported['seconds']:.1f} s ({rate:,.0f} per second)")


def _list(say: Callable[[str], None], lines: Sequence[str], count: int, most: int) -> None:
    for line in lines[:most]:
        say(f"    {printable(line)}")
    if count > most:
        say(f"    and {count - most:,} more (use --json F)")


def _in_lines(sets: Sequence[Sequence[dict[str, str]]]) -> list[str]:
    """One line per set of equal files."""
    return [" = ".join(copy["path"] for copy in copies) for copies in sets]


def _groups(groups: Sequence[dict[str, Any]]) -> Table:
    right = {"files", "unreadable"}
    heads = ("generator", "split", "class", "files", "unreadable")
    table = Table(title="by class", title_justify="left")
    for head in (*heads, "format", "size", "JPEG quality"):
        table.add_column(head, justify="right" if head in right else "left", overflow="fold")
    for group in groups[:ROWS]:
        table.add_row(
            *(printable(group[key]) for key in diagnosis.GROUP),
            f"{group['files']:,}",
            f"{sum(group['unreadable'].values()):,}",
            _shares(group["formats"], group["ok"]),
            _sizes(group),
            _range(group["jpeg_quality"]),
        )
    if len(groups) > ROWS:
        table.caption = f"and {len(groups) - ROWS} more rows (use --json F)"
    return table


def _shares(counts: dict[str, int], total: int) -> str:
    return ", ".join(f"{name} {_share(n, total)}" for name, n in counts.items()) or "-"


def _sizes(group: dict[str, Any]) -> str:
    if not group["ok"]:
        return "-"
    size, count = next(iter(group["sizes"].items()))
    if group["num_sizes"] == 1:
        return f"all {size}"
    return f"{_share(count, group['ok'])} {size}, {group['num_sizes']:,} sizes"


def _share(count: int, total: int) -> str:
    """A percentage; small and large shares are not rounded to 0 % or 100 %."""
    share = count / total
    if 0 < share < 0.01 or 0.99 < share < 1:
        return "<1%" if share < 0.5 else ">99%"
    return f"{share:.0%}"


def _range(spread: dict[str, int] | None) -> str:
    return "{min}-{max}, median {median}".format(**spread) if spread else "-"


def _shortcuts(found: Sequence[dict[str, Any]]) -> Table:
    """One row per scope, one column per fact."""
    table = Table(title="AUC of a single file fact (0.5 is chance)", title_justify="left")
    table.add_column("generator", overflow="fold")
    table.add_column("nature + ai", justify="right")
    for fact in FACTS:
        table.add_column(fact, justify="right")
    scopes = list(dict.fromkeys(one["scope"] for one in found))
    for scope in scopes[:ROWS]:
        row = {one["fact"]: one for one in found if one["scope"] == scope}
        size = row["image size"]  # every file has one
        table.add_row(
            "whole set" if scope == ALL else printable(scope),
            f"{size['num_nature']:,} + {size['num_ai']:,}",
            *("-" if row[f]["auc"] is None else rounded(row[f]["auc"]) for f in FACTS),
        )
    if len(scopes) > ROWS:
        table.caption = f"and {len(scopes) - ROWS} more rows (use --json F)"
    return table
