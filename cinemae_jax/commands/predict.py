"""cinemae predict PATH…: how likely each picture is AI-generated, and how sure one may be of that.

Exit codes: 0 every picture was judged; 1 some could not be, each a row with its reason; 2 usage.
"""

import argparse
import collections
import csv
import glob
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from tqdm import tqdm

from cinemae_jax.data.decode import EXTENSIONS, DecodeError, open_header
from cinemae_jax.data.walk import walk
from cinemae_jax.detector.api import Detector
from cinemae_jax.detector.heatmap import SHOWN
from cinemae_jax.detector.inputs import Source
from cinemae_jax.runtime import compilation
from cinemae_jax.runtime.console import OK, SOME_FAILED, Parser, fail, printable, report_console

STDIN = "-"
PIPE_WIDTH = 140  # characters a line of the table, where there is no terminal to fit
STEM = 60  # characters of a picture's name in that of its map: file systems end at 255 bytes
Row = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    arguments = Parser(
        prog="cinemae predict",
        description="Says how likely each picture is AI-generated: a statistical opinion.",
        epilog="exit codes: 0 every picture was judged, 1 some could not be, 2 usage; "
        "docs/predict.md says what the numbers mean",
    )
    add = arguments.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="files, folders, quoted patterns, or - for a picture or a list of paths on stdin",
    )
    add("--detector", default="tiny", metavar="D", help="folder of a run, file, or 'tiny'")
    add("--backbone", default="", metavar="F", help="backbone of the detector, if it has moved")
    add("--format", choices=WRITERS, default="table", help="of what is printed (table)")
    add("--heatmaps", type=Path, metavar="DIR", help="write a map of every picture here")
    add("--runs", type=int, metavar="K", help="masks a picture: a multiple of the detector's own")
    add(
        "--threshold-fpr",
        type=float,
        metavar="X",
        help="share of photographs that may be called AI, for example 0.01",
    )
    add("--recursive", action="store_true", help="folders and all that lies in them")
    add("--batch", type=int, metavar="N", help="pictures at a time")
    add("--stability", action="store_true", help="judge again after mild JPEG and resize")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: name of the command first.
    """
    options = parser().parse_args(argv[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with compilation.kept_compilations():
            return run(options)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except (ValueError, OSError) as error:
        return fail(error)


def run(options: argparse.Namespace) -> int:
    """Judges the pictures and prints the rows."""
    named = list(expand(options.paths, recursive=options.recursive))
    detector = Detector.load(
        options.detector,
        backbone=options.backbone,
        runs=options.runs,
        fpr=options.threshold_fpr,
        batch_size=options.batch,
    )
    if options.heatmaps:
        if not detector.trained.backbone.config.has_decoder:
            raise ValueError(f"--heatmaps: the backbone of {detector.name} has no decoder")
        options.heatmaps.mkdir(parents=True, exist_ok=True)
    bad = []

    def rows() -> Iterator[Row]:
        sources = (source for _, source in named)
        predictions = detector.stream(sources, stability=options.stability)
        bar = tqdm(predictions, total=len(named), desc="predict", unit="image", disable=None)
        for (name, _), prediction in zip(named, bar, strict=True):
            row = prediction.to_dict() | {"path": name}
            if not options.stability:
                del row["stability"]
            if options.heatmaps:
                row["heatmap"] = None
                if prediction.example_id is not None:
                    stem = "stdin" if name == STDIN else Path(name).stem[:STEM]
                    path = options.heatmaps / f"{stem}-{prediction.example_id:08x}.png"
                    try:
                        prediction.lcas_map(score=SHOWN).save(path)
                        row["heatmap"] = str(path)
                    except (DecodeError, OSError) as error:  # of this picture: the others go on
                        row["error"] = f"no heatmap: {error}"
                        bad.append(name)
            if prediction.error is not None:
                bad.append(name)
            yield row | {"note": detector.in_words()[0]}

    WRITERS[options.format](rows(), detector)
    return SOME_FAILED if bad else OK


# --- which pictures -----------------------------------------------------------------------------


def expand(paths: Iterable[str], *, recursive: bool) -> Iterator[tuple[str, Source]]:
    """(name, source) of every picture that the arguments mean, in their order.

    A path that is not there stays: it becomes a row with a reason.

    Raises:
      ValueError: if a folder or a pattern holds no picture.
    """
    for path in paths:
        if path == STDIN:
            yield from _from_stdin(sys.stdin.buffer.read(), recursive=recursive)
        elif Path(path).is_dir():
            yield from ((name, name) for name in _in_folder(Path(path), recursive=recursive))
        elif glob.has_magic(path) and not os.path.lexists(path):
            found = sorted(name for name in glob.glob(path, recursive=True) if _is_file(name))  # noqa: PTH207
            if not found:
                raise ValueError(f"no file matches {path}")
            yield from ((name, name) for name in found)
        else:
            yield path, path


def _is_file(name: str) -> bool:
    return not Path(name).is_dir()


def _in_folder(folder: Path, *, recursive: bool) -> list[str]:
    if recursive:
        listing = walk(folder)
        found = [str(folder / name) for name in listing.images["path"].to_pylist()]
        others = listing.skipped
    else:
        files = [e for e in folder.iterdir() if not e.name.startswith(".") and not e.is_dir()]
        found = sorted(str(file) for file in files if file.suffix.lower() in EXTENSIONS)
        suffixes = (file.suffix.lower() for file in files)
        others = collections.Counter(
            f"extension {suffix or 'none'}" for suffix in suffixes if suffix not in EXTENSIONS
        )
    if not found:
        below = "" if recursive else "; --recursive looks below it too"
        raise ValueError(
            f"folder {folder} holds no picture ({' '.join(sorted(EXTENSIONS))}){below}"
        )
    if others:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(others.items()))
        told = f"left out  {sum(others.values())} entries of {folder}: {reasons}"
        print(printable(told), file=sys.stderr, flush=True)
    return found


def _from_stdin(data: bytes, *, recursive: bool) -> Iterator[tuple[str, Source]]:
    """One picture, or the paths of some, a line each."""
    if not _is_list(data):
        yield STDIN, data
        return
    listed = [os.fsdecode(line) for line in data.splitlines() if line.strip()]
    if not listed:
        raise ValueError("nothing on stdin: give a picture, or a list of paths")
    yield from expand([path for path in listed if path != STDIN], recursive=recursive)


def _is_list(data: bytes) -> bool:
    """No picture, and no binary junk that should have been one."""
    try:
        open_header(data)
    except DecodeError:
        return b"\0" not in data
    return False


# --- what is printed ----------------------------------------------------------------------------


def _table(rows: Iterable[Row], detector: Detector) -> None:
    console = report_console(PIPE_WIDTH)
    table = Table()
    for head in ("picture", "probability of AI", "verdict", "care", "seconds"):
        numeric = head in ("probability of AI", "seconds")
        table.add_column(head, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        spread = "" if row["uncertainty"] is None else f" ± {row['uncertainty']:.3f}"
        chance = "-" if row["probability"] is None else f"{row['probability']:.3f}{spread}"
        care = "\n".join(map(printable, row["flags"] or [row["error"] or ""]))
        verdict = row["verdict"] or "not scored"
        table.add_row(printable(row["path"]), chance, verdict, care, f"{row['seconds']:.2f}")
    console.print(table)
    for sentence in detector.in_words():
        console.print(f"- {printable(sentence)}", soft_wrap=True)


def _json(rows: Iterable[Row], detector: Detector) -> None:
    before = "[\n"
    for row in rows:
        print(before, _line(row), sep="", end="", flush=True)
        before = ",\n"
    print("\n]")


def _jsonl(rows: Iterable[Row], detector: Detector) -> None:
    for row in rows:
        print(_line(row), flush=True)


def _csv(rows: Iterable[Row], detector: Detector) -> None:
    writer = None
    for row in rows:
        flat = row | {"flags": "; ".join(row["flags"])}
        if row.get("stability"):
            flat["stability"] = _line(row["stability"])
        writer = writer or _csv_writer(flat)
        writer.writerow(flat)
        sys.stdout.flush()


def _csv_writer(row: Row) -> csv.DictWriter:
    writer = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
    writer.writeheader()
    return writer


WRITERS: dict[str, Callable[[Iterable[Row], Detector], None]] = {
    "table": _table,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
}


def _line(record: Row) -> str:
    return json.dumps(record, allow_nan=False)
