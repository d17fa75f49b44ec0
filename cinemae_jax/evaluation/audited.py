"""The audit of a detector, read from the JSON file of ``cinemae audit`` for the report."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cinemae_jax.evaluation import signal
from cinemae_jax.evaluation.comparison import Comparison
from cinemae_jax.evaluation.metrics import Estimate, Row
from cinemae_jax.evaluation.signal import Signal

FILE = "audit.json"


@dataclasses.dataclass(frozen=True)
class Change:
    """The effect of a corruption or attack on the mean over generators.

    Attributes:
      name: of the corruption or attack.
      family: kind of change; the changes of one family form a curve.
      strength: position on that curve.
      clean, changed, difference: mean rows without and with the change, and their difference.
      flips: number of images whose calibrated verdict changes.
    """

    name: str
    family: str
    strength: float
    clean: Row
    changed: Row
    difference: Row
    flips: int


@dataclasses.dataclass(frozen=True)
class Audited:
    """The parts of an audit that the report shows.

    Attributes:
      verdict: findings, as phrases.
      num_scored: number of scored images.
      side, quality: shorter side (pixels) and JPEG quality of the equalised images.
      equalised: raw against equalised images.
      changes: corruptions and attacks; may be empty.
      signal: what the anomaly statistics are worth; None if not measured.
    """

    verdict: tuple[str, ...]
    num_scored: int
    side: int
    quality: int
    equalised: Comparison
    changes: tuple[Change, ...]
    signal: Signal | None = None


DETECTOR = ("backbone_sha256", "head_sha256")


def read(path: Path, facts: Mapping[str, Any]) -> tuple[Audited | None, str]:
    """The audit of this detector on these images, or None and the reason.

    Args:
      path: of the JSON file.
      facts: of the report, with the hashes of backbone and head and the test images' fingerprint.
    """
    if not path.is_file():
        return None, "this detector has not been audited"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if "equalised" not in record:
            return None, f"{path.name} is an audit without a detector"
        detector = record["detector"]
        if any(detector[name] != facts[name] for name in DETECTOR):
            return None, f"{path.name} belongs to another detector (step {detector['step']})"
        if record["test_images"] != facts["test_images"]:
            return None, f"{path.name} belongs to other images (root {record['root']})"
        return _audited(record), ""
    except (KeyError, TypeError, ValueError) as error:
        return None, f"{path.name} cannot be read ({type(error).__name__}: {error})"


def _audited(record: Mapping[str, Any]) -> Audited:
    equalised = record["equalised"]
    effects = [*record.get("corruptions", []), *record.get("attacks", {}).get("effects", [])]
    measured = record.get("signal", {})
    return Audited(
        verdict=tuple(map(str, record["verdict"])),
        num_scored=int(record["num_scored"]),
        side=int(equalised["side"]),
        quality=int(equalised["quality"]),
        equalised=Comparison(
            **{n: _rows(equalised["comparison"][n]) for n in ("before", "after", "difference")}
        ),
        changes=tuple(map(_change, effects)),
        signal=signal.read(measured) if "conditions" in measured else None,
    )


def _change(effect: Mapping[str, Any]) -> Change:
    change, comparison = effect["change"], effect["comparison"]
    clean, changed, difference = (
        _rows(comparison[name])[-1] for name in ("before", "after", "difference")
    )
    return Change(
        str(change["name"]),
        str(change["family"]),
        float(change["strength"]),
        clean,
        changed,
        difference,
        sum(effect["flips"].values()),
    )


def _rows(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    return [
        Row(
            str(record["name"]),
            int(record["nature"]),
            int(record["ai"]),
            int(record["bad"]),
            {name: _estimate(values) for name, values in record["metrics"].items()},
        )
        for record in records
    ]


def _estimate(values: Mapping[str, float | None]) -> Estimate:
    def known(name: str) -> float:
        value = values[name]
        return float("nan") if value is None else float(value)

    return Estimate(known("value"), known("low"), known("high"))
