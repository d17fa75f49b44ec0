"""The parts of ``cinemae audit`` that need a detector: scored, attacked, trained anew."""

import argparse
from pathlib import Path
from typing import Any

from cinemae_jax.audit import comparisons, controls, corruptions, retraining, robustness, sentences
from cinemae_jax.audit.attacks import Attack
from cinemae_jax.audit.comparisons import Resampling, Scored
from cinemae_jax.audit.rescoring import Attacker, Rescorer
from cinemae_jax.audit.robustness import Named
from cinemae_jax.data import catalog
from cinemae_jax.data.catalog import Catalog, CatalogError
from cinemae_jax.data.order import Order
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import trained
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import phrases
from cinemae_jax.features.run import Run
from cinemae_jax.features.splits import Data
from cinemae_jax.runtime import progress
from cinemae_jax.runtime.devices import Replicas

EPSILONS = (0.0, 1.0, 2.0, 4.0, 8.0)  # grey levels of 255


class Sections:
    """An audit of a detector, section by section; each adds sentences to ``said``."""

    def __init__(
        self,
        options: argparse.Namespace,
        detector: TrainedDetector,
        images: Catalog,
        resampling: Resampling,
        bad: BadImages,
    ) -> None:
        self.options, self.detector, self.resampling, self.bad = options, detector, resampling, bad
        self.replicas: Replicas = detector.devices()
        self.score = Rescorer(detector, self.replicas, bad)
        self.calibration = detector.calibration()
        self.everything = images
        self.test = images.select(split="val")
        self.images = comparisons.sample(self.test, options.images)
        self.said: list[str] = []
        self.data = self._training_data()

    def run(self) -> dict[str, Any]:
        """All sections; what they say is added to ``said``."""
        self._announce("as they are")
        clean = self.score(self.images, comparisons.unchanged)
        found = {
            "detector": {
                "name": self.options.detector,
                "step": self.detector.step,
                "backbone_sha256": self.detector.backbone.sha256,
                "head_sha256": trained.head_sha256(self.detector.heads),
                "settings": self.detector.settings,
                "calibration": self.calibration,
            },
            "test_images": self.test.fingerprint,
            "scored": self.images.fingerprint,
            "num_scored": len(self.images),
            "equalised": self._equalised(clean),
            "pushes": self._pushed(clean),
            "controls": self._controls(),
        }
        return found | (self._robustness(clean) if self.options.robustness else {})

    def _announce(self, how: str) -> None:
        progress.say(f"scoring   {len(self.images)} images {how}")

    def _equalised(self, clean: Scored) -> dict[str, Any]:
        how = {"side": self.options.side, "quality": self.options.quality}
        self._announce(f"with a short side of {how['side']} and as JPEG {how['quality']}")
        found = comparisons.equalised(
            self.score,
            self.images,
            clean,
            **how,
            resampling=self.resampling,
            calibration=self.calibration,
        )
        self.said += phrases.equalised_in_words(found, **how)
        return how | {"comparison": found}

    def _pushed(self, clean: Scored) -> dict[str, Any]:
        self._announce("pushed, photographs alone")
        found = comparisons.pushed(
            self.score,
            self.images,
            clean,
            resampling=self.resampling,
            calibration=self.calibration,
        )
        self.said += sentences.pushes_in_words(found)
        return found

    # --- controls -------------------------------------------------------------------------------

    def _training_data(self) -> Data | str:
        """What controls are trained on, or why they cannot be."""
        options, config = self.options, self.detector.settings
        if options.no_controls:
            return "--no-controls was given"
        try:
            found = catalog.scan(options.train_root) if options.train_root else self.everything
            learned = found.select(generators=config.data.train_generators, split="train")
            learned = comparisons.sample(learned, options.train_images)
            train, validation = learned.hold_out(config.data.holdout)
            train.require_both_classes("the training split")
            validation.require_both_classes("its held-out part")
            Order(len(train), config.train.batch_size, config.train.epochs, config.seed)
        except (CatalogError, ValueError) as error:
            if options.train_root:
                raise
            return f"{error}; --train-root names other images to train on"
        return Data(train, validation, self.images)

    def _controls(self) -> dict[str, Any]:
        if isinstance(self.data, str):
            self.said.append(f"controls were left out: {self.data}")
            return {"left_out": self.data}
        run = Run(Path(), self.replicas, self.bad)
        retrained = retraining.Retrainer(self.detector, self.data, run)
        made = controls.controls(self.detector.settings.detector)
        scored = {}
        for control in made:
            progress.say(f"control   {control.name}")
            scored[control.name] = retrained(control)
        found = {
            name: comparisons.compared(self.images, scored[controls.RECIPE], other, self.resampling)
            for name, other in scored.items()
        }
        self.said += sentences.controls_in_words(found)
        return {
            "train_images": self.data.train.fingerprint,
            "num_train": len(self.data.train),
            "inpainting_width_patches": controls.WIDTH,
            "content_side": controls.CONTENT_SIDE,
            "comparisons": found,
        }

    # --- robustness -----------------------------------------------------------------------------

    def _robustness(self, clean: Scored) -> dict[str, Any]:
        changed = {}
        for one in corruptions.SUITE:
            self._announce(f"under {one!r}")
            named = Named(repr(one), one.family, one.strength)
            changed[named] = self.score(self.images, comparisons.corrupting(one))
        known = self.calibration, self.resampling
        corrupted = robustness.measure(self.images, clean, changed, *known)
        self.said += robustness.in_words(corrupted, "corruptions")
        attacked, undefined, victims = self._attacked()
        self.said += robustness.in_words(attacked, "attacks")
        if undefined:
            self.said.append(
                f"of {len(victims)} attacked images {undefined} had an undefined gradient in some "
                "step, which then changed nothing: the attack on them may be too weak"
            )
        return {
            "corruptions": corrupted.effects,
            "stability": robustness.stability_rows(self.images, corrupted),
            "attacks": {
                "steps": self.options.attack_steps,
                "draws": self.options.attack_draws,
                "undefined_gradients": undefined,
                "num_images": len(victims),
                "effects": attacked.effects,
                "stability": robustness.stability_rows(victims, attacked),
            },
        }

    def _attacked(self) -> tuple[robustness.Robustness, int, Catalog]:
        victims = comparisons.sample(self.images, self.options.attack_images)
        strength = Attack(self.options.attack_steps, self.options.attack_draws)
        attacker = Attacker(self.detector, self.replicas, strength)
        scored = {}
        for epsilon in EPSILONS:
            progress.say(f"attacking {len(victims)} images, ε = {epsilon:g}/255")
            scored[epsilon] = self.score.attacked(victims, attacker, epsilon)
        changed = {
            Named(f"PGD ε {epsilon:g}/255", "PGD", epsilon): one
            for epsilon, one in scored.items()
            if epsilon
        }
        found = robustness.measure(victims, scored[0.0], changed, self.calibration, self.resampling)
        return found, len(attacker.undefined), victims
