"""Finds what is wrong with a data set from the facts about its files.

In: an ``Examination``.  Out: a report of plain dicts, ready for JSON: counts, findings with paths,
duplicates, tables by class, and shortcuts (file facts that tell the classes apart).
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cinemae_jax.data.inspect import shortcuts
from cinemae_jax.data.inspect.examination import UNLABELLED, Examination
from cinemae_jax.data.inspect.shortcuts import Shortcut
from cinemae_jax.data.text import number, tally

SCHEMA_VERSION = 1
# Paths or sets listed per finding that is neither a failure nor a leak; counts include all.
LISTED = 1000

# Shorter side in pixels below which a readable image is tiny.
TINY_SIDE = 64
# Pixels above which a readable image is giant: it takes most of a second to decode.
GIANT_PIXELS = 16_000_000
# Ratio of the sides above which a readable image is narrow: a square shows little of it.
NARROW_ASPECT = 4

GROUP = ["generator", "split", "label"]


def report(examined: Examination) -> dict[str, Any]:
    """The whole report; docs/data.md describes its fields."""
    bad = examined.unreadable
    counts = {
        "scanned": len(examined.files),
        "ok": len(examined.files) - len(bad),
        "unreadable": len(bad),
        "unreadable_by_reason": _counts(bad["reason"]),
        "left_out": sum(examined.left_out.values()),
        "left_out_by_reason": dict(sorted(examined.left_out.items())),
    }
    copies, found = duplicates(examined), find_shortcuts(examined)
    return {
        "schema": SCHEMA_VERSION,
        "root": str(examined.root),
        "layout": examined.layout or "labelled",
        "counts": counts,
        "verdict": verdict(examined, counts, copies, found),
        "groups": groups(examined),
        "unreadable": bad.select(["path", "reason", "error", *GROUP]).to_pylist(),
        "findings": findings(examined),
        "duplicates": copies,
        "shortcuts": [dataclasses.asdict(one) for one in found],
        "seconds": round(examined.seconds, 3),
    }


def quarantine(reported: dict[str, Any]) -> list[tuple[str, str]]:
    """(path, reason) of the files that a run should leave out, sorted by path.

    These are the unreadable files and, of exact duplicates across splits, the training copies, so
    that the other splits do not change.
    """
    rows = {row["path"]: row["error"] for row in reported["unreadable"]}
    for copies in reported["duplicates"]["across_splits"]:
        kept = next(copy for copy in copies if copy["split"] != "train")
        for copy in copies:
            if copy["split"] == "train":
                rows[copy["path"]] = f"same bytes as {kept['path']} of split {kept['split']}"
    return sorted(rows.items())


# --- by class -----------------------------------------------------------------------------------


def groups(examined: Examination) -> list[dict[str, Any]]:
    """One row per generator, split and class; formats, sizes and the like cover readable files."""
    files = examined.files
    keys = files.group_by(GROUP).aggregate([]).sort_by([(name, "ascending") for name in GROUP])
    return [key | _group(_where(files, key)) for key in keys.to_pylist()]


def _where(files: pa.Table, key: dict[str, str]) -> pa.Table:
    for name, value in key.items():
        files = files.filter(pc.equal(files[name], value))
    return files


def _group(files: pa.Table) -> dict[str, Any]:
    is_ok = pc.equal(files["reason"], "")
    ok, bad = files.filter(is_ok), files.filter(pc.invert(is_ok))
    sides = [pc.cast(ok[name], pa.string()) for name in ("width", "height")]
    sizes = _counts(pc.binary_join_element_wise(*sides, "x"))
    return {
        "files": len(files),
        "ok": len(ok),
        "unreadable": _counts(bad["reason"]),
        "formats": _counts(ok["format"]),
        "modes": _counts(ok["mode"]),
        "sizes": dict(list(sizes.items())[:10]),
        "num_sizes": len(sizes),
        "width": _spread(ok["width"]),
        "height": _spread(ok["height"]),
        "num_bytes": _spread(ok["num_bytes"]),
        "jpeg_quality": _spread(ok["quality"]),
    }


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    """Number of times each value occurs, the most frequent first."""
    pairs = [(str(v["values"]), v["counts"]) for v in pc.value_counts(column).to_pylist()]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def _spread(column: pa.ChunkedArray) -> dict[str, int] | None:
    """Minimum, median and maximum of the values that are not null."""
    if len(column) == column.null_count:
        return None
    values = pc.quantile(column, [0, 0.5, 1], interpolation="nearest").to_pylist()
    return dict(zip(("min", "median", "max"), values, strict=True))


# --- findings -----------------------------------------------------------------------------------


def _sides(files: pa.Table) -> tuple[Any, Any]:
    width, height = files["width"], files["height"]
    return pc.min_element_wise(width, height), pc.max_element_wise(width, height)


def _is_narrow(files: pa.Table) -> Any:
    short, long = _sides(files)
    return pc.greater(long, pc.multiply(short, NARROW_ASPECT))


def _mode_in(*modes: str) -> Callable[[pa.Table], Any]:
    return lambda files: pc.is_in(files["mode"], pa.array(modes))


KNOWN_MODES = ("RGB", "RGBA", "L", "LA", "1", "P", "PA", "CMYK", "I;16", "I;16B", "I;16L", "I")

# By name: (meaning, predicate on the rows of a table of readable files).
FINDINGS: dict[str, tuple[str, Callable[[pa.Table], Any]]] = {
    "wrong_extension": (
        "the content has another format than the file name says",
        lambda files: files["wrong_extension"],
    ),
    "animated": ("more than one frame: the first is used", lambda files: files["animated"]),
    "tiny": (
        f"shorter side below {TINY_SIDE} pixels",
        lambda files: pc.less(_sides(files)[0], TINY_SIDE),
    ),
    "giant": (
        f"above {GIANT_PIXELS:,} pixels",
        lambda files: pc.greater(pc.multiply(files["width"], files["height"]), GIANT_PIXELS),
    ),
    "narrow": (f"ratio of the sides above {NARROW_ASPECT} to 1", _is_narrow),
    "deep": ("more than 8 bits per channel: scaled to 8", lambda files: files["deep"]),
    "cmyk": ("CMYK: converted to RGB", _mode_in("CMYK")),
    "palette": ("palette: converted to RGB", _mode_in("P", "PA")),
    "alpha": ("transparency: laid over white", lambda files: files["alpha"]),
    "grey": ("no colour channels", _mode_in("L", "LA", "1", "I;16", "I;16B", "I;16L", "I")),
    "other_mode": (
        "rare pixel mode: converted to RGB",
        lambda files: pc.invert(pc.is_in(files["mode"], pa.array(KNOWN_MODES))),
    ),
}


def findings(examined: Examination) -> dict[str, dict[str, Any]]:
    """Oddities of readable files; one file may have several."""
    ok = examined.readable
    found = {}
    for name, (meaning, predicate) in FINDINGS.items():
        odd = ok.filter(predicate(ok))
        if len(odd):
            found[name] = {
                "meaning": meaning,
                "count": len(odd),
                "by_label": _counts(odd["label"]),
                "paths": odd["path"][:LISTED].to_pylist(),
            }
    return found


def duplicates(examined: Examination) -> dict[str, Any]:
    """Sets of readable files with equal bytes; sets across splits or classes are leaks.

    A set across both is listed twice.
    """
    ok = examined.readable
    times = pc.value_counts(ok["sha256"])
    several = times.filter(pc.greater(times.field("counts"), 1)).field("values")
    copies = ok.filter(pc.is_in(ok["sha256"], several))
    sets: dict[bytes, list[dict[str, str]]] = collections.defaultdict(list)
    for row in copies.select(["sha256", "path", *GROUP]).to_pylist():
        sets[row.pop("sha256")].append(row)
    across_splits = [rows for rows in sets.values() if len({row["split"] for row in rows}) > 1]
    across_classes = [rows for rows in sets.values() if len({row["label"] for row in rows}) > 1]
    leaks = {rows[0]["path"] for rows in (*across_splits, *across_classes)}
    within = [rows for rows in sets.values() if rows[0]["path"] not in leaks]
    return {
        "sets": len(sets),
        "files": len(copies),
        "across_splits": across_splits,
        "across_classes": across_classes,
        "num_within": len(within),
        "within": within[:LISTED],
    }


# --- verdict ------------------------------------------------------------------------------------


def find_shortcuts(examined: Examination) -> list[Shortcut]:
    """Shortcuts over all labelled images, and within each generator if there are several."""
    ok = examined.readable
    if examined.layout or not len(ok):
        return []
    found = shortcuts.find(ok, scope=shortcuts.ALL)
    generators = sorted(pc.unique(ok["generator"]).to_pylist())
    if len(generators) > 1:
        for name in generators:
            found += shortcuts.find(_where(ok, {"generator": name}), scope=name)
    return found


def verdict(
    examined: Examination,
    counts: dict[str, Any],
    copies: dict[str, Any],
    found: Sequence[Shortcut],
) -> list[str]:
    """The report in a few sentences."""
    said = []
    if examined.layout:
        said.append(f"{UNLABELLED}: {examined.layout}")
    reasons, total = tally(counts["unreadable_by_reason"]), number(counts["scanned"], "file")
    said.append(
        f"{counts['unreadable']:,} of {total} cannot be read: {reasons}"
        if reasons
        else f"all {total} can be read"
    )
    for where in ("splits", "classes"):
        if sets := len(copies[f"across_{where}"]):
            said.append(f"leak: {number(sets, 'set')} of identical files across {where}")
    return said if examined.layout else said + shortcuts.in_words(found)
