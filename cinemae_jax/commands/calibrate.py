"""cinemae calibrate DETECTOR FOLDER…: calibrates a detector on your own photographs.

The promises of a detector hold for photographs like those of its calibration.  Other cameras, sizes
and file formats shift its scores; this command measures the shift and moves the threshold.

Exit codes: 0 done; 1 done, but some photographs are unread, each named; 2 usage.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cinemae_jax import weights
from cinemae_jax.commands import frozen
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
      argv: command name, then its arguments.
    """
    options = parser().parse_args(argv[1:])
    try:
        files.require_writable(options.out)
        found = bundle.load(
            options.detector, backbone=options.backbone, global_backbone=options.global_backbone
        )
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
        progress.say(f"backbone  {backbone}, keep it next to the file")
    progress.say(f"wrote     {options.out}")
    return console.SOME_FAILED if bad.listed else console.OK


def parser() -> Parser:
    arguments = Parser(
        prog="cinemae calibrate",
        description="Moves a detector's threshold so that at most a given share of photographs "
        "like yours is called 'ai', and refits its probabilities.",
        epilog="exit codes: 0 done, 1 some photographs are unread, 2 usage; see docs/predict.md",
    )
    add = arguments.add_argument
    add(
        "detector", metavar="DETECTOR", help="run folder, bundle file, or bundled name (clip, tiny)"
    )
    add(
        "folder",
        nargs="+",
        type=Path,
        help="folder of photographs, searched at any depth; must not hold AI images",
    )
    add("--out", type=Path, required=True, metavar="F", help="bundle file to write")
    add(
        "--fpr",
        type=float,
        metavar="X",
        help="largest share that may be called ai (the detector's)",
    )
    frozen.add_options(arguments)
    return arguments


def calibrated(
    detector: TrainedDetector, photographs: Catalog, bad: BadImages, *, fpr: float | None = None
) -> TrainedDetector:
    """The same detector with other photographs instead of the held-out ones.

    It keeps its held-out AI images and therefore the threshold of the verdict ``nature``.

    Args:
      detector: to calibrate; all its heads are.
      photographs: not used in its training.
      bad: collects unread photographs.
      fpr: largest share of photographs that may be called ``ai``; None keeps the detector's.

    Raises:
      ValueError: if too few photographs could be read for this promise, or ``fpr`` is invalid.
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
        held_out_sources=(),  # one source: the user's
    )


def _too_few(count: int, needed: int, fpr: float) -> str:
    return (
        f"{count} photographs are too few to promise that at most {100 * fpr:g} % are called ai: "
        f"give at least {needed}, or a larger --fpr"
    )


def in_words(before: TrainedDetector, after: TrainedDetector) -> Iterator[str]:
    """Lines to print: what changed, for the first head."""
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
    yield f"threshold ai {threshold} before, above {new.ai_threshold:.2f} now"
    a, b = called["photographs"]
    yield f"yours     {new.num_nature:,} photographs: {a:.1%} called ai before, {b:.1%} now"
    if "AI images" in called:
        a, b = called["AI images"]
        yield (
            f"cost      {new.num_ai:,} held-out AI images: {a:.1%} called ai before, {b:.1%} now"
        )
    low, high = new.fpr_range()
    yield (
        f"promise   at most {100 * new.fpr:g} % of photographs like yours are called ai; with 95 % "
        f"confidence, this sample gives {low:.1%} to {high:.1%}"
    )
