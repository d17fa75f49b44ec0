"""What the server says of one picture and of its detector, and the schema of both.

An answer is the row of ``cinemae predict``, with the map of ``--heatmaps`` as data in place of a
file.
"""

import base64
import dataclasses
import io
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cinemae_jax import __version__
from cinemae_jax.data.decode import FORMATS
from cinemae_jax.detector.api import Detector
from cinemae_jax.detector.calibration import Calibration, Verdict
from cinemae_jax.detector.heatmap import SHOWN, STATEMENT, LcasMap
from cinemae_jax.detector.prediction import ALTERATIONS

# Longest side of a map, pixels.
MAP_SIDE = 1024


class UnreadableError(ValueError):
    """A picture that could not be scored; the message is the decoder's."""


class Failure(BaseModel):
    """Why there is no answer."""

    error: str


class Options(BaseModel):
    """What may be asked for beside the score."""

    model_config = ConfigDict(extra="forbid")

    heatmap: bool = Field(default=False, description="also where reconstruction surprises")
    stability: bool = Field(
        default=False, description="also judge again after mild JPEG and resize"
    )


class Heatmap(BaseModel):
    """Mean reconstruction error of every patch, over the picture: `statement` says what it is."""

    png: str = Field(description="data URI: the picture in grey, the map over it; at most 1024²")
    low: float = Field(description="score at the dark end of the colours (inferno)")
    high: float = Field(description="score at their bright end")
    score: str = Field(description="LCAS variant that is shown")
    runs: int = Field(description="masks that it is the mean over")
    hidden: tuple[int, int] = Field(description="least and greatest number that hid a patch")
    statement: str


class Answer(BaseModel):
    """One picture judged: the row of `cinemae predict --format json`."""

    path: str = Field(description="always empty: no name is kept")
    probability: float = Field(description="of AI, calibrated")
    verdict: Verdict
    flags: list[str] = Field(description="reasons for care, each `name: words`")
    error: None = Field(description="what cannot be scored is an HTTP error")
    detector: str = Field(description="name and first digits of its hash")
    seconds: float = Field(description="of decoding and scoring; waiting apart")
    logit: float = Field(description="what probability and verdict come from")
    uncertainty: float | None = Field(
        description="standard deviation of the probability between groups of masks; null where "
        "there is one group alone"
    )
    example_id: int = Field(description="hash of the pixels, by which masks are drawn")
    stability: dict[str, float] | None = Field(description="probabilities after mild changes")
    heatmap: Heatmap | None
    note: str = Field(description="what a reader should be told")


class Seen(BaseModel):
    """Of the files that the detector was trained on."""

    formats: tuple[str, ...]
    shorter_sides: tuple[int, int] = Field(description="least and greatest, pixels")


class About(BaseModel):
    """The detector that answers, and what this server takes."""

    name: str
    identity: str = Field(description="12 digits that differ wherever scores could")
    version: str = Field(description="of cinemae_jax")
    backbone_sha256: str
    train_generators: list[str]
    seen: Seen | None = Field(description="null where nothing is known of the training files")
    calibration: dict[str, Any] = Field(description="of logits; thresholds are logits too")
    nature_below: float | None = Field(description="probabilities below are called nature, if any")
    ai_above: float | None = Field(description="probabilities above are called ai, if any")
    in_words: list[str] = Field(description="what a reader of its numbers should know")
    card: str = Field(description="what its makers say of it, as Markdown; empty if nothing")
    runs: int = Field(description="masks a picture")
    num_groups: int = Field(description="groups of masks that `uncertainty` is taken between")
    heatmaps: bool = Field(description="whether its backbone can make them")
    alterations: list[str] = Field(description="changes that `stability` tries")
    formats: list[str] = Field(description="files that are taken, whatever their names")
    max_bytes: int = Field(description="largest request body")


def judge(detector: Detector, data: bytes, options: Options) -> dict[str, Any]:
    """The fields of ``Answer``.

    Raises:
      UnreadableError: if the picture cannot be scored.
    """
    (found,) = detector.predict(data, stability=options.stability)
    if found.error is not None:
        raise UnreadableError(found.error)
    shown = shown_map(found.lcas_map(score=SHOWN)) if options.heatmap else None
    return found.to_dict() | {"heatmap": shown, "note": detector.in_words()[0]}


def about(detector: Detector, max_bytes: int) -> About:
    """What ``/v1/detector`` says.

    Args:
      detector: that answers.
      max_bytes: that the server takes.
    """
    name, identity = detector.name.rsplit(" ", 1)
    trained, settings = detector.trained, detector.trained.settings
    nature_below, ai_above = band(detector.calibration)
    own = settings.detector.num_runs
    return About(
        name=name,
        identity=identity,
        version=__version__,
        backbone_sha256=trained.backbone.sha256,
        train_generators=list(settings.data.train_generators),
        seen=Seen(**dataclasses.asdict(detector.seen)) if detector.seen else None,
        calibration=detector.calibration.to_dict(),
        nature_below=nature_below,
        ai_above=ai_above,
        in_words=detector.in_words(),
        card=detector.card,
        runs=detector.runs,
        num_groups=detector.runs // own if own else 0,
        heatmaps=has_heatmaps(detector),
        alterations=list(ALTERATIONS),
        formats=list(FORMATS),
        max_bytes=max_bytes,
    )


def has_heatmaps(detector: Detector) -> bool:
    """Whether the backbone can reconstruct."""
    return detector.trained.backbone.config.has_decoder


def band(calibration: Calibration) -> tuple[float | None, float | None]:
    """Probabilities below which a picture is called nature, and above which it is called ai.

    None where that verdict is never given; what lies between is inconclusive
    (``Calibration.verdict``).
    """
    nature, ai = calibration.nature_threshold, calibration.ai_threshold
    known = [z for z in (nature, ai) if z is not None]
    below = None if nature is None else float(calibration.probability(min(known)))
    above = None if ai is None else float(calibration.probability(max(known)))
    return below, above


def shown_map(anomaly: LcasMap) -> dict[str, Any]:
    """The fields of ``Heatmap``."""
    buffer = io.BytesIO()
    anomaly.overlay(MAP_SIDE).save(buffer, "PNG")
    low, high = anomaly.limits
    return {
        "png": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(),
        "low": low,
        "high": high,
        "score": anomaly.score,
        "runs": anomaly.runs,
        "hidden": (int(anomaly.shown.min()), int(anomaly.shown.max())),
        "statement": STATEMENT,
    }
