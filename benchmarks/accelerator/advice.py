"""What the measurements would change in the defaults."""

from typing import Any

Row = dict[str, Any]
WORTH = 1.03  # a gain below three per cent is noise


def text(results: dict[str, Any]) -> str:
    """One line for each default: keep or change, with the figures that say so."""
    sections = results.get("sections", {})
    rows = {name: _measured(section["rows"]) for name, section in sections.items()}
    lines = [*_dtype(rows), *_attention(rows), *_batch(rows), *_flags(rows), *_torch(rows)]
    lines += _files(rows)
    head = "What this would change in the defaults on this machine"
    if results.get("size") == "small":
        head += " (toy sizes: says nothing about a real model)"
    return "\n".join([head, *(f"- {line}" for line in lines or ["nothing: too little measured"])])


def _measured(rows: list[Row]) -> list[Row]:
    return [row for row in rows if "images/s" in row]


def _best(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: row["images/s"])


def _dtype(rows: dict[str, list[Row]]) -> list[str]:
    same = [r for r in rows.get("features", []) if r["K"] == 2]
    by_dtype = {d: [r for r in same if r["dtype"] == d] for d in ("bfloat16", "float32")}
    if not all(by_dtype.values()):
        return []
    full = by_dtype["float32"][0]
    half = next((r for r in by_dtype["bfloat16"] if r["batch"] == full["batch"]), full)
    gain = half["images/s"] / full["images/s"]
    verb = "use" if gain > WORTH else "keep"
    dtype = "bfloat16" if gain > WORTH else "float32"
    return [f"detector.dtype: {verb} {dtype} (bfloat16 is {gain:.2f} times as fast)"]


def _attention(rows: dict[str, list[Row]]) -> list[str]:
    found = [row for row in rows.get("attention", []) if row.get("ok") is not False]
    default = [r for r in found if (r["attention"], r["layout"]) == ("plain", "vmap")]
    if not default:
        return []
    best = _best(found)
    gain = best["images/s"] / default[0]["images/s"]
    if gain < WORTH:
        return [f"detector.attention, detector.run_layout: keep plain, vmap (best gain {gain:.2f})"]
    return [
        f"detector.attention, detector.run_layout: use {best['attention']}, {best['layout']} "
        f"({gain:.2f} times as fast as plain, vmap)"
    ]


def _batch(rows: dict[str, list[Row]]) -> list[str]:
    found = [r for r in rows.get("features", []) if r["K"] == 2 and r["dtype"] == "bfloat16"]
    if len(found) < 2:
        return []
    most = _best(found)["images/s"]
    least = min(r["batch"] for r in found if r["images/s"] * WORTH >= most)
    return [f"features.batch_size: {least} per device is enough ({most:.4g} images/s)"]


def _flags(rows: dict[str, list[Row]]) -> list[str]:
    lines = []
    if not rows.get("flags"):
        return []
    usual = rows["flags"][0]["images/s"]
    for name in ("no_triton", "no_command_buffers"):
        if rows.get(name):
            gain = rows[name][0]["images/s"] / usual
            verb = "worth it" if gain > WORTH else "not worth it"
            lines.append(f"XLA flags, {name}: {verb} ({gain:.2f} times the speed)")
    return lines


def _torch(rows: dict[str, list[Row]]) -> list[str]:
    if not rows.get("torch") or not rows.get("features"):
        return []
    best, ours = _best(rows["torch"]), rows["features"]
    ours = [r for r in [*ours, *rows.get("attention", [])] if r["batch"] == best["batch"]]
    ours = [r for r in ours if r["K"] == best["K"] and r["dtype"] == best["dtype"]]
    if not ours:
        return []
    gain = _best(ours)["images/s"] / best["images/s"]
    return [f"PyTorch ({best['kind']}): the best program here is {gain:.2f} times as fast"]


def _files(rows: dict[str, list[Row]]) -> list[str]:
    speeds = {row["what"]: row["images/s"] for row in rows.get("files", [])}
    if len(speeds) < 3:
        return []
    bound = "decoding" if speeds["decoding"] < speeds["features"] else "the device"
    return [f"files: bound by {bound} ({speeds['extract']:.4g} images/s with both)"]
