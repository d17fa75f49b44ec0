"""What happens to images before they reach a detector: compression, scaling, noise, and so on.

In: an RGB image, and a random generator that the loader seeds by example id.  Out: another image.
Corruptions apply to both classes, before the detector's own transform (``Corrupted``).
"""

import dataclasses
import io
from typing import Protocol

import numpy as np
from PIL import Image, ImageFilter

from cinemae_jax.audit.edits import (
    TONES,
    ColourTransfer,
    Contrast,
    Occlude,
    Saturation,
    Screenshot,
    ToneCurve,
    Uploads,
)
from cinemae_jax.data.augment import BICUBIC, add_noise, brighten, recompress, rescale, resize_short
from cinemae_jax.data.decode import decode
from cinemae_jax.data.transforms import Pixels, Transform


class Corruption(Protocol):
    """One change of known strength; its ``repr`` names it in tables and reports."""

    @property
    def family(self) -> str:
        """Corruptions of one family form a curve."""

    @property
    def strength(self) -> float:
        """Position on that curve, in the family's unit; more is not always more damage."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The changed image, RGB."""


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """A transform that corrupts images first.

    Attributes:
      then: the detector's own transform, for example ``MultiCrop``.
      corruption: applied before it.
    """

    then: Transform
    corruption: Corruption

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every result."""
        return self.then.shape

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Shape of what a global encoder gets; () if there is none."""
        return self.then.global_shape

    def __call__(self, data: bytes, rng: np.random.Generator) -> Pixels:
        """Decodes, corrupts, and applies ``then``."""
        image = self.corruption(decode(data), rng)
        buffer = io.BytesIO()
        image.save(buffer, "BMP")  # lossless and cheap
        return self.then(buffer.getvalue(), rng)


# --- compression --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Jpeg:
    """JPEG compression, 4:2:0."""

    quality: int
    family = "JPEG quality"

    @property
    def strength(self) -> float:
        return self.quality

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return recompress(image, self.quality)


@dataclasses.dataclass(frozen=True)
class WebP:
    """Lossy WebP compression."""

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
    """Roughly what sharing does: a longer side of at most ``side`` pixels, then JPEG 4:2:0.

    Networks differ and change: these are round numbers, not those of any one network.
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
    """Bicubic, both sides by ``scale``; the detector's own resize comes after it."""

    scale: float
    family = "resize"

    @property
    def strength(self) -> float:
        return self.scale

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return rescale(image, self.scale)


@dataclasses.dataclass(frozen=True)
class CropPart:
    """A crop at a random place; its sides are ``share`` of the image's."""

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
    """Bicubic down by ``factor`` and up to the old size, similar to a generator's decoder."""

    factor: float = 2.0
    family = "down and up"

    @property
    def strength(self) -> float:
        return self.factor

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return rescale(image, 1 / self.factor).resize(image.size, BICUBIC)


@dataclasses.dataclass(frozen=True)
class Shrink:
    """Down to a shorter side of ``side`` pixels and up to the old size; keeps subject and style."""

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
    """Pillow's Gaussian blur (three box filters); ``sigma`` in pixels of the decoded image."""

    sigma: float
    family = "blur"

    @property
    def strength(self) -> float:
        return self.sigma

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(self.sigma))


@dataclasses.dataclass(frozen=True)
class Noise:
    """Independent Gaussian noise on every value; ``sigma`` in grey levels of 255."""

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
    *map(Occlude, (0.1, 0.3)),
    *map(Contrast, (0.6, 1.5)),
    *map(Saturation, (0.0, 0.5, 1.6)),
    *map(ToneCurve, TONES),
    ColourTransfer(1.0),
    Screenshot(),
    *(Uploads(*one) for one in ((1600, 85), (1080, 75), (720, 60))),
)

# Changes of photographs that have nothing to do with generation: do verdicts move to AI?
PUSHES: tuple[Corruption, ...] = (DownUp(2.0), Jpeg(75))
