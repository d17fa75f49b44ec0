"""What the comparisons of an audit mean, in sentences."""

import math
from collections.abc import Mapping

from cinemae_jax.audit.controls import CONTENT, CONTENT_SIDE, RECIPE
from cinemae_jax.audit.probes import SPECTRUM_BINS, ProbeResult
from cinemae_jax.data.inspect.shortcuts import CLEAR
from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.phrases import called_ai, negative, number, percent, signed

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
