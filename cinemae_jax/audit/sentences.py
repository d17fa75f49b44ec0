"""What the comparisons of an audit mean, in sentences."""

import math
from collections.abc import Iterator, Mapping, Sequence

from cinemae_jax.audit.controls import CONTENT, CONTENT_SIDE, RECIPE
from cinemae_jax.audit.probes import SPECTRUM_BINS, ProbeResult
from cinemae_jax.data.inspect.shortcuts import CLEAR
from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.metrics import Estimate
from cinemae_jax.evaluation.phrases import called_ai, negative, number, percent, signed
from cinemae_jax.evaluation.signal import (
    CONTROL,
    LEAST_IMAGES,
    LEAST_RETEST,
    MEAN,
    MOST_OVERLAP,
    NLL,
    SHORT,
    Condition,
    Signal,
    SignalRow,
)

NOT_ATTACKED = (
    "No white-box attack was run: the detector has a global encoder, whose pixels an attack on "
    "the crops does not reach."
)
PROBES = {
    "file facts": "file facts alone (format, mode, size, JPEG quality)",
    "spectrum": f"{SPECTRUM_BINS} numbers of the spectrum alone",
}


def probes_in_words(found: Mapping[str, ProbeResult]) -> list[str]:
    """One sentence per probe: how much of the task it solves without any detector."""
    return [f"{PROBES[name]} {_solves(probe)}" for name, probe in found.items()]


def _solves(probe: ProbeResult) -> str:
    mean = probe.rows[-1].metrics
    auc = mean["auc"]
    if math.isnan(auc.value):
        return "cannot be tested: some generator has too few readable images of one class"
    if auc.value >= CLEAR:
        does = "separate the classes"
    else:
        does = "carry some" if auc.low > 0.5 else "carry no measurable"
        does += " information about the class"
    return (
        f"{does}, without any detector: AUC {number(auc)}, accuracy {percent(mean['accuracy'])} "
        f"(mean of generators, {probe.learned})"
    )


def pushes_in_words(found: Mapping[str, Comparison]) -> list[str]:
    """One sentence per push: how many photographs are called AI before and after it."""
    said = []
    for name, comparison in found.items():
        shares = []
        for metric, where in (
            ("nature_accuracy", "at probability 0.5"),
            ("nature_accuracy_calibrated", "at the calibrated threshold"),
        ):
            before, after = (
                called_ai(rows[-1].metrics[metric])
                for rows in (comparison.before, comparison.after)
            )
            if not math.isnan(before.value):
                change = negative(comparison.difference[-1].metrics[metric])
                shares.append(f"{percent(before)} → {percent(after)} {where} ({signed(change)})")
        said.append(f"photographs called ai before and after {name}: {'; '.join(shares)}")
    return said


def controls_in_words(found: Mapping[str, Comparison]) -> list[str]:
    """One sentence per control: whether the recipe with a trained MAE is any better."""
    return [
        _beside_recipe(name, comparison) for name, comparison in found.items() if name != RECIPE
    ]


def _beside_recipe(name: str, comparison: Comparison) -> str:
    recipe, other, change = (
        rows[-1].metrics["auc"]
        for rows in (comparison.before, comparison.after, comparison.difference)
    )
    if other.value == other.low == other.high == 0.5:  # equal scores, in every resample
        return f"{name} learned nothing: it gives all images the same score"
    numbers = f"AUC {number(other)} against {number(recipe)} ({signed(change)})"
    if name == CONTENT:
        return (
            f"trained and scored on images reduced to {CONTENT_SIDE} pixels and enlarged again, "
            f"the recipe reaches {numbers}: subject and style are all that these images keep"
        )
    if change.high < 0:
        return f"the recipe is better than {name}: {numbers}"
    if change.low > 0:
        return f"the recipe is worse than {name}: {numbers}"
    return f"the recipe is not measurably better than {name}: {numbers}"


def undefined_in_words(undefined: int, attacked: int) -> list[str]:
    """A warning if gradients of attacked images were undefined."""
    if not undefined:
        return []
    return [
        f"{undefined} of {attacked} attacked images had an undefined gradient in some step, which "
        "then changed nothing: the attack on them may be too weak"
    ]


def signal_in_words(found: Signal) -> list[str]:
    """What the statistics are worth: direction, repetition, overlap, controls.

    Direction in every condition, the rest in the last one (equalised images), for the NLL and for
    the score that the head reads.
    """
    if not found.conditions:
        return [
            f"no statistic can be measured: no generator has {LEAST_IMAGES} readable images of "
            "both classes"
        ]
    said = [_direction(condition) for condition in found.conditions]
    last = found.conditions[-1]
    for score in dict.fromkeys((NLL, found.score or NLL)):
        said += _score_in_words(last, score)
    return said


def _direction(condition: Condition) -> str:
    row = next(row for row in condition.of(NLL) if row.statistic == MEAN)
    total = len(row.generators)
    return (
        f"the paper says that AI images have the lower NLL; the mean {NLL} of {condition.name} "
        f"images is measurably lower for AI in {_some(row.lower, total)} and measurably higher in "
        f"{_some(row.higher, total)} (AUC {_with_interval(row.mean.auc)}, mean of generators)"
    )


def _score_in_words(condition: Condition, score: str) -> Iterator[str]:
    rows = condition.of(score)
    for row in rows:
        if row.mean.retest < LEAST_RETEST:
            yield (
                f"{score} {SHORT[row.statistic]} is mostly the draw of the masks: the retest "
                f"correlation is {row.mean.retest:.2f} on {condition.name} images (mean of "
                f"generators; below {LEAST_RETEST:g} most of its variation is mask noise)"
            )
    crowded = [
        f"{SHORT[row.statistic]} in {_some(row.overlapping, len(row.generators))}"
        for row in rows
        if row.overlapping
    ]
    if crowded:
        yield (
            f"ai and nature overlap by more than {100 * MOST_OVERLAP:.0f} % in {score} on "
            f"{condition.name} images, which the paper calls a signature of failure: "
            f"{'; '.join(crowded)}"
        )
    row = next(row for row in rows if row.statistic == MEAN)
    yield from _beside_controls(condition, row)


def _beside_controls(condition: Condition, row: SignalRow) -> Iterator[str]:
    """The mean of a score beside random weights, in-painting and log σ² alone."""
    name = f"{row.score} {SHORT[row.statistic]}"
    others = {one.source: one for one in condition.beside(row)}
    others["log σ²"] = next(one for one in condition.of(CONTROL) if one.statistic == MEAN)
    for control, gain in row.gains.items():
        auc = others[control].mean.auc
        does = "does not separate the classes measurably better"
        if gain.low > 0 or gain.high < 0:
            does = f"separates the classes {'better' if gain.low > 0 else 'worse'}"
        yield (
            f"{name} {does} than {_alone(control)}: mean AUC "
            f"{number(row.mean.auc)} against {number(auc)} (distance from 0.5: {signed(gain)})"
        )
    rest = row.mean.beyond
    if not math.isnan(rest.low):
        carries = "no measurable information" if rest.low <= 0.5 <= rest.high else "information"
        yield (
            f"{name} carries {carries} beyond log σ²: AUC {_with_interval(rest)} of what remains "
            "of its ranks after regression on those of log σ²"
        )


def _alone(control: str) -> str:
    return f"{control} alone" if control == "log σ²" else f"the same statistic with {control}"


def _some(names: Sequence[str], total: int) -> str:
    """For example ``2 of 8 generators (ADM, glide)``."""
    listed = f" ({', '.join(names)})" if names else ""
    return f"{len(names)} of {total} generators{listed}"


def _with_interval(auc: Estimate) -> str:
    interval = "" if math.isnan(auc.low) else f" [{auc.low:.3f}, {auc.high:.3f}]"
    return f"{number(auc)}{interval}"
