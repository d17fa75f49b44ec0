"""Typed settings: the sections of a config file, checked field by field.

Config files (``configs/*.py``) state every field; these classes say what each means.
"""

import dataclasses
import math
import typing
from pathlib import Path

from cinemae_jax.data.augment import Augment
from cinemae_jax.data.collection import Source
from cinemae_jax.data.transforms import GlobalView, MultiCrop, ViewOf
from cinemae_jax.model.config import DetectorConfig, Dtype, MAEConfig
from cinemae_jax.model.masking import Masks
from cinemae_jax.model.vit_config import Preprocessing
from cinemae_jax.typed import require

# Far above any use: settings also come from files of others, and sizes are memory.
MAX_SIDE, MAX_CROPS, MAX_SEEDS = 8192, 1024, 1024
FeatureSource = typing.Literal["bank", "online"]


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which images, and how they become squares.

    Attributes:
      root: folder in a known layout, CSV or Parquet list (``data.catalog``), or the TFDS folder
        that ``data.genimage`` writes.
      source: ``folder`` (or list), or ``tfds``.
      quarantine: CSV of images to leave out, as ``cinemae doctor`` writes it; empty for none.
      train_generators: the head learns from their ``train`` splits.
      test_generators: their ``val`` splits are scored; empty means all.
      holdout: share of the training images kept for validation, chosen by their ids; not used with
        a list that has a split ``held_out``.
      resize: shorter side before cropping, pixels; 0 keeps native pixels.
      num_crops: crops per image.  Training judges each alone; scoring averages their logits: 1 is
        the centre crop, other squares (4, 9, ...) form a grid.
      random_crop, flip, augment: of training images, for both classes alike.
      num_threads: decoding threads.
      eval_crops: crops per image in scoring; 0 means ``num_crops``.
      global_view: what a global backbone gets: ``crop``, every crop, resized to its size;
        ``whole``, the image as a whole, once for all crops.
    """

    root: str
    source: Source
    quarantine: str
    train_generators: tuple[str, ...]
    test_generators: tuple[str, ...]
    holdout: float
    resize: int
    num_crops: int
    random_crop: bool
    flip: bool
    augment: Augment
    num_threads: int
    eval_crops: int = 0
    global_view: ViewOf = "crop"

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("config.data.root is empty: name the folder of the data set")
        if self.source not in typing.get_args(Source):
            raise ValueError(f"config.data.source is {self.source!r}: use 'folder' or 'tfds'")
        if not self.train_generators:
            raise ValueError("config.data.train_generators is empty: name at least one generator")
        if self.global_view not in typing.get_args(ViewOf):
            raise ValueError(
                f"config.data.global_view is {self.global_view!r}: use 'crop' or 'whole'"
            )
        require("config.data", self, holdout=(0, 1), resize=(0, MAX_SIDE), num_threads=(1, None))
        require("config.data", self, num_crops=(1, MAX_CROPS), eval_crops=(0, MAX_CROPS))
        crops = "eval_crops" if self.eval_crops else "num_crops"
        if math.isqrt(self.scored_crops) ** 2 != self.scored_crops:
            raise ValueError(
                f"config.data.{crops} is {self.scored_crops}: scored crops form a square grid, "
                "so use a square number (1, 4, 9, …)"
            )

    @property
    def scored_crops(self) -> int:
        """Crops per image in scoring."""
        return self.eval_crops or self.num_crops

    def eval_transform(self, size: int, encoder: Preprocessing | None = None) -> MultiCrop:
        """Crops at fixed places: the same for every image, every time.

        Args:
          size: side of a crop, pixels.
          encoder: how the global encoder is fed; None if there is none.
        """
        view = self._view(encoder)
        return MultiCrop(size, self.scored_crops, resize=self.resize, view=view)

    def train_transform(self, size: int, encoder: Preprocessing | None = None) -> MultiCrop:
        """Crops of training images; arguments as in ``eval_transform``."""
        return MultiCrop(
            size,
            self.num_crops,
            resize=self.resize,
            random=self.random_crop,
            flip=self.flip,
            augment=self.augment,
            view=self._view(encoder),
        )

    def _view(self, encoder: Preprocessing | None) -> GlobalView | None:
        if encoder is None:
            return None
        edge, how = encoder.shortest_edge, encoder.interpolation
        return GlobalView(encoder.size, self.global_view, shortest_edge=edge, interpolation=how)


@dataclasses.dataclass(frozen=True)
class FeatureSettings:
    """How images become the features that the head learns from.

    Attributes:
      source: ``bank``: one pass of the backbone, kept on disk, for any number of epochs, seeds and
        heads; ``online``: computed in every step.
      bank: folder of the bank; empty for ``bank`` in the run's folder.
      seed: of masks and augmentation.
      num_runs: R, masking runs stored per image; every epoch draws K of them.  0 (online only)
        means a new mask every time.
      num_views: V, augmented views stored per training image; epochs use them in turn.  0 (online
        only) means a new view every epoch.
      batch_size: images at a time through the backbone, over all devices.
      shard_images: images per file of the bank.
      memory: GB of features held in memory; more is read from a scratch file.
    """

    source: FeatureSource
    bank: str
    seed: int
    num_runs: int
    num_views: int
    batch_size: int
    shard_images: int
    memory: float

    def __post_init__(self) -> None:
        if self.source not in typing.get_args(FeatureSource):
            raise ValueError(f"config.features.source is {self.source!r}: use 'bank' or 'online'")
        least = 1 if self.source == "bank" else 0
        require(
            "config.features",
            self,
            seed=(0, None),
            num_runs=(0, None),
            num_views=(least, None),
            batch_size=(1, None),
            shard_images=(1, None),
            memory=(0, None),
        )


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Optimisation of the head.

    Attributes:
      batch_size: images a step, over all devices.
      epochs: passes over the training images.
      learning_rate: at the peak.
      warmup: share of the steps during which the learning rate rises.
      weight_decay: of all kernels of the head.
      global_weight_decay: in fusions ``logit`` and ``hybrid``, of the pathway that reads f_global
        alone.
      standardize_images: training images whose statistics standardise the head's inputs.
      checkpoint_every: steps; every epoch ends with a validated checkpoint as well.
      frequency_weight_decay: in fusions ``hybrid`` and ``frequency``, of the pathway that reads q.
    """

    batch_size: int
    epochs: int
    learning_rate: float
    warmup: float
    weight_decay: float
    global_weight_decay: float
    standardize_images: int
    checkpoint_every: int
    frequency_weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        require(
            "config.train",
            self,
            batch_size=(1, None),
            epochs=(1, None),
            learning_rate=(0, None),
            warmup=(0, 1),
            weight_decay=(0, None),
            global_weight_decay=(0, None),
            frequency_weight_decay=(0, None),
            standardize_images=(1, None),
            checkpoint_every=(1, None),
        )


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """How results are measured.

    Attributes:
      detector: what ``evaluate`` scores with: folder of a run, file of `cinemae bundle`, or bundled
        name; empty for the run in its workdir.
      batch_size: images at a time, over all devices.
      bootstrap: resamples of every interval; 0 for none.
      confidence: of the intervals, for example 0.95.
      fpr: largest share of photographs that may be called AI; the threshold comes from the held-out
        training images.
      fnr: largest share of AI images that may be called nature.
    """

    detector: str
    batch_size: int
    bootstrap: int
    confidence: float
    fpr: float
    fnr: float

    def __post_init__(self) -> None:
        require("config.eval", self, batch_size=(1, None), bootstrap=(0, None), confidence=(0, 1))
        for name in ("fpr", "fnr"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"config.eval.{name} must lie between 0 and 1")


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """What an evaluation chooses; everything else belongs to the trained detector.

    Attributes:
      backbone, global_backbone: used where these files exist; of a named detector, where its own
        do not.
      root, source, quarantine, test_generators, num_threads: as in ``DataSettings``.
      eval: how results are measured.  A named detector keeps its own ``fpr`` and ``fnr``, so that
        its verdicts are those of ``predict``.
    """

    backbone: str
    root: str
    source: Source
    quarantine: str
    test_generators: tuple[str, ...]
    num_threads: int
    eval: EvalSettings
    global_backbone: str = ""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole config file of train and evaluate.

    Attributes:
      seed: of the head's initial parameters and of the order of the images.
      num_seeds: heads trained at once, with seeds ``seed``, ``seed`` + 1, ...; they share the order
        of the images, and each draws its own masks.
      backbone: file, or the name of a bundled one.
      global_backbone: file of the encoder that makes f_global; empty for the backbone itself.
    """

    seed: int
    num_seeds: int
    backbone: str
    detector: DetectorConfig
    data: DataSettings
    features: FeatureSettings
    train: TrainSettings
    eval: EvalSettings
    global_backbone: str = ""

    def __post_init__(self) -> None:
        require("config", self, seed=(0, None), num_seeds=(1, MAX_SEEDS))
        stored, wanted = self.features.num_runs, self.detector.num_runs
        if stored < wanted and (stored or self.features.source == "bank"):
            raise ValueError(
                f"config.features.num_runs {stored} is below config.detector.num_runs {wanted}: "
                "store at least as many runs per image as the head reads"
            )
        size = self.detector.group_size
        if stored % size:
            raise ValueError(
                f"config.features.num_runs is {stored}, but disjoint masks come in groups of "
                f"{size} (detector.mask_ratio {self.detector.mask_ratio:g}): store a multiple of "
                f"{size}"
            )

    @property
    def runs(self) -> dict[str, int]:
        """Numbers of masked runs, by the field that asks for them."""
        stored = self.features.num_runs if self.features.source == "bank" else 0
        return {
            "config.detector.num_runs": self.detector.num_runs,
            "config.features.num_runs": stored,
        }

    @property
    def masks(self) -> Masks:
        """Which masking runs an image gets."""
        stored = self.features.num_runs
        detector, seed = self.detector, self.features.seed
        return Masks(seed, detector.num_runs, stored, self.num_seeds, detector.group_size)

    @property
    def evaluation(self) -> EvaluationSettings:
        """The part that an evaluation reads."""
        names = ("root", "source", "quarantine", "test_generators", "num_threads")
        data = {name: getattr(self.data, name) for name in names}
        files = {name: getattr(self, name) for name in ("backbone", "global_backbone")}
        return EvaluationSettings(eval=self.eval, **files, **data)

    def evaluated_as(self, asked: EvaluationSettings) -> "Settings":
        """The settings of a trained detector for an evaluation."""
        names = ("root", "source", "quarantine", "test_generators", "num_threads")
        data = dataclasses.replace(self.data, **{name: getattr(asked, name) for name in names})
        measured = asked.eval
        if measured.detector:
            measured = dataclasses.replace(measured, fpr=self.eval.fpr, fnr=self.eval.fnr)
        return dataclasses.replace(self, data=data, eval=measured)

    def portable(self, root: str) -> "Settings":
        """The same without the paths of this machine; ``root`` stands in for the data set's."""
        data = dataclasses.replace(self.data, root=root, quarantine="")
        features = dataclasses.replace(self.features, bank="")
        backbone, encoder = (Path(path).name for path in (self.backbone, self.global_backbone))
        return dataclasses.replace(
            self, data=data, features=features, backbone=backbone, global_backbone=encoder
        )


@dataclasses.dataclass(frozen=True)
class PhotoSettings:
    """Photographs to pre-train on.

    Attributes:
      photos: folders.
      scale: smallest and largest share of the area that a random crop takes.
      native: share of the samples that are squares of native pixels instead.
      holdout: share of the photographs kept for the validation loss.
      num_threads: decoding threads.
    """

    photos: tuple[str, ...]
    scale: tuple[float, float]
    native: float
    holdout: float
    num_threads: int

    def __post_init__(self) -> None:
        require("config.data", self, native=(0, 1), holdout=(0, 1), num_threads=(1, None))
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"config.data.scale must rise within (0, 1], is {self.scale}")


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """A whole config file of pretrain; ``configs/pretrain_tiny.py`` explains the fields."""

    seed: int
    init: str
    model: MAEConfig
    data: PhotoSettings
    mask_ratio: float
    batch_size: int
    epochs: int
    learning_rate: float
    warmup: float
    weight_decay: float
    b2: float
    dtype: Dtype
    checkpoint_every: int

    def __post_init__(self) -> None:
        require(
            "config",
            self,
            seed=(0, None),
            mask_ratio=(0, 1),
            batch_size=(1, None),
            epochs=(1, None),
            learning_rate=(0, None),
            warmup=(0, 1),
            weight_decay=(0, None),
            b2=(0, 1),
            checkpoint_every=(1, None),
        )
        if self.dtype not in typing.get_args(Dtype):
            raise ValueError(f"config.dtype is {self.dtype!r}: use one of {typing.get_args(Dtype)}")
