"""Turns images into square crops of a fixed size.

Three policies work on a decoded image: ``resize_crop`` (resize the shorter side, then crop, as MAE
does), ``crop`` (native pixels) and ``multi_crop`` (several native crops per image).  The transforms
``Crop``, ``MultiCrop`` and ``RandomResizedCrop`` go from the bytes of a file to pixels.  A
``GlobalView`` cuts what a global encoder gets of the same image.  Nothing here sees a label or a
file format.  All randomness comes from the generator passed in, which the loader seeds with (seed,
view, example id).
"""

import dataclasses
import math
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from cinemae_jax.data.augment import BICUBIC, Augment, resize_short
from cinemae_jax.data.decode import RGB, decode

# --- policies: RGB image to array ---------------------------------------------------------------


def resize_crop(
    image: Image.Image, size: int, *, resize: int = 256, rng: np.random.Generator | None = None
) -> RGB:
    """``crop`` after a bicubic resize of the shorter side to ``resize`` pixels.

    MAE evaluates with ``size=224, resize=256``.
    """
    return crop(resize_short(image, resize), size, rng=rng)


def crop(image: Image.Image, size: int, *, rng: np.random.Generator | None = None) -> RGB:
    """A square of native pixels; sides shorter than ``size`` are padded by reflection.

    Args:
      image: RGB, any size.
      size: side of the result, pixels.
      rng: draws the position; None means the centre.

    Returns:
      (size, size, 3), C-contiguous.
    """
    rows, columns = _room(image.size, size)
    if rng is None:
        return _cut(image, size, round(rows / 2), round(columns / 2))
    return _cut(image, size, int(rng.integers(rows + 1)), int(rng.integers(columns + 1)))


def multi_crop(
    image: Image.Image, size: int, *, num_crops: int, rng: np.random.Generator | None = None
) -> UInt8[np.ndarray, "n s s 3"]:
    """Several squares of native pixels, which may overlap.

    Args:
      image: RGB, any size.
      size: side of each crop, pixels.
      num_crops: n; must be a square number if ``rng`` is None.
      rng: draws each position; None means an even grid from corner to corner, row by row (a grid
        of one is the centre crop).

    Raises:
      ValueError: if ``rng`` is None and ``num_crops`` is not a square number.
    """
    if rng is not None:
        return np.stack([crop(image, size, rng=rng) for _ in range(num_crops)])
    boxes = crop_boxes(image.size, size, num_crops=num_crops)
    return np.stack([reflect_to(np.asarray(image.crop(box)), size) for box in boxes])


def crop_boxes(
    image_size: tuple[int, int], size: int, *, num_crops: int
) -> list[tuple[int, int, int, int]]:
    """The (left, top, right, bottom) of the crops of ``multi_crop`` on its grid, inside the image.

    Args:
      image_size: width and height, pixels.
      size: side of each crop; boxes of a smaller image are smaller.
      num_crops: a square number.
    """
    rows, columns = (_grid(room, num_crops) for room in _room(image_size, size))
    return [_box(image_size, size, top, left) for top in rows for left in columns]


def reflect_to(array: Shaped[np.ndarray, "h w c"], size: int) -> Shaped[np.ndarray, "H W c"]:
    """Pads by reflection, evenly at both ends, until each side has at least ``size`` pixels."""
    height, width = array.shape[:2]
    rows, columns = max(0, size - height), max(0, size - width)
    if not rows and not columns:
        return array
    pad = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.pad(array, pad, mode="symmetric")


def _room(image_size: tuple[int, int], size: int) -> tuple[int, int]:
    """Number of rows and columns by which a crop can move."""
    width, height = image_size
    return max(0, height - size), max(0, width - size)


def _grid(room: int, num_crops: int) -> list[int]:
    count = math.isqrt(num_crops)
    if count < 1 or count * count != num_crops:
        raise ValueError(
            f"{num_crops} crops do not form a grid: use a square number (1, 4, 9, ...)"
        )
    if count == 1:
        return [round(room / 2)]
    return [round(i * room / (count - 1)) for i in range(count)]


def _cut(image: Image.Image, size: int, top: int, left: int) -> RGB:
    return reflect_to(np.asarray(image.crop(_box(image.size, size, top, left))), size)


def _box(image_size: tuple[int, int], size: int, top: int, left: int) -> tuple[int, int, int, int]:
    width, height = image_size
    return left, top, min(left + size, width), min(top + size, height)


# --- what a global encoder gets -----------------------------------------------------------------

ViewOf = Literal["crop", "whole"]


class Views(NamedTuple):
    """Pixels of an image for a masked autoencoder and for a global encoder; uint8.

    Attributes:
      image: the crops, (..., n, S, S, 3).
      global_image: one square for each crop or one for the whole image, (..., 1 or n, E, E, 3).
    """

    image: UInt8[np.ndarray, "..."]
    global_image: UInt8[np.ndarray, "..."]


# What a transform makes of an image: its crops, with the encoder's views where there is an encoder.
Pixels = UInt8[np.ndarray, "..."] | Views


@dataclasses.dataclass(frozen=True)
class GlobalView:
    """The squares that a global encoder gets of an image.

    Attributes:
      size: side of each square, pixels.
      of: ``crop``: every crop of the autoencoder, resized; ``whole``: the image as a whole, once.
      shortest_edge: of a whole image before the square is cut from it, pixels; 0 squashes the image
        to the square.
      interpolation: name of Pillow's filter, in lower case.
    """

    size: int
    of: ViewOf = "crop"
    shortest_edge: int = 0
    interpolation: str = "bicubic"

    def shape(self, num_crops: int) -> tuple[int, ...]:
        """Shape of every result for that many crops."""
        return (num_crops if self.of == "crop" else 1, self.size, self.size, 3)

    def cut(
        self,
        image: Image.Image,
        crops: UInt8[np.ndarray, "n s s 3"],
        rng: np.random.Generator | None = None,
    ) -> UInt8[np.ndarray, "m e e 3"]:
        """The squares, (n or 1, size, size, 3).

        Args:
          image: RGB, any size; read for ``whole``.
          crops: of the autoencoder; read for ``crop``.
          rng: draws the position of the square in a whole image; None means the centre.
        """
        square = (self.size, self.size)
        if self.of == "crop":
            return np.stack([self._resized(Image.fromarray(crop), square) for crop in crops])
        if not self.shortest_edge:
            return self._resized(image, square)[None]
        scale = self.shortest_edge / min(image.size)
        width, height = (max(self.shortest_edge, round(side * scale)) for side in image.size)
        resized = Image.fromarray(self._resized(image, (width, height)))
        return crop(resized, self.size, rng=rng)[None]

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> RGB:
        if image.size == size:
            return np.asarray(image)
        return np.asarray(image.resize(size, Image.Resampling[self.interpolation.upper()]))


class Transform(Protocol):
    """Bytes of a file to pixels."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every result."""

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Shape of what a global encoder gets; () if there is none."""

    def __call__(self, data: bytes, rng: np.random.Generator) -> Pixels:
        """Pixels of that shape; ``rng`` is the only source of randomness.

        Raises:
          DecodeError: if the image cannot be scored.
        """


def blank(transform: Transform, *count: int) -> Pixels:
    """Black pixels of the transform's shapes; ``count`` are axes in front."""
    image = np.zeros((*count, *transform.shape), np.uint8)
    if not transform.global_shape:
        return image
    return Views(image, np.zeros((*count, *transform.global_shape), np.uint8))


# --- transforms: bytes to array -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Crop:
    """A square crop after an optional resize; small images are padded by reflection.

    Attributes:
      size: side of the result, pixels.
      resize: resize the shorter side to this first (bicubic); 0 keeps native pixels.  MAE evaluates
        with ``resize=256, size=224``.
      random: draw the position of the crop; otherwise take the centre.
      flip: mirror half of the images.
      augment: applied to the image before everything else.
    """

    size: int
    resize: int = 256
    random: bool = False
    flip: bool = False
    augment: Augment = dataclasses.field(default_factory=Augment)
    global_shape: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        _check_resize(self.resize, self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every result."""
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
    """Several square crops per image, whose scores are averaged.

    Attributes:
      size: side of each crop, pixels.
      num_crops: n; must be a square number unless ``random`` is set.
      resize: resize the shorter side to this first (bicubic); 0 keeps native pixels.
      random: draw the positions; otherwise use a grid from corner to corner.
      flip: mirror half of the images, with all their crops.
      augment: applied to the image before everything else.
      view: what a global encoder gets; None if there is none.  The crops do not depend on it.
    """

    size: int
    num_crops: int = 4
    resize: int = 0
    random: bool = False
    flip: bool = False
    augment: Augment = dataclasses.field(default_factory=Augment)
    view: GlobalView | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        _check_resize(self.resize, self.size)
        if self.num_crops < 1:
            raise ValueError(f"num_crops must be 1 or more, is {self.num_crops}")
        if not self.random:
            _grid(0, self.num_crops)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the crops."""
        return (self.num_crops, self.size, self.size, 3)

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Shape of what the global encoder gets; () if there is none."""
        return self.view.shape(self.num_crops) if self.view else ()

    def __call__(self, data: bytes, rng: np.random.Generator) -> Pixels:
        """(num_crops, size, size, 3), C-contiguous; with ``view``, its squares beside them."""
        return self.cut(self.augment(decode(data), rng), rng)

    def cut(self, image: Image.Image, rng: np.random.Generator | None = None) -> Pixels:
        """The same of an image that is decoded and augmented.

        Args:
          image: RGB, any size.
          rng: needed with ``random`` or ``flip``.
        """
        resized = resize_short(image, self.resize) if self.resize else image
        place = rng if self.random else None
        crops = multi_crop(resized, self.size, num_crops=self.num_crops, rng=place)
        mirrored = self.flip and rng is not None and rng.random() < 0.5
        if self.view is None:
            return np.ascontiguousarray(crops[:, :, ::-1]) if mirrored else crops
        views = Views(crops, self.view.cut(image, crops, place))
        if mirrored:
            views = Views(*(np.ascontiguousarray(x[:, :, ::-1]) for x in views))
        return views


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """MAE's training crop: a random box, resized to a square, mirrored half of the time.

    Attributes:
      size: side of the result, pixels.
      scale: (minimum, maximum) share of the image's area, drawn uniformly.
      ratio: (minimum, maximum) aspect ratio (width / height) of the box, drawn log-uniformly.
      native: share of samples that are a random square of native pixels instead.
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    native: float = 0.0
    global_shape: ClassVar[tuple[int, ...]] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every result."""
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
        shrink = min(1.0, width / w, height / h)  # keeps the aspect ratio if the box does not fit
        w, h = min(w * shrink, width), min(h * shrink, height)
        left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
        return left, top, left + w, top + h


def _check_resize(resize: int, size: int) -> None:
    if resize and resize < size:
        raise ValueError(f"resize {resize} is below the crop size {size}")


def _maybe_flip(array: RGB, rng: np.random.Generator) -> RGB:
    return np.ascontiguousarray(array[:, ::-1]) if rng.random() < 0.5 else array
