"""Bytes of an image file to uint8 RGB of a fixed size; the only module that touches Pillow.

Every failure is a ``DecodeError`` with a reason fit to be shown beside the file's name.
"""

import dataclasses
import io
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 80_000_000
"""Above this an image is refused before it is decoded; Pillow's own bomb limit is at 89 million."""
MAX_ASPECT = 32
"""Longest side over shortest: a resize of a longer strip would need gigabytes."""
MIN_SIDE = 16
"""Shortest side, pixels, of an image worth a score: one patch of the official models."""
BACKGROUND = (255, 255, 255)
"""Transparent pixels are laid over white."""

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif"}
)

RGB = UInt8[np.ndarray, "h w 3"]


class DecodeError(ValueError):
    """An image that cannot be scored; the message is the reason, without the file's name."""


Transform = Callable[[bytes, np.random.Generator], RGB]
"""Bytes to an array of fixed size; all chance comes from the generator."""


def decode(data: bytes) -> Image.Image:
    """An RGB image with its EXIF orientation applied; the first frame of an animation.

    Alpha is laid over ``BACKGROUND``; 16-bit grey is scaled to 8 bits.

    Raises:
      DecodeError: if the bytes are empty, no image, damaged, too large or too small.
    """
    if not data:
        raise DecodeError("empty file")
    try:
        image = Image.open(io.BytesIO(data))
        _check_size(image.size)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except DecodeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DecodeError(f"too large to decode: {error}") from error
    except UnidentifiedImageError as error:
        raise DecodeError("not an image, or of an unsupported format") from error
    except Exception as error:  # Pillow's codecs raise almost anything on damaged input
        raise DecodeError(f"damaged image ({type(error).__name__}: {error})") from error


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise DecodeError(f"too large: {width} x {height} is above {MAX_PIXELS:,} pixels")
    if min(size) < MIN_SIDE:
        raise DecodeError(f"too small: {width} x {height} has a side below {MIN_SIDE} pixels")
    if max(size) > MAX_ASPECT * min(size):
        raise DecodeError(f"too narrow: {width} x {height} has sides of above {MAX_ASPECT} to 1")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no stated range")
    if image.mode.startswith("I"):  # 16-bit grey, which a plain conversion would clip to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        over = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(over, rgba).convert("RGB")
    return image.convert("RGB")


def resize_short(image: Image.Image, side: int) -> Image.Image:
    """Bicubic, so that the shorter side is ``side``; the longer one is rounded down."""
    width, height = image.size
    short = min(width, height)
    if short == side:
        return image
    size = (side * width // short, side * height // short)
    return image.resize(size, Image.Resampling.BICUBIC)


def reflect_to(array: RGB, size: int) -> RGB:
    """Pads an array by reflection, evenly on both sides, until no side is below ``size``."""
    height, width = array.shape[:2]
    rows, columns = max(0, size - height), max(0, size - width)
    if not rows and not columns:
        return array
    pad = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
    return np.pad(array, pad, mode="symmetric")


@dataclasses.dataclass(frozen=True)
class Crop:
    """A square crop, after an optional resize; small images are reflected at the border.

    Attributes:
      size: side of the result, pixels.
      resize: shorter side to bring the image to first (bicubic); 0 keeps native pixels.  MAE's
        own evaluation is ``resize=256, size=224``.
      random: place the crop at random instead of in the centre.
      flip: mirror half of the images.
    """

    size: int
    resize: int = 256
    random: bool = False
    flip: bool = False

    def __post_init__(self) -> None:
        if 0 < self.resize < self.size:
            raise ValueError(f"resize {self.resize} is below the crop size {self.size}")

    def __call__(self, data: bytes, rng: np.random.Generator) -> RGB:
        image = decode(data)
        if self.resize:
            image = resize_short(image, self.resize)
        array = reflect_to(np.asarray(image), self.size)
        room = (array.shape[0] - self.size, array.shape[1] - self.size)
        if self.random:
            top, left = (int(rng.integers(r + 1)) for r in room)
        else:
            top, left = (round(r / 2) for r in room)
        array = array[top : top + self.size, left : left + self.size]
        if self.flip and rng.random() < 0.5:
            array = array[:, ::-1]
        return np.ascontiguousarray(array)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of the image, brought to a square, and mirrored half of the time (MAE).

    Attributes:
      size: side of the result, pixels.
      scale: least and largest share of the image's area.
      ratio: least and largest aspect ratio (width / height) of the part, drawn log-uniformly.
    """

    size: int
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __call__(self, data: bytes, rng: np.random.Generator) -> RGB:
        image = decode(data)
        box = self._box(image.size, rng)
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=box)
        array = np.asarray(image)
        return np.ascontiguousarray(array[:, ::-1]) if rng.random() < 0.5 else array

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


def encode_png(array: RGB) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()
