"""Decoded images to squares of a fixed size.

Three policies: ``resize_crop`` (shorter side, then crop: MAE's own), ``crop`` (native pixels) and
``multi_crop`` (several native crops an image).  ``Crop``, ``MultiCrop`` and ``RandomResizedCrop``
go from the bytes of a file to pixels by them.  Nothing here knows a label or a file's format: all
chance comes from the generator, which the loader seeds by (seed, epoch, example id).
"""

import dataclasses
import math
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cinemae_jax.data.augment import BICUBIC, Augment, resize_short
from cinemae_jax.data.decode import RGB, decode

# --- policies: an RGB image to arrays -----------------------------------------------------------


def resize_crop(
    image: Image.Image, size: int, *, resize: int = 256, rng: np.random.Generator | None = None
) -> RGB:
    """A square crop after a bicubic resize of the shorter side; ``crop`` has the arguments.

    MAE's own evaluation is ``size=224, resize=256``.
    """
    return crop(resize_short(image, resize), size, rng=rng)


def crop(image: Image.Image, size: int, *, rng: np.random.Generator | None = None) -> RGB:
    """A square of native pixels; sides that are too short are reflected at both ends.

    Args:
      image: RGB, any size.
      size: side of the result, pixels.
      rng: places the crop; None takes the centre.

    Returns:
      (size, size, 3), C-contiguous.
    """
    rows, columns = _room(image, size)
    if rng is None:
        return _cut(image, size, round(rows / 2), round(columns / 2))
    return _cut(image, size, int(rng.integers(rows + 1)), int(rng.integers(columns + 1)))


def multi_crop(
    image: Image.Image, size: int, *, num_crops: int, rng: np.random.Generator | None = None
) -> UInt8[np.ndarray, "n s s 3"]:
    """Several squares of native pixels, which may overlap.

    Args:
      image: RGB, any size.
      size: side of the results, pixels.
      num_crops: n; without a generator a square number.
      rng: places the crops one by one; None sets them on a grid, evenly from corner to corner and
        row by row (a grid of one is the centre crop).

    Raises:
      ValueError: if a grid is asked for whose number of crops is no square.
    """
    if rng is not None:
        return np.stack([crop(image, size, rng=rng) for _ in range(num_crops)])
    rows, columns = (_grid(room, num_crops) for room in _room(image, size))
    return np.stack([_cut(image, size, top, left) for top in rows for left in columns])


def reflect_to(array: RGB, size: int) -> RGB:
    """Pads an array by reflection, evenly on both sides, until no side is below ``size``."""
    height, width = array.shape[:2]
    rows, columns = max(0, size - height), max(0, size - width)
    if not rows and not columns:
        return array
    pad = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.pad(array, pad, mode="symmetric")


def _room(image: Image.Image, size: int) -> tuple[int, int]:
    """Rows and columns by which a crop can move."""
    return max(0, image.height - size), max(0, image.width - size)


def _grid(room: int, num_crops: int) -> list[int]:
    count = math.isqrt(num_crops)
    if count < 1 or count * count != num_crops:
        raise ValueError(f"a grid of {num_crops} crops: use a square number (1, 4, 9, ...)")
    if count == 1:
        return [round(room / 2)]
    return [round(i * room / (count - 1)) for i in range(count)]


def _cut(image: Image.Image, size: int, top: int, left: int) -> RGB:
    box = (left, top, min(left + size, image.width), min(top + size, image.height))
    return reflect_to(np.asarray(image.crop(box)), size)


# --- transforms: bytes to arrays ----------------------------------------------------------------


class Transform(Protocol):
    """Bytes of a file to pixels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of every result."""

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "..."]:
        """uint8 of that shape; all chance comes from the generator.

        Raises:
          DecodeError: if the image cannot be scored.
        """


@dataclasses.dataclass(frozen=True)
class Crop:
    """A square crop, after an optional resize; small images are reflected at the border.

    Attributes:
      size: side of the result, pixels.
      resize: shorter side to bring the image to first (bicubic); 0 keeps native pixels.  MAE's
        own evaluation is ``resize=256, size=224``.
      random: place the crop at random instead of in the centre.
      flip: mirror half of the images.
      augment: what is done to the image before all this.
    """

    size: int
    resize: int = 256
    random: bool = False
    flip: bool = False
    augment: Augment = dataclasses.field(default_factory=Augment)

    def __post_init__(self) -> None:
        _check_resize(self.resize, self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of every result."""
        return (self.size, self.size, 3)

    def __call__(self, data: bytes, rng: np.random.Generator) -> RGB:
        """(size, size, 3), C-contiguous."""
        image = self.augment(decode(data), rng)
        place = rng if self.random else None
        if self.resize:
            array = resize_crop(image, self.size, resize=self.resize, rng=place)
        else:
            array = crop(image, self.size, rng=place)
        return _maybe_flip(array, rng) if self.flip else array


@dataclasses.dataclass(frozen=True)
class MultiCrop:
    """Several square crops of one image, for scores that are averaged.

    Attributes:
      size: side of the results, pixels.
      num_crops: n; a square number unless random.
      resize: shorter side to bring the image to first (bicubic); 0 keeps native pixels.
      random: place the crops at random instead of on a grid from corner to corner.
      flip: mirror half of the images, all crops of one alike.
      augment: what is done to the image before all this.
    """

    size: int
    num_crops: int = 4
    resize: int = 0
    random: bool = False
    flip: bool = False
    augment: Augment = dataclasses.field(default_factory=Augment)

    def __post_init__(self) -> None:
        _check_resize(self.resize, self.size)
        if self.num_crops < 1:
            raise ValueError(f"num_crops must be 1 or more, is {self.num_crops}")
        if not self.random:
            _grid(0, self.num_crops)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of every result."""
        return (self.num_crops, self.size, self.size, 3)

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "n s s 3"]:
        """(num_crops, size, size, 3), C-contiguous."""
        image = self.augment(decode(data), rng)
        if self.resize:
            image = resize_short(image, self.resize)
        place = rng if self.random else None
        crops = multi_crop(image, self.size, num_crops=self.num_crops, rng=place)
        if self.flip and rng.random() < 0.5:
            crops = np.ascontiguousarray(crops[:, :, ::-1])
        return crops


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, brought to a square, and mirrored half of the time (MAE).

    Attributes:
      size: side of the result, pixels.
      scale: least and largest share of the image's area.
      ratio: least and largest aspect ratio (width / height) of the part, drawn log-uniformly.
      native: share of the samples that are a random square of unresampled pixels instead.
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    native: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of every result."""
        return (self.size, self.size, 3)

    def __call__(self, data: bytes, rng: np.random.Generator) -> RGB:
        """(size, size, 3), C-contiguous."""
        image = decode(data)
        if self.native and rng.random() < self.native:
            return _maybe_flip(crop(image, self.size, rng=rng), rng)
        box = self._box(image.size, rng)
        image = image.resize((self.size, self.size), BICUBIC, box=box)
        return _maybe_flip(np.asarray(image), rng)

    def _box(
        self, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[float, float, float, float]:
        width, height = size
        area = width * height * rng.uniform(*self.scale)
        aspect = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        shrink = min(1.0, width / w, height / h)  # keeps the aspect where the part does not fit
        w, h = min(w * shrink, width), min(h * shrink, height)
        left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
        return left, top, left + w, top + h


def _check_resize(resize: int, size: int) -> None:
    if resize and resize < size:
        raise ValueError(f"resize {resize} is below the crop size {size}")


def _maybe_flip(array: RGB, rng: np.random.Generator) -> RGB:
    return np.ascontiguousarray(array[:, ::-1]) if rng.random() < 0.5 else array
