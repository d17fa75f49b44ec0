"""Typed settings: the sections of a config file, checked field by field.

Config files (``configs/*.py``) state every field; these classes say what each means.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from cinemae_jax.data.decode import Crop
from cinemae_jax.model.config import DetectorConfig


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Which images, and how they become squares.

    Attributes:
      root: folder of the data set, in GenImage's layout.
      train_generators: whose ``train`` split the head learns from.
      test_generators: whose ``val`` split is scored; empty means all.
      holdout: share of the training images kept for validation, picked by their ids.
      resize: shorter side before cropping, pixels; 0 keeps native pixels.
      random_crop, flip: of training images, of both classes alike.
      num_threads: decoding threads.
    """

    root: str
    train_generators: tuple[str, ...]
    test_generators: tuple[str, ...]
    holdout: float
    resize: int
    random_crop: bool
    flip: bool
    num_threads: int

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("config.data.root is empty: name the folder of the data set")
        if not self.train_generators:
            raise ValueError("config.data.train_generators is empty: name at least one generator")
        if not 0 < self.holdout < 1:
            raise ValueError(f"config.data.holdout must lie between 0 and 1, is {self.holdout}")

    def eval_transform(self, size: int) -> Crop:
        """Centre crop: the same for every image, every time."""
        return Crop(size, resize=self.resize)

    def train_transform(self, size: int) -> Crop:
        return Crop(size, resize=self.resize, random=self.random_crop, flip=self.flip)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """Optimisation of the head.

    Attributes:
      batch_size: images a step, over all devices.
      epochs: passes over the training images.
      learning_rate: at the peak.
      warmup: share of the steps with rising learning rate.
      weight_decay: of all kernels of the head.
      global_weight_decay: in fusion ``logit``, of the pathway that reads f_global alone.
      standardize_images: number of training images that the head's inputs are standardised by.
      checkpoint_every: steps; besides, every epoch ends with a validated checkpoint.
    """

    batch_size: int
    epochs: int
    learning_rate: float
    warmup: float
    weight_decay: float
    global_weight_decay: float
    standardize_images: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "standardize_images", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"config.train.{name} must be positive, is {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """How results are measured.

    Attributes:
      batch_size: images at a time, over all devices.
      bootstrap: resamples of every interval; 0 for none.
      confidence: of the intervals, for example 0.95.
    """

    batch_size: int
    bootstrap: int
    confidence: float


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole config file of train and evaluate."""

    seed: int
    backbone: str
    detector: DetectorConfig
    data: DataSettings
    train: TrainSettings
    eval: EvalSettings


def read(config: Mapping[str, Any]) -> Settings:
    """Checks a config (a ConfigDict or its ``to_dict``) and makes it typed.

    Raises:
      ValueError: naming the first field that is missing, unknown, of the wrong type or impossible.
    """
    return _read(Settings, config, "config")


def _read(kind: Any, section: Mapping[str, Any], name: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(section) - set(hints))
    missing = sorted(set(hints) - set(section))
    if unknown or missing:
        problems = [f"{name}.{field} is not a setting" for field in unknown]
        problems += [f"{name}.{field} is missing" for field in missing]
        raise ValueError("; ".join(problems) + f" (there are: {', '.join(hints)})")
    values = {
        field: _read(hint, section[field], f"{name}.{field}")
        if dataclasses.is_dataclass(hint)
        else _typed(hint, section[field], f"{name}.{field}")
        for field, hint in hints.items()
    }
    return kind(**values)


def _typed(hint: Any, value: Any, name: str) -> Any:
    origin = typing.get_origin(hint)
    if origin is tuple:
        if isinstance(value, str) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{name} must be a tuple of strings, is {value!r}")
        return tuple(value)
    if origin is typing.Literal:
        return value  # the class says what is allowed
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{name} must be {hint.__name__}, is {value!r}")
    return value
