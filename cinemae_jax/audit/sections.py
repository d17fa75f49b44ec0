"""The sections of an audit: what each found, and what that means in sentences."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cinemae_jax.audit import (
    conditions,
    controls,
    corruptions,
    draws,
    equalise,
    probes,
    retraining,
    robustness,
    sentences,
)
from cinemae_jax.audit.attacks import mean_nll
from cinemae_jax.audit.conditions import Scored
from cinemae_jax.audit.options import AuditOptions
from cinemae_jax.audit.rescoring import Attacker, Rescorer
from cinemae_jax.audit.robustness import NamedChange, Robustness
from cinemae_jax.data import catalog
from cinemae_jax.data.catalog import Catalog, CatalogError
from cinemae_jax.data.inspect import diagnosis, shortcuts
from cinemae_jax.data.inspect.examination import Examination
from cinemae_jax.data.order import Order
from cinemae_jax.data.records import AI, NATURE
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import trained
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import phrases, signal
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.signal import Condition, Signal
from cinemae_jax.features.run import Run
from cinemae_jax.features.splits import Data
from cinemae_jax.runtime import progress
from cinemae_jax.runtime.devices import Replicas

EPSILONS = (0.0, 1.0, 2.0, 4.0, 8.0)  # grey levels of 255
NLL_EPSILONS = (2.0, 8.0)


@dataclasses.dataclass(frozen=True)
class AuditSection:
    """One part of an audit.

    Attributes:
      found: its entries of the JSON report.
      sentences: what they mean; part of the verdict.
    """

    found: Mapping[str, Any]
    sentences: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class ControlData:
    """Images to train controls on.

    Attributes:
      data: None if controls are left out.
      why_not: why they are left out.
    """

    data: Data | None
    why_not: str = ""


def files_alone(
    examined: Examination, train_generators: Sequence[str], resampling: Resampling
) -> AuditSection:
    """What the files give away without any detector.

    Args:
      examined: all files.
      train_generators: generators whose train split the probes learn from.
      resampling: of the probes' intervals.
    """
    probed = probes.probe(examined, train_generators=train_generators, resampling=resampling)
    alone = diagnosis.find_shortcuts(examined)
    return AuditSection(
        {
            "unreadable": examined.unreadable.select(["path", "reason", "error"]).to_pylist(),
            "probes": probed,
            "shortcuts": alone,
        },
        [*shortcuts.in_words(alone), *sentences.probes_in_words(probed)],
    )


class DetectorAudit:
    """The sections that need a detector; it is compiled once for all of them."""

    def __init__(
        self,
        options: AuditOptions,
        detector: TrainedDetector,
        images: Catalog,
        resampling: Resampling,
        bad: BadImages,
    ) -> None:
        """
        Args:
          options: of the audit.
          detector: what is audited.
          images: the whole data set; its val split is scored.
          resampling: of every interval.
          bad: records images that cannot be read.
        """
        self._options, self._detector, self._resampling = options, detector, resampling
        self._calibration, self._bad = detector.calibration(), bad
        self._replicas: Replicas = detector.devices()
        self._score = Rescorer(detector, self._replicas, bad)
        self._test = images.select(split="val")
        self._images = conditions.sample(self._test, options.images)
        self._control_data = self._find_control_data(images)

    def sections(self) -> list[AuditSection]:
        """All sections, in the order of the report."""
        self._announce("unchanged")
        clean = self._score(self._images, conditions.unchanged)
        found = [self._facts(), self._equalised(clean), self._pushed(clean), self._controls()]
        if self._options.signal:
            found.append(self._signal())
        return found + (self._robustness(clean) if self._options.robustness else [])

    def _announce(self, how: str) -> None:
        progress.say(f"scoring   {len(self._images)} images {how}")

    def _facts(self) -> AuditSection:
        detector = self._detector
        return AuditSection(
            {
                "detector": {
                    "name": self._options.detector,
                    "step": detector.step,
                    **detector.backbone.hashes,
                    "head_sha256": trained.head_sha256(detector.heads),
                    "settings": detector.settings,
                    "calibration": self._calibration,
                },
                "test_images": self._test.fingerprint,
                "scored": self._images.fingerprint,
                "num_scored": len(self._images),
            }
        )

    def _equalised(self, clean: Scored) -> AuditSection:
        side, quality = self._options.side, self._options.quality
        self._announce(f"equalised to a short side of {side} and JPEG quality {quality}")
        found = conditions.equalised(
            self._score,
            self._images,
            clean,
            side=side,
            quality=quality,
            resampling=self._resampling,
            calibration=self._calibration,
        )
        return AuditSection(
            {"equalised": {"side": side, "quality": quality, "comparison": found}},
            phrases.equalised_in_words(found, side=side, quality=quality),
        )

    def _pushed(self, clean: Scored) -> AuditSection:
        progress.say("scoring   photographs after changes unrelated to generation")
        found = conditions.pushed(
            self._score,
            self._images,
            clean,
            resampling=self._resampling,
            calibration=self._calibration,
        )
        return AuditSection({"pushes": found}, sentences.pushes_in_words(found))

    # --- controls -------------------------------------------------------------------------------

    def _find_control_data(self, images: Catalog) -> ControlData:
        """Only data that the user named (``train_root``) must be usable."""
        options, config = self._options, self._detector.settings
        if not options.controls:
            return ControlData(None, "--no-controls was given")
        try:
            found = catalog.scan(options.train_root) if options.train_root else images
            learned = found.select(generators=config.data.train_generators, split="train")
            learned = conditions.sample(learned, options.train_images)
            train, validation = learned.hold_out(config.data.holdout)
            train.require_both_classes("the training split")
            validation.require_both_classes("its held-out part")
            Order(len(train), config.train.batch_size, config.train.epochs, config.seed)
        except (CatalogError, ValueError) as error:
            if options.train_root:
                raise
            return ControlData(None, f"{error}; name other training images with --train-root")
        return ControlData(Data(train, validation, self._images))

    def _controls(self) -> AuditSection:
        data, why_not = self._control_data.data, self._control_data.why_not
        if data is None:
            return AuditSection(
                {"controls": {"left_out": why_not}}, [f"controls left out: {why_not}"]
            )
        run = Run(Path(), self._replicas, self._bad)
        retrained = retraining.Retrainer(self._detector, data, run)
        scored = {}
        for control in controls.controls(self._detector.settings.detector):
            progress.say(f"control   {control.name}")
            scored[control.name] = retrained(control)
        recipe = scored[controls.RECIPE]
        found = {
            name: conditions.compared(self._images, recipe, other, self._resampling)
            for name, other in scored.items()
        }
        facts = {
            "train_images": data.train.fingerprint,
            "num_train": len(data.train),
            "inpainting_width_patches": controls.WIDTH,
            "content_side": controls.CONTENT_SIDE,
        }
        return AuditSection(
            {"controls": facts | {"comparisons": found}}, sentences.controls_in_words(found)
        )

    # --- signal ---------------------------------------------------------------------------------

    def _signal(self) -> AuditSection:
        config = self._detector.settings.detector
        if not config.num_runs:
            why_not = "the detector has no masked runs (K = 0)"
            return AuditSection({"signal": {"left_out": why_not}}, [f"signal left out: {why_not}"])
        measure = draws.Draws(self._detector, self._replicas, self._bad)
        options = self._options
        same = functools.partial(equalise.Equalise, side=options.side, quality=options.quality)
        found = measure(self._images, {"raw": conditions.unchanged, "equalised": same})
        kept, too_few = signal.comparable(found["raw"].drawn)
        measured = tuple(
            Condition(name, tuple(signal.measure(one.drawn, self._resampling)), tuple(one.curves))
            for name, one in found.items()
            if kept
        )
        reads = config.anomaly == "statistics" and config.fusion not in ("global", "frequency")
        score = config.score if reads else ""
        drawn = measure.by_masking(self._images, found["raw"].drawn)
        section = Signal(
            config.num_runs,
            measure.mismatch_weight,
            score,
            measured,
            tuple(too_few),
            masking=config.masking,
            repeats=tuple(signal.repeats(drawn, score or signal.NLL)),
        )
        said = sentences.signal_in_words(section)
        section = dataclasses.replace(section, sentences=tuple(said))
        return AuditSection({"signal": section}, said)

    # --- robustness -----------------------------------------------------------------------------

    def _robustness(self, clean: Scored) -> list[AuditSection]:
        scored = {}
        for one in corruptions.SUITE:
            self._announce(f"under {one!r}")
            change = NamedChange(repr(one), one.family, one.strength)
            scored[change] = self._score(self._images, conditions.corrupting(one))
        found = self._measured(self._images, clean, scored)
        corrupted = AuditSection(
            {
                "corruptions": found.effects,
                "stability": robustness.stability_rows(self._images, found),
            },
            robustness.in_words(found, "corruptions"),
        )
        if self._detector.backbone.encoder:  # its pixels are not those of the crops
            return [corrupted, AuditSection({}, [sentences.NOT_ATTACKED])]
        return [corrupted, self._attacked()]

    def _attacked(self) -> AuditSection:
        victims = conditions.sample(self._images, self._options.attack_images)
        strength = self._options.attack
        attacker = Attacker(self._detector, self._replicas, strength)
        scored = {}
        for epsilon in EPSILONS:
            progress.say(f"attacking {len(victims)} images, ε = {epsilon:g}/255")
            scored[epsilon] = self._score.attacked(victims, attacker, epsilon)
        clean = scored.pop(0.0)
        changed = {NamedChange(f"PGD ε {e:g}/255", "PGD", e): one for e, one in scored.items()}
        found = self._measured(victims, clean, changed)
        of_nll = self._measured(victims, clean, self._nll_attacked(victims))
        undefined = len(attacker.undefined)
        entries = {
            "steps": strength.steps,
            "draws": strength.draws,
            "undefined_gradients": undefined,
            "num_images": len(victims),
            "effects": found.effects,
            "nll_effects": of_nll.effects,
            "stability": robustness.stability_rows(victims, found),
        }
        said = robustness.in_words(found, "attacks")
        said += robustness.in_words(of_nll, "attacks on the NLL")
        said += sentences.undefined_in_words(undefined, len(victims))
        return AuditSection({"attacks": entries}, said)

    def _nll_attacked(self, victims: Catalog) -> dict[NamedChange, Scored]:
        """Attacks on the score instead of the verdict, in both directions, on both classes."""
        if not self._detector.settings.detector.num_runs:
            return {}
        attacker = Attacker(self._detector, self._replicas, self._options.attack, mean_nll)
        changed = {}
        for label, way in ((AI, "lower"), (NATURE, "raise")):
            for epsilon in NLL_EPSILONS:
                progress.say(f"attacking the NLL ({way}), ε = {epsilon:g}/255")
                change = NamedChange(
                    f"PGD {way}s the NLL, ε {epsilon:g}/255", f"PGD, {way} NLL", epsilon
                )
                changed[change] = self._score.attacked(victims, attacker, epsilon, label=label)
        return changed

    def _measured(
        self, images: Catalog, clean: Scored, changed: Mapping[NamedChange, Scored]
    ) -> Robustness:
        return robustness.measure(images, clean, changed, self._calibration, self._resampling)
