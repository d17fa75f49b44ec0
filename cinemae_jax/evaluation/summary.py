"""What a reader should know first: the numbers in one line, and what speaks against them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.evaluation import metrics, phrases
from cinemae_jax.evaluation.audited import Audited
from cinemae_jax.evaluation.metrics import Estimate, Row

# Images of a class; with fewer, one image moves a class's accuracy by a point or more.
FEW = 100
# Difference of the two classes' accuracies from which on it is worth a sentence.
LEANING = 0.2


@dataclasses.dataclass(frozen=True)
class Headline:
    """One number.

    Attributes:
      what: it is.
      value: as printed.
      detail: interval, or whose it is.
    """

    what: str
    value: str
    detail: str


def headlines(rows: Sequence[Row], audited: Audited | None) -> list[Headline]:
    """The numbers to read if there is time for no more."""
    mean, worst = rows[-1].metrics, metrics.worst(rows)
    found = [
        Headline("accuracy, mean of generators", *_shown(mean["accuracy"])),
        Headline("AUC, mean of generators", *_shown(mean["auc"])),
    ]
    if "accuracy" in worst and len(rows) > 2:
        row = worst["accuracy"]
        value, interval = _shown(row.metrics["accuracy"])
        found.append(Headline("accuracy, worst generator", value, f"{row.name} {interval}".strip()))
    found.append(
        Headline("photographs called AI", *_shown(phrases.called_ai(mean["nature_accuracy"])))
    )
    found.append(Headline("AI images missed", *_shown(phrases.called_ai(mean["ai_accuracy"]))))
    if audited:
        after = audited.equalised.after[-1].metrics["accuracy"]
        found.append(Headline("accuracy, equalised images", *_shown(after)))
    return found


def doubts(
    rows: Sequence[Row], facts: Mapping[str, Any], audited: Audited | None, why_not: str
) -> list[str]:
    """Sentences that speak against taking the numbers at their word; plain and in order of weight.

    Args:
      rows: of ``metrics.evaluate``.
      facts: of the report.
      audited: of this very detector, or None.
      why_not: why there is no audit.
    """
    mean = rows[-1].metrics
    said = []
    if audited:
        words = phrases.equalised_in_words(
            audited.equalised, side=audited.side, quality=audited.quality
        )
        said += [_sentence(one) for one in words]
    else:
        said.append(
            "These are raw numbers. File format and image size can give the class away, and "
            f"nothing here shows how much they do: {why_not}."
        )
    if mean["auc"].low <= 0.5:
        said.append("The ranking is not measurably better than a coin (AUC 50).")
    nature, ai = mean["nature_accuracy"].value, mean["ai_accuracy"].value
    if abs(nature - ai) >= LEANING:
        weak, strong = ("photographs", "AI images")[:: 1 if nature < ai else -1]
        said.append(
            f"It leans: {strong} are right in {100 * max(nature, ai):.0f} % of cases, {weak} in "
            f"{100 * min(nature, ai):.0f} %. One accuracy hides that."
        )
    few = [(getattr(row, name), name, row.name) for row in rows[:-1] for name in CLASS_NAMES]
    if few and min(few)[0] < FEW:
        count, name, generator = min(few)
        said.append(
            f"Some generators have few images ({generator}: {count} {name}): their numbers move "
            "by a point or more with every single image."
        )
    learned = facts["settings"].get("data", {}).get("train_generators", ())
    if seen := sorted(set(learned) & {row.name for row in rows[:-1]}):
        said.append(
            f"The mean includes {', '.join(seen)}, on whose other images the detector was trained."
        )
    if "calibration" in facts:
        said += map(_sentence, Calibration.from_dict(facts["calibration"]).in_words())
    return said


def _shown(estimate: Estimate) -> tuple[str, str]:
    if math.isnan(estimate.value):
        return "–", ""
    interval = f"[{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return f"{100 * estimate.value:.1f}", "" if math.isnan(estimate.low) else interval


def _sentence(phrase: str) -> str:
    return f"{phrase[:1].upper()}{phrase[1:]}."
