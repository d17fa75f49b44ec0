"""What ``cinemae audit`` is asked to do, checked before any work starts."""

import dataclasses

from cinemae_jax.audit.attacks import Attack
from cinemae_jax.audit.equalise import require_possible

# Number of images or resamples, where 0 is allowed.
COUNTS = ("images", "train_images", "attack_images", "bootstrap")


@dataclasses.dataclass(frozen=True)
class AuditOptions:
    """What to audit, and how thoroughly.

    Attributes:
      root: folder of the data set, or a list of images.
      quarantine: list of images to leave out; empty for none.
      detector: run, bundle or bundled name; empty audits the files alone.
      backbone, global_backbone: files of the detector's backbone and of its global encoder; empty
        uses the paths stored with the detector.
      images: images to score, per class and generator; 0 for all.
      side, quality: shorter side in pixels and JPEG quality of equalised files.
      train_root: data set to train controls on; empty uses ``root``.
      train_images: images to train controls on, per class and generator; 0 for all.
      controls: whether to train controls.
      robustness: whether to add corruptions and attacks.
      signal: whether to add what every anomaly statistic is worth.
      attack_images: images to attack, per class and generator; 0 for all.
      attack_steps, attack_draws: fields of ``Attack``.
      bootstrap: resamples per interval.

    Raises:
      ValueError: if options are out of range or contradict each other.
    """

    root: str
    quarantine: str = ""
    detector: str = ""
    backbone: str = ""
    global_backbone: str = ""
    images: int = 0
    side: int = 256
    quality: int = 90
    train_root: str = ""
    train_images: int = 0
    controls: bool = True
    robustness: bool = False
    signal: bool = False
    attack_images: int = 16
    attack_steps: int = Attack.steps
    attack_draws: int = Attack.draws
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, is {getattr(self, name)}")
        if not self.detector and (self.robustness or self.signal or self.train_root):
            raise ValueError("robustness, signal and train_root need a detector: add --detector")
        Attack(self.attack_steps, self.attack_draws)
        require_possible(self.side, self.quality)

    @property
    def attack(self) -> Attack:
        """How strongly to attack."""
        return Attack(self.attack_steps, self.attack_draws)
