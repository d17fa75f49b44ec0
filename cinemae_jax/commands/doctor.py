"""cinemae doctor ROOT: examines a data set before a run does, and says what is wrong with it.

Exit codes: 0 every file can be read; 1 some cannot, each named in the report; 2 usage.
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
from cinemae_jax.runtime.console import (
    OK,
    SOME_FAILED,
    Parser,
    accept_any_name,
    fail,
    positive,
    printable,
    report_console,
    versions,
)
from cinemae_jax.runtime.files import replacing, require_writable, write_json

LISTED = 10  # unreadable files and leaks named on the terminal
FEW = 3  # files named of every other finding
ROWS = 40  # of a table
PIPE_WIDTH = 140  # characters a line, where there is no terminal to fit

VERSIONED = ("cinemae_jax", "numpy", "pillow", "pyarrow", "scikit-learn")


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: name of the command first.
    """
    options = parser().parse_args(argv[1:])
    accept_any_name()
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
        description="Opens every image of a data set and says what is wrong with the set.",
        epilog="exit codes: 0 every file can be read, 1 some cannot, 2 usage; see docs/data.md",
    )
    arguments.add_argument("root", help="folder of the data set")
    arguments.add_argument("--json", type=Path, metavar="F", help="write the whole report here")
    arguments.add_argument(
        "--quarantine",
        type=Path,
        metavar="F",
        help="write a CSV (path, reason) here: unreadable files, and training copies of images "
        "that are in another split too",
    )
    arguments.add_argument(
        "--workers", type=positive, metavar="N", help="processes (default: one a core)"
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
    """The report on a screen or two; the whole of it is in the JSON file."""

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    counts = reported["counts"]
    console.print(_groups(reported["groups"]))
    if reported["shortcuts"]:
        console.print(_shortcuts(reported["shortcuts"]))
    if counts["left_out"]:
        reasons = ", ".join(f"{n:,} {why}" for why, n in counts["left_out_by_reason"].items())
        say(f"left out: {counts['left_out']:,} ({reasons})")
    for name, found in reported["findings"].items():
        share = ", ".join(f"{n:,} {label}" for label, n in found["by_label"].items())
        say(f"{name}: {_number(found['count'], 'file')} ({share}): {found['meaning']}")
        _list(say, found["paths"], found["count"], FEW)
    for where in ("splits", "classes"):
        leaks = reported["duplicates"][f"across_{where}"]
        if leaks:
            say(f"duplicates across {where}: {_number(len(leaks), 'set')}: a leak")
            _list(say, [" = ".join(copy["path"] for copy in s) for s in leaks], len(leaks), LISTED)
    if within := reported["duplicates"]["within"]:
        number = reported["duplicates"]["num_within"]
        say(f"duplicates within one split and class: {_number(number, 'set')}")
        _list(say, [" = ".join(copy["path"] for copy in s) for s in within], number, FEW)
    if bad := reported["unreadable"]:
        say(f"unreadable: {_number(len(bad), 'file')}")
        _list(say, [f"{row['path']}: {row['error']}" for row in bad], len(bad), LISTED)
    say("")
    for sentence in reported["verdict"]:
        say(f"- {printable(sentence)}")
    rate = counts["scanned"] / max(reported["seconds"], 1e-3)
    say(f"{counts['scanned']:,} files in {reported['seconds']:.1f} s ({rate:,.0f} a second)")


def _list(say: Callable[[str], None], lines: Sequence[str], count: int, most: int) -> None:
    for line in lines[:most]:
        say(f"    {printable(line)}")
    if count > most:
        say(f"    and {count - most:,} more: --json F lists them")


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
        table.caption = f"and {len(groups) - ROWS} more rows: --json F lists them"
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
    """A percentage; what is not quite nothing or everything is not shown as such."""
    share = count / total
    if 0 < share < 0.01 or 0.99 < share < 1:
        return "<1%" if share < 0.5 else ">99%"
    return f"{share:.0%}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _range(spread: dict[str, int] | None) -> str:
    return "{min}-{max}, median {median}".format(**spread) if spread else "-"


def _shortcuts(found: Sequence[dict[str, Any]]) -> Table:
    """One row a scope, one column a fact."""
    table = Table(
        title="AUC of one fact of the files alone (0.5: tells nothing)", title_justify="left"
    )
    table.add_column("generator", overflow="fold")
    table.add_column("nature + ai", justify="right")
    for fact in FACTS:
        table.add_column(fact, justify="right")
    scopes = list(dict.fromkeys(one["scope"] for one in found))
    for scope in scopes[:ROWS]:
        row = {one["fact"]: one for one in found if one["scope"] == scope}
        size = row["image size"]  # which every file has
        table.add_row(
            "all together" if scope == ALL else printable(scope),
            f"{size['num_nature']:,} + {size['num_ai']:,}",
            *("-" if row[f]["auc"] is None else rounded(row[f]["auc"]) for f in FACTS),
        )
    if len(scopes) > ROWS:
        table.caption = f"and {len(scopes) - ROWS} more rows: --json F lists them"
    return table
