"""What pictures meet on their way: changes of an RGB image, and their random use in training.

Nothing here knows a label or a file's format; all chance comes from the generator, which the loader
seeds by (seed, epoch, example id).
"""

import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageEnhance

from cinemae_jax.data.decode import MAX_PIXELS

BICUBIC = Image.Resampling.BICUBIC
# Of every JPEG made here, at every quality: what phones and web services write.
CHROMA_SUBSAMPLING = "4:2:0"


@dataclasses.dataclass(frozen=True)
class Augment:
    """Changes training images of both classes alike, each change with a probability.

    So that a detector can learn neither one class's file format and size, nor that a little noise
    or another exposure makes a picture the other class.  In the order of the attributes, JPEG last.
    The defaults change nothing.

    Attributes:
      jpeg_probability: of a round trip through JPEG.
      jpeg_quality: least and greatest quality, 1 to 100, drawn uniformly.
      resize_probability: of a bicubic resize of the whole image, its aspect kept.
      resize_scale: least and greatest factor of its sides, drawn uniformly.
      short_probability: of a bicubic resize to a shorter side, after the other one.
      short_side: least and greatest, pixels, drawn uniformly.
      together: one draw decides on the three above, so that an image without the most probable step
        has gone through none; else each has its own.
      brightness_probability: of another brightness.
      brightness: least and greatest factor of all values, drawn uniformly.
      noise_probability: of independent Gaussian noise of all values.
      noise: least and greatest standard deviation, grey levels of 255, drawn uniformly.
    """

    jpeg_probability: float = 0.0
    jpeg_quality: tuple[int, int] = (60, 100)
    resize_probability: float = 0.0
    resize_scale: tuple[float, float] = (0.5, 1.0)
    short_probability: float = 0.0
    short_side: tuple[int, int] = (256, 256)
    together: bool = False
    brightness_probability: float = 0.0
    brightness: tuple[float, float] = (0.6, 1.5)
    noise_probability: float = 0.0
    noise: tuple[float, float] = (0.0, 5.0)

    def __post_init__(self) -> None:
        for change in ("jpeg", "resize", "short", "brightness", "noise"):
            value = getattr(self, f"{change}_probability")
            if not 0 <= value <= 1:
                raise ValueError(
                    f"augment.{change}_probability must be between 0 and 1, is {value}"
                )
        if not 1 <= self.jpeg_quality[0] <= self.jpeg_quality[1] <= 100:
            raise ValueError(f"augment.jpeg_quality must rise in [1, 100], is {self.jpeg_quality}")
        if not 0 < self.resize_scale[0] <= self.resize_scale[1] < math.inf:
            raise ValueError(f"augment.resize_scale must rise above 0, is {self.resize_scale}")
        if not 1 <= self.short_side[0] <= self.short_side[1]:
            raise ValueError(f"augment.short_side must rise from 1, is {self.short_side}")
        if not 0 < self.brightness[0] <= self.brightness[1] < math.inf:
            raise ValueError(f"augment.brightness must rise above 0, is {self.brightness}")
        if not 0 <= self.noise[0] <= self.noise[1] < math.inf:
            raise ValueError(f"augment.noise must rise from 0, is {self.noise}")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Draws the same numbers whatever the outcome; none where all probabilities are 0."""
        on_the_web = self.resize_probability, self.jpeg_probability, self.short_probability
        in_the_camera = self.brightness_probability, self.noise_probability
        if not any((*on_the_web, *in_the_camera)):
            return image
        draws = rng.random(3)
        resized, compressed, shortened = (draws[0] if self.together else draws) < on_the_web
        scale = rng.uniform(*self.resize_scale)
        quality = int(rng.integers(*self.jpeg_quality, endpoint=True))
        side = int(rng.integers(*self.short_side, endpoint=True))
        brightened, noisy = rng.random(2) < in_the_camera
        factor, sigma = rng.uniform(*self.brightness), rng.uniform(*self.noise)
        grain = np.random.default_rng(rng.integers(2**63))
        if resized:
            image = rescale(image, scale)
        if shortened:
            image = resize_short(image, side)
        if brightened:
            image = brighten(image, factor)
        if noisy:
            image = add_noise(image, sigma, grain)
        return recompress(image, quality) if compressed else image


def resize_short(image: Image.Image, side: int) -> Image.Image:
    """Bicubic, so that the shorter side is ``side``; the longer one is rounded down."""
    width, height = image.size
    short = min(width, height)
    if short == side:
        return image
    return image.resize((side * width // short, side * height // short), BICUBIC)


def rescale(image: Image.Image, scale: float) -> Image.Image:
    """Bicubic, by a factor of the sides; never to more pixels than ``decode`` admits."""
    width, height = image.size
    scale = min(scale, math.sqrt(MAX_PIXELS / (width * height)))
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), BICUBIC)


def brighten(image: Image.Image, factor: float) -> Image.Image:
    """All values times ``factor``, clipped."""
    return ImageEnhance.Brightness(image).enhance(factor)


def add_noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Independent Gaussian noise of every value; ``sigma`` in grey levels of 255."""
    values = np.asarray(image, np.float32)
    noisy = np.round(values + np.float32(sigma) * rng.standard_normal(values.shape, np.float32))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def recompress(image: Image.Image, quality: int) -> Image.Image:
    """What is left after a round trip through JPEG with ``CHROMA_SUBSAMPLING``."""
    buffer = io.BytesIO()
    # comment: else Pillow passes on that of the source file, and fails where it is long
    image.save(buffer, "JPEG", quality=quality, subsampling=CHROMA_SUBSAMPLING, comment=b"")
    again = Image.open(buffer, formats=("JPEG",))  # no `decode`: a rescaled image may be tiny
    again.load()
    return again
