"""What an audit found, in sentences."""

import math
from collections.abc import Mapping

from cinemae_jax.audit.controls import CONTENT, CONTENT_SIDE, RECIPE
from cinemae_jax.audit.probes import SPECTRUM_BINS, ProbeResult
from cinemae_jax.data.inspect.shortcuts import CLEAR
from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.phrases import called_ai, negative, number, percent, signed

# --- in words -----------------------------------------------------------------------------------

PROBES = {
    "file facts": "file facts alone (format, mode, size, JPEG quality)",
    "spectrum": f"{SPECTRUM_BINS} numbers of the spectrum alone",
}


def probes_in_words(found: Mapping[str, ProbeResult]) -> list[str]:
    """A sentence a probe: how much of the task is solved without any detector."""
    said = []
    for name, probe in found.items():
        metrics_of = probe.rows[-1].metrics
        auc = metrics_of["auc"]
        if math.isnan(auc.value):
            does = "cannot be judged: a generator has too few readable images of a class"
            said.append(f"{PROBES[name]} {does}")
            continue
        known = "say something about the class" if auc.low > 0.5 else "tell nothing measurable"
        does = "separate the classes" if auc.value >= CLEAR else known
        said.append(
            f"{PROBES[name]} {does}, without any detector: AUC {number(auc)}, accuracy "
            f"{percent(metrics_of['accuracy'])} (mean of generators, {probe.learned})"
        )
    return said


def pushes_in_words(found: Mapping[str, Comparison]) -> list[str]:
    """A sentence a push: how many photographs become AI."""
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
                shares.append(
                    f"{percent(before)} before and {percent(after)} after {where} "
                    f"({signed(change)})"
                )
        said.append(f"of photographs pushed through {name}, called ai: {'; '.join(shares)}")
    return said


def controls_in_words(found: Mapping[str, Comparison]) -> list[str]:
    """A sentence a control: whether the recipe with a trained MAE is any better."""
    said = []
    for name, comparison in found.items():
        if name == RECIPE:
            continue
        recipe, other, change = (
            rows[-1].metrics["auc"]
            for rows in (comparison.before, comparison.after, comparison.difference)
        )
        if other.value == other.low == other.high == 0.5:  # all scores alike, in every resample
            said.append(f"{name} has learned nothing: its scores are all alike, and say nothing")
            continue
        numbers = f"AUC {number(other)} against {number(recipe)} ({signed(change)})"
        if name == CONTENT:
            said.append(
                f"on images reduced to {CONTENT_SIDE} pixels and blown up, trained and scored "
                f"anew, the recipe reaches {numbers}: what is left is subject and style"
            )
        elif change.high < 0:
            said.append(f"the recipe is better than {name}: {numbers}")
        elif change.low > 0:
            said.append(f"the recipe is worse than {name}: {numbers}")
        else:
            said.append(f"the recipe is not measurably better than {name}: {numbers}")
    return said
