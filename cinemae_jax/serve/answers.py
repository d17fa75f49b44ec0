"""Answers of the server about an image and about its detector, with their schema.

An answer is a row of ``cinemae predict``; its heat map is data instead of a file.
"""

import base64
import dataclasses
import io
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cinemae_jax import __version__
from cinemae_jax.data.decode import FORMATS, FURTHER_FORMATS
from cinemae_jax.detector.api import Detector
from cinemae_jax.detector.calibration import Calibration, Verdict
from cinemae_jax.detector.heatmap import SHOWN, STATEMENT, LcasMap
from cinemae_jax.detector.prediction import ALTERATIONS

# Longest side of a heat map, pixels.
MAP_SIDE = 1024


class UnreadableError(ValueError):
    """An image that could not be scored; the message is the decoder's."""


class Failure(BaseModel):
    """An error, in words for users."""

    error: str


class Options(BaseModel):
    """Optional parts of an answer."""

    model_config = ConfigDict(extra="forbid")

    heatmap: bool = Field(default=False, description="add a heat map")
    stability: bool = Field(
        default=False, description="score the image again after mild JPEG compression and resizing"
    )


class Heatmap(BaseModel):
    """Mean reconstruction error of every patch, drawn over the image."""

    png: str = Field(description="data URI: heat map over the image in grey, at most 1024² pixels")
    low: float = Field(description="score at the dark end of the colours (inferno)")
    high: float = Field(description="score at the bright end of the colours")
    score: str = Field(description="LCAS variant")
    runs: int = Field(description="number of masking runs that are averaged")
    hidden: tuple[int, int] = Field(
        description="smallest and largest number of runs that masked a patch"
    )
    statement: str = Field(description="what the heat map shows")


class Answer(BaseModel):
    """One scored image: a row of `cinemae predict --format json`."""

    path: str = Field(description="always empty: file names are not used")
    probability: float = Field(description="calibrated probability of AI")
    verdict: Verdict
    flags: list[str] = Field(description="reasons for caution, each `name: words`")
    error: None = Field(description="always null: an image that cannot be scored is an HTTP error")
    detector: str = Field(description="name and first digits of its hash")
    seconds: float = Field(description="time for decoding and scoring, without waiting")
    logit: float = Field(description="score behind probability and verdict")
    uncertainty: float | None = Field(
        description="standard deviation of the probability between groups of masking runs; null "
        "with fewer than two groups"
    )
    example_id: int = Field(description="hash of the pixels, by which masks are drawn")
    stability: dict[str, float] | None = Field(description="probability after each mild change")
    heatmap: Heatmap | None
    note: str = Field(description="what to tell a reader")


class Seen(BaseModel):
    """What is known of the files that the detector was trained on."""

    formats: tuple[str, ...]
    shorter_sides: tuple[int, int] = Field(description="smallest and largest, pixels")


class About(BaseModel):
    """The detector, and what this server accepts."""

    name: str
    identity: str = Field(description="12 hex digits of everything that determines the scores")
    version: str = Field(description="of cinemae_jax")
    backbone_sha256: str
    train_generators: list[str]
    seen: Seen | None = Field(description="null if nothing is known of the training files")
    calibration: dict[str, Any] = Field(description="of logits; the thresholds are logits")
    nature_below: float | None = Field(
        description="lower probabilities are called nature; null if none is"
    )
    ai_above: float | None = Field(
        description="higher probabilities are called ai; null if none is"
    )
    in_words: list[str] = Field(description="what to tell a reader of the numbers")
    card: str = Field(description="description by its authors, as Markdown; may be empty")
    runs: int = Field(description="masking runs per image")
    num_groups: int = Field(description="groups of masking runs, compared for `uncertainty`")
    heatmaps: bool = Field(description="whether the backbone has a decoder, which heat maps need")
    alterations: list[str] = Field(description="changes that `stability` applies")
    formats: list[str] = Field(description="accepted file formats, detected from the content")
    max_bytes: int = Field(description="largest accepted request body")


def judge(detector: Detector, data: bytes, options: Options) -> dict[str, Any]:
    """Scores an image; returns the fields of ``Answer``.

    Raises:
      UnreadableError: if the image cannot be scored.
    """
    (found,) = detector.predict(data, stability=options.stability)
    if found.error is not None:
        raise UnreadableError(found.error)
    shown = shown_map(found.lcas_map(score=SHOWN)) if options.heatmap else None
    return found.to_dict() | {"heatmap": shown, "note": detector.in_words()[0]}


def about(detector: Detector, max_bytes: int) -> About:
    """The answer of ``/v1/detector``.

    Args:
      detector: scores the images.
      max_bytes: largest accepted request body.
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
        formats=[*FORMATS, *FURTHER_FORMATS],
        max_bytes=max_bytes,
    )


def has_heatmaps(detector: Detector) -> bool:
    """Whether the backbone has a decoder."""
    return detector.trained.backbone.config.has_decoder


def band(calibration: Calibration) -> tuple[float | None, float | None]:
    """The probability below which an image is called nature, and the one above which it is ai.

    None if that verdict is never given.  Probabilities between them are inconclusive
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
