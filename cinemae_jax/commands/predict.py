"""cinemae predict PATH…: the calibrated probability that each image is AI-generated, and a verdict.

Exit codes: 0 every image was scored; 1 some were not, each a row with its error; 2 usage.
"""

import argparse
import codecs
import collections
import contextlib
import csv
import glob
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, cast

from rich.table import Table
from tqdm import tqdm

from cinemae_jax.commands import frozen
from cinemae_jax.data import kinds
from cinemae_jax.data.decode import EXTENSIONS, open_header
from cinemae_jax.data.refusal import DecodeError
from cinemae_jax.data.text import number, tally
from cinemae_jax.data.walk import walk
from cinemae_jax.detector.api import Detector, Prediction
from cinemae_jax.detector.heatmap import SHOWN
from cinemae_jax.detector.inputs import Source
from cinemae_jax.runtime import compilation
from cinemae_jax.runtime.console import (
    OK,
    SOME_FAILED,
    Parser,
    csv_cell,
    fail,
    printable,
    report_console,
)

STDIN = "-"
PIPE_WIDTH = 140  # characters per line of the table when the output is not a terminal
STEM = 60  # characters of the image's name in a heat map's name; file systems allow 255 bytes
Row = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    arguments = Parser(
        prog="cinemae predict",
        description="Estimate how likely each image is AI-generated.",
        epilog="exit codes: 0 every image was scored, 1 some were not, 2 usage; "
        "docs/predict.md explains the output",
    )
    add = arguments.add_argument
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="files, folders, quoted patterns, or - for an image or a list of paths on stdin",
    )
    add("--detector", default="", metavar="D", help="run folder, bundle file, or bundled name")
    frozen.add_options(arguments)
    add("--format", choices=WRITERS, default="table", help="output format (default: table)")
    add("--heatmaps", type=Path, metavar="DIR", help="write a heat map per image to DIR")
    add("--runs", type=int, metavar="K", help="masks per image: a multiple of the detector's")
    add(
        "--threshold-fpr",
        type=float,
        metavar="X",
        help="maximum share of photographs called AI, for example 0.01",
    )
    add("--recursive", action="store_true", help="include subfolders")
    add("--batch", type=int, metavar="N", help="images per batch")
    add("--stability", action="store_true", help="score again after mild JPEG and resize")
    return arguments


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code.

    Args:
      argv: the command's name, then its arguments.
    """
    options = parser().parse_args(argv[1:])
    try:
        with compilation.kept_compilations():
            return run(options)
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except (ValueError, OSError) as error:
        return fail(error)


def run(options: argparse.Namespace) -> int:
    """Scores the images and prints a row for each; returns the exit code."""
    named = list(expand(options.paths, recursive=options.recursive))
    detector = Detector.load(
        options.detector,
        backbone=options.backbone,
        global_backbone=options.global_backbone,
        runs=options.runs,
        fpr=options.threshold_fpr,
        batch_size=options.batch,
    )
    if options.heatmaps:
        if not detector.trained.backbone.config.has_decoder:
            raise ValueError(f"--heatmaps: the backbone of {detector.name} has no decoder")
        options.heatmaps.mkdir(parents=True, exist_ok=True)
    predictions = detector.stream((source for _, source in named), stability=options.stability)
    hidden = True if sys.stdout.isatty() else None  # the rows themselves show the progress there
    bar = tqdm(predictions, total=len(named), desc="predict", unit="image", disable=hidden)
    all_scored = True
    with WRITERS[options.format](detector) as write:
        for (name, _), prediction in zip(named, bar, strict=True):
            row = prediction.to_dict() | {"path": name}
            if not options.stability:
                del row["stability"]
            if options.heatmaps:
                row |= _heat_map(prediction, name, options.heatmaps)
            write(row | {"note": detector.in_words()[0]})
            all_scored &= row["error"] is None
    return OK if all_scored else SOME_FAILED


def _heat_map(prediction: Prediction, name: str, folder: Path) -> Row:
    """Writes the heat map of an image; fields of its row."""
    if prediction.example_id is None:
        return {"heatmap": None}
    stem = "stdin" if name == STDIN else Path(name).stem[:STEM]
    path = folder / f"{stem}-{prediction.example_id:08x}.png"
    try:
        prediction.lcas_map(score=SHOWN).save(path)
    except (DecodeError, OSError) as error:  # only this image fails
        return {"heatmap": None, "error": f"no heat map: {error}"}
    return {"heatmap": str(path)}


# --- which images -------------------------------------------------------------------------------


def expand(paths: Iterable[str], *, recursive: bool) -> Iterator[tuple[str, Source]]:
    """(name, source) of every image that the arguments name, in their order.

    A missing file is kept, so that it becomes a row with an error.

    Raises:
      ValueError: if a folder or a pattern matches no image.
    """
    for path in paths:
        if path == STDIN:
            yield from _from_stdin(sys.stdin.buffer.read(), recursive=recursive)
        elif os.path.isdir(path):  # noqa: PTH112  False, not an error, where stat refuses
            yield from ((name, name) for name in _in_folder(Path(path), recursive=recursive))
        elif glob.has_magic(path) and not os.path.lexists(path):
            matches = glob.glob(path, recursive=True)  # noqa: PTH207
            found = sorted(name for name in matches if not os.path.isdir(name))  # noqa: PTH112
            if not found:
                raise ValueError(f"no file matches {path}")
            yield from ((name, name) for name in found)
        else:
            yield path, path


def _in_folder(folder: Path, *, recursive: bool) -> list[str]:
    if recursive:
        listing = walk(folder)
        found = [str(folder / name) for name in listing.images["path"].to_pylist()]
        others = listing.skipped
    else:
        files = [
            entry
            for entry in folder.iterdir()
            if not entry.name.startswith(".") and not os.path.isdir(entry)  # noqa: PTH112
        ]
        found = sorted(str(file) for file in files if file.suffix.lower() in EXTENSIONS)
        suffixes = (file.suffix.lower() for file in files)
        others = collections.Counter(
            f"extension {suffix or 'none'}" for suffix in suffixes if suffix not in EXTENSIONS
        )
    if not found:
        hint = "" if recursive else "; use --recursive to include subfolders"
        left_out = tally(dict(sorted(others.items()))) or "nothing"
        raise ValueError(
            f"folder {folder} contains no image ({' '.join(sorted(EXTENSIONS))}; left out: "
            f"{left_out}){hint}"
        )
    if others:
        total = number(sum(others.values()), "file")
        told = f"left out  {total} of {folder}: {tally(dict(sorted(others.items())))}"
        print(printable(told), file=sys.stderr, flush=True)
    return found


def _from_stdin(data: bytes, *, recursive: bool) -> Iterator[tuple[str, Source]]:
    """One image, or a list of files and folders; unlike arguments, names in it are no patterns."""
    listed = _names_in(data)
    if listed is None:
        yield STDIN, data
        return
    if not listed:
        raise ValueError("stdin is empty: give an image, or a list of paths")
    for path in listed:
        names = [path]
        if os.path.isdir(path):  # noqa: PTH112
            with contextlib.suppress(ValueError, OSError):  # its row will say what is wrong
                names = _in_folder(Path(path), recursive=recursive)
        yield from ((name, name) for name in names)


MAX_NAME = 4096  # bytes of a path


def _names_in(data: bytes) -> list[str] | None:
    """The lines of a list, or its names that end with NUL; None if the data is an image.

    Lists from Windows may begin with a byte order mark and be UTF-16.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        lines = data.decode("utf-16", "replace").splitlines()
        return [name for name in lines if name.strip() and name != STDIN]
    if kinds.failed_download(data[: kinds.LOOKED_AT]) and data:
        return None
    with contextlib.suppress(DecodeError):
        open_header(data)
        return None
    data = data.removeprefix(codecs.BOM_UTF8)
    names = data.splitlines()
    if b"\0" in data:
        names = data.removesuffix(b"\0").split(b"\0")
        if not data.endswith(b"\0") or not all(0 < len(name) <= MAX_NAME for name in names):
            return None  # a damaged image
    return [os.fsdecode(name) for name in names if name.strip() and name != STDIN.encode()]


# --- output: a function that takes the rows one by one ------------------------------------------

Write = Callable[[Row], None]


@contextlib.contextmanager
def _table(detector: Detector) -> Iterator[Write]:
    """Every row at once, so that a long run shows something and Ctrl-C keeps what was scored."""
    console = report_console(PIPE_WIDTH)
    console.print(_columns(console.width, header=True))

    def write(row: Row) -> None:
        spread = "" if row["uncertainty"] is None else f" ± {row['uncertainty']:.3f}"
        chance = "-" if row["probability"] is None else f"{row['probability']:.3f}{spread}"
        care = "\n".join(map(printable, row["flags"] or [row["error"] or ""]))
        verdict = row["verdict"] or "not scored"
        shown = _columns(console.width, header=False)
        shown.add_row(printable(row["path"]), chance, verdict, care, f"{row['seconds']:.2f}")
        console.print(shown)
        sys.stdout.flush()

    yield write
    for sentence in detector.in_words():
        console.print(f"- {printable(sentence)}", soft_wrap=True)


def _columns(width: int, *, header: bool) -> Table:
    """A table whose columns have the same widths whatever is in them."""
    table = Table(box=None, show_header=header, pad_edge=False)
    fixed = {"probability of AI": 17, "verdict": 12, "seconds": 7}
    free = max(30, width - sum(fixed.values()) - 8)  # two blanks between columns
    for head, own in (
        ("image", free * 2 // 5),
        ("probability of AI", 0),
        ("verdict", 0),
        ("care", free - free * 2 // 5),
        ("seconds", 0),
    ):
        side = "right" if head in ("probability of AI", "seconds") else "left"
        table.add_column(
            head,
            justify=cast(Literal["left", "right"], side),
            overflow="fold",
            width=fixed.get(head, own),
        )
    return table


@contextlib.contextmanager
def _json(detector: Detector) -> Iterator[Write]:
    before = itertools.chain(["[\n"], itertools.repeat(",\n"))
    yield lambda row: print(next(before), _line(row), sep="", end="", flush=True)
    print("\n]")


@contextlib.contextmanager
def _jsonl(detector: Detector) -> Iterator[Write]:
    yield lambda row: print(_line(row), flush=True)


@contextlib.contextmanager
def _csv(detector: Detector) -> Iterator[Write]:
    writer: csv.DictWriter | None = None

    def write(row: Row) -> None:
        nonlocal writer
        flat = row | {"flags": "; ".join(row["flags"])}
        if row.get("stability"):
            flat["stability"] = _line(row["stability"])
        if writer is None:
            writer = csv.DictWriter(sys.stdout, list(flat), lineterminator="\n")
            writer.writeheader()
        writer.writerow({k: csv_cell(v) if isinstance(v, str) else v for k, v in flat.items()})
        sys.stdout.flush()

    yield write


WRITERS: dict[str, Callable[[Detector], AbstractContextManager[Write]]] = {
    "table": _table,
    "json": _json,
    "jsonl": _jsonl,
    "csv": _csv,
}


def _line(record: Row) -> str:
    return json.dumps(record, allow_nan=False)
