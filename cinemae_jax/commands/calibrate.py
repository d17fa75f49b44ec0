"""cinemae calibrate DETECTOR FOLDER…: a detector whose verdicts hold for photographs of your own.

What a detector promises holds for photographs like those that it was calibrated on.  Other cameras,
sizes and habits of saving shift its scores; this measures the shift and moves the threshold.

Exit codes: 0 done; 1 done, but some photographs cannot be read, each named; 2 usage.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cinemae_jax import weights
from cinemae_jax.data import catalog
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.records import AI
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import bundle, calibration, scoring
from cinemae_jax.detector.scoring import Scorer
from cinemae_jax.detector.trained import HeldOut, TrainedDetector
from cinemae_jax.features import splits
from cinemae_jax.features.run import UNREAD
from cinemae_jax.runtime import compilation, console, files, progress
from cinemae_jax.runtime.console import Parser


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: its name first.
    """
    options = parser().parse_args(argv[1:])
    try:
        files.require_writable(options.out)
        found = bundle.load(options.detector, backbone=options.backbone)
        photographs = catalog.photographs(options.folder)
        splits.report_skipped(photographs)
        with tempfile.TemporaryDirectory() as scratch, compilation.kept_compilations():
            bad = BadImages(Path(scratch, UNREAD))
            try:
                detector = calibrated(found.detector, photographs, bad, fpr=options.fpr)
            finally:
                for image in bad.listed:
                    progress.say(f"unread    {image.path}: {image.error}")
        bundle.save(options.out, dataclasses.replace(found, detector=detector))
    except (ValueError, OSError) as error:
        return console.fail(error)
    for line in in_words(found.detector, detector):
        progress.say(line)
    backbone = Path(detector.settings.backbone).name
    if backbone not in weights.BUNDLED:
        progress.say(f"backbone  {backbone}, needed beside it")
    progress.say(f"wrote     {options.out}")
    return console.SOME_FAILED if bad.listed else console.OK


def parser() -> Parser:
    arguments = Parser(
        prog="cinemae calibrate",
        description="Moves the threshold of a detector's verdict 'ai' to where at most a given "
        "share of photographs like yours lie above it, and fits its probabilities anew.",
        epilog="exit codes: 0 done, 1 some photographs cannot be read, 2 usage; "
        "see docs/predict.md",
    )
    add = arguments.add_argument
    add("detector", metavar="DETECTOR", help="folder, file or name of the detector")
    add("folder", nargs="+", type=Path, help="of photographs, at any depth; no AI images")
    add("--out", type=Path, required=True, metavar="F", help="file to write, as bundle does")
    add("--fpr", type=float, metavar="X", help="share to be called ai at most (the detector's)")
    add("--backbone", default="", metavar="F", help="its backbone, if it has moved")
    return arguments


def calibrated(
    detector: TrainedDetector, photographs: Catalog, bad: BadImages, *, fpr: float | None = None
) -> TrainedDetector:
    """The same detector with other photographs in place of the held-out ones.

    Its held-out AI images stay, and with them the threshold of the verdict ``nature``.

    Args:
      detector: all of whose heads are calibrated.
      photographs: that no part of it has seen.
      bad: takes note of those that cannot be read.
      fpr: share of photographs that may be called ``ai``; None keeps the detector's.

    Raises:
      ValueError: if too few could be read to promise that, or the share is impossible.
    """
    config = detector.settings
    if fpr is not None:
        config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, fpr=fpr))
    fpr = config.eval.fpr
    if len(photographs) < (needed := calibration.needed(fpr)):
        raise ValueError(_too_few(len(photographs), needed, fpr))
    local = dataclasses.replace(config.data, source="folder", quarantine="")
    scored_by = dataclasses.replace(detector, settings=dataclasses.replace(config, data=local))
    replicas = detector.devices()
    online = scored_by.online(photographs, replicas)
    scorer = Scorer(config.detector, detector.backbone.config.num_patches, replicas)
    scored = scoring.score_held_out(detector.heads, online, scorer, bad)
    if (count := int(np.isfinite(scored.logit).all(axis=1).sum())) < needed:
        raise ValueError(_too_few(count, needed, fpr))
    kept = np.asarray(detector.held_out.label) == AI
    held_out = HeldOut(
        np.concatenate([scored.logit, detector.held_out.logit[kept]]),
        np.concatenate([scored.label, detector.held_out.label[kept]]),
    )
    return dataclasses.replace(
        detector,
        settings=config,
        held_out=held_out,
        held_out_images=f"{photographs.fingerprint}+{detector.held_out_images}",
    )


def _too_few(count: int, needed: int, fpr: float) -> str:
    return (
        f"{count} photographs are too few to promise that at most {fpr:g} are called ai: give "
        f"{needed} or more, or a larger --fpr"
    )


def in_words(before: TrainedDetector, after: TrainedDetector) -> Iterator[str]:
    """What moved, by the first head."""
    old, new = before.calibration(), after.calibration()
    is_ai = np.asarray(after.held_out.label) == AI
    called = {
        name: [
            float((c.verdict(after.held_out.logit[rows, 0]) == "ai")[known].mean())
            for c in (old, new)
        ]
        for name, rows in (("photographs", ~is_ai), ("AI images", is_ai))
        if (known := np.isfinite(after.held_out.logit[rows, 0])).any()
    }
    threshold = "never" if old.ai_threshold is None else f"above a logit of {old.ai_threshold:.2f}"
    yield f"ai        {threshold} before, above {new.ai_threshold:.2f} now"
    a, b = called["photographs"]
    yield f"yours     {new.num_nature:,} photographs: {a:.1%} called ai before, {b:.1%} now"
    if "AI images" in called:
        a, b = called["AI images"]
        yield (
            f"price     of the {new.num_ai:,} AI images that the detector was validated on, "
            f"{a:.1%} called ai before, {b:.1%} now"
        )
    low, high = new.fpr_range()
    yield (
        f"promise   at most {new.fpr:g} of photographs like yours; for this draw of them "
        f"{low:.1%} to {high:.1%}, with 95 % confidence"
    )
