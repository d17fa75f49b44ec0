"""The report of an audit on a terminal: tables, then the verdict in sentences."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from cinemae_jax.evaluation import signal
from cinemae_jax.evaluation.metrics import Estimate
from cinemae_jax.evaluation.phrases import called_ai, negative, number, percent, signed
from cinemae_jax.evaluation.signal import NLL, SHORT, Condition, Signal, SignalRow, Worth
from cinemae_jax.runtime.console import printable

LISTED = 10  # lines shown of a long list


def show(report: Mapping[str, Any], console: Console) -> None:
    """Prints a report of ``findings.report``."""
    console.print(_probes(report["probes"]))
    if "equalised" in report:
        console.print(_equalised(report["equalised"]))
        console.print(_pushes(report["pushes"]))
        if "comparisons" in report["controls"]:
            console.print(_controls(report["controls"]))
    if "corruptions" in report:
        console.print(_effects("robustness: mean of generators", report["corruptions"]))
        changes = report["corruptions"]
        if attacks := report.get("attacks"):
            of_nll = attacks["nll_effects"]
            console.print(_effects(_attack_title(attacks), attacks["effects"] + of_nll))
            changes = changes + attacks["effects"] + of_nll
        console.print(_shifts(changes))
        unstable = [f"{_share(r['verdict_stability'])} {r['path']}" for r in report["stability"]]
        _list(console, "least stable verdicts under corruptions", unstable)
    if "conditions" in report.get("signal", {}):
        _signal(console, signal.read(report["signal"]))
    bad = [f"{row['path']}: {row['error']}" for row in report["unreadable"]]
    if bad:
        _list(console, f"unreadable images: {len(bad)}", bad)
    for sentence in report["verdict"]:
        console.print(f"- {printable(sentence)}", soft_wrap=True)


def _attack_title(attacks: Mapping[str, Any]) -> str:
    return (
        f"white-box attacks on {attacks['num_images']} images: PGD, {attacks['steps']} steps, "
        f"{attacks['draws']} mask draws per step; mean of generators"
    )


def _table(title: str, *heads: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(head, justify="right" if i else "left", overflow="fold")
    return table


def _probes(found: Mapping[str, Any]) -> Table:
    names = list(found)
    heads = [f"{name} {metric}" for name in names for metric in ("AUC", "accuracy")]
    table = _table("without any detector", "generator", "nature + ai", *heads)
    by_name = {name: {row["name"]: row for row in found[name]["rows"]} for name in names}
    for row in found[names[0]]["rows"]:
        cells = [
            cell
            for name in names
            for cell in (
                number(_estimate(by_name[name][row["name"]], "auc")),
                percent(_estimate(by_name[name][row["name"]], "accuracy")),
            )
        ]
        table.add_row(printable(row["name"]), f"{row['nature']} + {row['ai']}", *cells)
    return table


def _equalised(found: Mapping[str, Any]) -> Table:
    comparison = found["comparison"]
    heads = [f"{name} {part}" for name in ("accuracy", "AUC") for part in ("raw", "eq.", "change")]
    how = f"short side {found['side']}, JPEG {found['quality']}"
    title = f"raw and equalised ({how}); changes in percentage points"
    table = _table(title, "generator", "nature + ai", *heads)
    for before, after, change in _rows(comparison):
        table.add_row(
            printable(before["name"]),
            f"{before['nature']} + {before['ai']}",
            *_change(before, after, change, "accuracy", percent),
            *_change(before, after, change, "auc", number),
        )
    return table


def _pushes(found: Mapping[str, Any]) -> Table:
    parts = ("before", "after", "change")
    heads = [f"{part} {where}" for where in ("0.5", "calibrated") for part in parts]
    title = (
        "share of photographs called ai, before and after changes unrelated to generation; "
        "mean of generators, changes in percentage points"
    )
    table = _table(title, "change", "nature", *heads)
    for name, comparison in found.items():
        before, after, change = list(_rows(comparison))[-1]
        cells = []
        for metric in ("nature_accuracy", "nature_accuracy_calibrated"):
            cells += [
                percent(called_ai(_estimate(before, metric))),
                percent(called_ai(_estimate(after, metric))),
                signed(negative(_estimate(change, metric))),
            ]
        table.add_row(name, str(before["nature"]), *cells)
    return table


def _controls(found: Mapping[str, Any]) -> Table:
    title = (
        f"heads retrained on {found['num_train']} images; mean of generators, differences to the "
        "recipe in percentage points"
    )
    table = _table(title, "head", "accuracy", "difference", "AUC", "difference")
    for name, comparison in found["comparisons"].items():
        _, after, change = list(_rows(comparison))[-1]
        table.add_row(name, *_values(after, change)[:4])
    return table


def _effects(title: str, effects: Sequence[Mapping[str, Any]]) -> Table:
    heads = ("accuracy", "change", "AUC", "change", "nature right", "ai right", "verdicts flipped")
    table = _table(title, "change", *heads, "crossed 0.5")
    if effects:
        clean, _, _ = list(_rows(effects[0]["comparison"]))[-1]
        table.add_row("none", *_values(clean), "", "")
    for effect in effects:
        _, after, change = list(_rows(effect["comparison"]))[-1]
        table.add_row(
            effect["change"]["name"],
            *_values(after, change),
            _nonzero(effect["flips"]),
            _nonzero(effect["crossings"]),
        )
    return table


def _shifts(effects: Sequence[Mapping[str, Any]]) -> Table:
    names = list(effects[0]["shifts"]) if effects else []
    heads = [f"{SHORT.get(name, name)} {label}" for name in names for label in ("nature", "ai")]
    title = (
        "how far statistics move, in standard deviations of the training images: mean change, of "
        "bands and frequency its root mean square"
    )
    table = _compact(title, "change", *heads)
    for effect in effects:
        moved = [effect["shifts"][name][label] for name in names for label in ("nature", "ai")]
        table.add_row(effect["change"]["name"], *(_moved(one) for one in moved))
    return table


def _moved(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _signal(console: Console, found: Signal) -> None:
    for condition in found.conditions:
        console.print(_statistics(condition))
        for score in dict.fromkeys((NLL, found.score or NLL)):
            console.print(_by_generator(condition, score))
    if found.repeats:
        console.print(_repeats(found))


def _repeats(found: Signal) -> Table:
    title = (
        f"retest by kind of masks: {found.score or NLL}, raw images, K = {found.num_runs}, mean of "
        f"generators; this detector's masks are {found.masking}"
    )
    table = _compact(title, "masks", "", *SHORT.values())
    for one in found.repeats:
        table.add_row(one.masking, "", *(_two(one.retest[name]) for name in SHORT))
    return table


def _statistics(condition: Condition) -> Table:
    """All statistics, means over generators: from the MAE, then from its controls."""
    first = condition.rows[0]
    others = condition.beside(first)
    short = {other.source: f"({i})" for i, other in enumerate(others, 1)}
    named = ", ".join(f"{mark} {source}" for source, mark in short.items())
    title = (
        f"what a statistic is worth, {condition.name} images, mean of {len(first.generators)} "
        f"generators: {first.source}; {named}. retest: correlation of two draws of masks; AUC "
        "above 0.5: ai is higher; ai < >: generators where ai is measurably lower, higher; beyond: "
        f"AUC of what log σ² does not explain. ! {signal.WARNING}"
    )
    heads = ["retest", "AUC", "ai < >", "KS", "overlap", "beyond log σ²"]
    for mark in short.values():
        heads += [f"{name} {mark}" for name in ("retest", "AUC", "KS", "overlap")]
    table = _compact(title, "score", "", *heads)
    for row in condition.rows:
        if row.source != first.source:
            continue
        cells = [_retest(row.mean), _auc(row.mean.auc)]
        cells += [f"{len(row.lower)} {len(row.higher)}", _two(row.mean.ks), _overlap(row.mean)]
        cells.append(_auc(row.mean.beyond))
        for other in condition.beside(row):
            mean = other.mean
            cells += [_retest(mean), _two(mean.auc.value), _two(mean.ks), _overlap(mean)]
        table.add_row(row.score, SHORT[row.statistic], *cells)
    return table


def _by_generator(condition: Condition, score: str) -> Table:
    rows: list[SignalRow] = condition.of(score)
    heads = [
        f"{SHORT[row.statistic]} {what}"
        for row in rows
        for what in ("retest", "AUC", "KS", "overlap")
    ]
    title = f"{score} by generator, {condition.name} images"
    table = _compact(title, "generator", "nature + ai", *heads)
    by_generator = zip(*([*row.generators, row.mean] for row in rows), strict=True)
    for worths in by_generator:
        cells = [
            cell
            for one in worths
            for cell in (_retest(one), _auc(one.auc), _two(one.ks), _overlap(one))
        ]
        counts = f"{worths[0].nature} + {worths[0].ai}"
        table.add_row(printable(worths[0].name), counts, *cells)
    return table


def _compact(title: str, *heads: str) -> Table:
    """A table without lines between columns; titles break at spaces."""
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for i, head in enumerate(heads):
        table.add_column(
            head.replace(" ", "\n"), justify="right" if i > 1 else "left", overflow="fold"
        )
    return table


def _retest(worth: Worth) -> str:
    return f"{_two(worth.retest)}{'!' if worth.retest < signal.LEAST_RETEST else ''}"


def _overlap(worth: Worth) -> str:
    return f"{_two(worth.overlap)}{'!' if worth.overlap > signal.MOST_OVERLAP else ''}"


def _auc(auc: Estimate) -> str:
    interval = "" if math.isnan(auc.low) else f" {auc.low:.2f}–{auc.high:.2f}"
    return f"{_two(auc.value)}{interval}"


def _two(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _values(row: Mapping[str, Any], change: Mapping[str, Any] | None = None) -> list[str]:
    def moved(metric: str) -> str:
        return signed(_estimate(change, metric)) if change else ""

    return [
        percent(_estimate(row, "accuracy")),
        moved("accuracy"),
        number(_estimate(row, "auc")),
        moved("auc"),
        percent(_estimate(row, "nature_accuracy")),
        percent(_estimate(row, "ai_accuracy")),
    ]


def _change(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    change: Mapping[str, Any],
    metric: str,
    shown: Callable[[Estimate], str],
) -> list[str]:
    return [
        shown(_estimate(before, metric)),
        shown(_estimate(after, metric)),
        signed(_estimate(change, metric)),
    ]


def _rows(comparison: Mapping[str, Any]) -> Iterable[tuple[Any, Any, Any]]:
    return zip(*(comparison[name] for name in ("before", "after", "difference")), strict=True)


def _estimate(row: Mapping[str, Any], metric: str) -> Estimate:
    values = row["metrics"][metric]
    nan = float("nan")
    return Estimate(*(nan if values[k] is None else values[k] for k in ("value", "low", "high")))


def _nonzero(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "0"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:4.0%}"


def _list(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print(title)
    for line in lines[:LISTED]:
        console.print(f"    {printable(line)}", soft_wrap=True)
    if len(lines) > LISTED:
        console.print(f"    and {len(lines) - LISTED} more: --json F lists them")
