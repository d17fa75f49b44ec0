"""The first screen of a report: the key numbers, and reasons to doubt them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.detector.calibration import Calibration
from cinemae_jax.evaluation import metrics, phrases
from cinemae_jax.evaluation.audited import Audited
from cinemae_jax.evaluation.generalisation import Generalisation, percent
from cinemae_jax.evaluation.metrics import Estimate, Row

# Images per class; with fewer, a single image moves the accuracy of its class by a point or more.
FEW = 100
# A larger difference between the accuracies of the two classes is worth a sentence.
LEANING = 0.2


@dataclasses.dataclass(frozen=True)
class Headline:
    """One key number.

    Attributes:
      what: its name.
      value: as printed.
      detail: its interval, and the generator if it belongs to one.
    """

    what: str
    value: str
    detail: str


def headlines(
    rows: Sequence[Row], audited: Audited | None, generalisation: Generalisation
) -> list[Headline]:
    """The key numbers."""
    mean, worst = rows[-1].metrics, metrics.worst(rows)
    found = [
        Headline("accuracy, mean over generators", *_shown(mean["accuracy"])),
        Headline("AUC, mean over generators", *_shown(mean["auc"])),
    ]
    if "accuracy" in worst and len(rows) > 2:
        row = worst["accuracy"]
        value, interval = _shown(row.metrics["accuracy"])
        found.append(Headline("accuracy, worst generator", value, f"{row.name} {interval}".strip()))
    if not math.isnan(generalisation.drop):
        detail = (
            f"{percent(generalisation.in_domain)} on training generators, drop "
            f"{percent(generalisation.drop)}"
        )
        found.append(
            Headline("accuracy, unseen generators", percent(generalisation.unseen), detail)
        )
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
    """Reasons to doubt the numbers, as sentences; the most important first.

    Args:
      rows: of ``metrics.evaluate``.
      facts: of the report.
      audited: audit of this detector, or None.
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
            "These are raw numbers: file format and image size may reveal the class, and no audit "
            f"measures by how much ({why_not})."
        )
    if mean["auc"].low <= 0.5:
        said.append("The ranking is not measurably better than chance (AUC 50).")
    nature, ai = mean["nature_accuracy"].value, mean["ai_accuracy"].value
    if abs(nature - ai) >= LEANING:
        weak, strong = ("photographs", "AI images")[:: 1 if nature < ai else -1]
        said.append(
            f"The detector leans to one class: it is right on {100 * max(nature, ai):.0f} % of "
            f"{strong} but only on {100 * min(nature, ai):.0f} % of {weak}. A single accuracy "
            "hides this."
        )
    few = [(getattr(row, name), name, row.name) for row in rows[:-1] for name in CLASS_NAMES]
    if few and min(few)[0] < FEW:
        count, name, generator = min(few)
        said.append(
            f"Some generators have few images ({generator}: {count} {name}): a single image moves "
            "the accuracy of its class by a point or more."
        )
    learned = facts["settings"].get("data", {}).get("train_generators", ())
    if seen := sorted(set(learned) & {row.name for row in rows[:-1]}):
        said.append(
            f"The mean includes {', '.join(seen)}: the detector was trained on other images of "
            "the same generator."
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
