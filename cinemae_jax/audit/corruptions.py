"""What happens to a picture on its way to a detector, as transforms of both classes alike.

In: an RGB image, and the generator that the loader seeds by example id.  Out: another image.  They
come before everything that the detector itself does (``Corrupted``).
"""

import dataclasses
import io
from typing import Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from cinemae_jax.data.augment import BICUBIC, add_noise, brighten, recompress, rescale, resize_short
from cinemae_jax.data.decode import decode
from cinemae_jax.data.transforms import Transform


class Corruption(Protocol):
    """One change of known strength; its ``repr`` says all that it does."""

    @property
    def family(self) -> str:
        """Of which kind: corruptions of one kind make a curve."""

    @property
    def strength(self) -> float:
        """Where on that curve; in the family's own unit, not always rising with the damage."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The changed image, RGB."""


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """Another transform, on corrupted images.

    Attributes:
      then: the detector's own, for example ``MultiCrop``.
      corruption: what comes first.
    """

    then: Transform
    corruption: Corruption

    @property
    def shape(self) -> tuple[int, ...]:
        """Of every result."""
        return self.then.shape

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "..."]:
        """What ``then`` makes of the corrupted image."""
        image = self.corruption(decode(data), rng)
        buffer = io.BytesIO()
        image.save(buffer, "BMP")  # without loss, and cheap
        return self.then(buffer.getvalue(), rng)


# --- compression --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """A round trip through JPEG, 4:2:0."""

    quality: int
    family = "JPEG quality"

    @property
    def strength(self) -> float:
        return self.quality

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return recompress(image, self.quality)


@dataclasses.dataclass(frozen=True)
class WebP:
    """A round trip through lossy WebP."""

    quality: int
    family = "WebP quality"

    @property
    def strength(self) -> float:
        return self.quality

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=self.quality)
        return decode(buffer.getvalue())


@dataclasses.dataclass(frozen=True)
class SocialNetwork:
    """What sharing does, roughly: a longer side of at most ``side`` pixels, then JPEG 4:2:0.

    Networks differ, and change: these are round numbers, not those of any of them.
    """

    side: int = 1080
    quality: int = 80
    family = "social network"

    @property
    def strength(self) -> float:
        return self.quality

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return recompress(rescale(image, min(1.0, self.side / max(image.size))), self.quality)


# --- geometry -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Resize:
    """Bicubic, by a factor of the sides; what the detector's own resize does comes after."""

    scale: float
    family = "resize"

    @property
    def strength(self) -> float:
        return self.scale

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return rescale(image, self.scale)


@dataclasses.dataclass(frozen=True)
class CropPart:
    """A part anywhere in the image, its sides ``share`` of the image's."""

    share: float
    family = "crop"

    @property
    def strength(self) -> float:
        return self.share

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = (max(1, round(side * self.share)) for side in image.size)
        left = int(rng.integers(image.width - width + 1))
        top = int(rng.integers(image.height - height + 1))
        return image.crop((left, top, left + width, top + height))


@dataclasses.dataclass(frozen=True)
class DownUp:
    """Bicubic down by ``factor`` and up to the old size: what a generator's decoder resembles."""

    factor: float = 2.0
    family = "down and up"

    @property
    def strength(self) -> float:
        return self.factor

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return rescale(image, 1 / self.factor).resize(image.size, BICUBIC)


@dataclasses.dataclass(frozen=True)
class Shrink:
    """Down to a shorter side of ``side`` pixels and up to the old size: subject and style stay."""

    side: int = 64
    family = "shrink"

    @property
    def strength(self) -> float:
        return self.side

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return resize_short(image, self.side).resize(image.size, BICUBIC)


# --- values -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Blur:
    """Pillow's Gaussian blur (three box filters); ``sigma`` in pixels of the file."""

    sigma: float
    family = "blur"

    @property
    def strength(self) -> float:
        return self.sigma

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(self.sigma))


@dataclasses.dataclass(frozen=True)
class Noise:
    """Independent Gaussian noise of every value; ``sigma`` in grey levels of 255."""

    sigma: float
    family = "noise"

    @property
    def strength(self) -> float:
        return self.sigma

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return add_noise(image, self.sigma, rng)


@dataclasses.dataclass(frozen=True)
class Brightness:
    """All values times ``factor``, clipped."""

    factor: float
    family = "brightness"

    @property
    def strength(self) -> float:
        return self.factor

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return brighten(image, self.factor)


# The robustness suite.
SUITE: tuple[Corruption, ...] = (
    *map(Jpeg, (95, 85, 75, 60, 45, 30)),
    *map(WebP, (90, 75, 50)),
    SocialNetwork(),
    *map(Resize, (0.5, 0.75, 1.5, 2.0)),
    *map(CropPart, (0.9, 0.75, 0.5)),
    *map(Blur, (0.5, 1.0, 2.0)),
    *map(Noise, (2.0, 5.0, 10.0)),
    *map(Brightness, (0.6, 0.8, 1.25, 1.5)),
)

# What photographs are pushed through in the audit, to see whether it makes them "ai".
PUSHES: tuple[Corruption, ...] = (DownUp(2.0), Jpeg(75))
