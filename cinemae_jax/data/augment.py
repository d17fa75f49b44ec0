"""Changes to RGB images (resize, brightness, noise, JPEG), and training augmentation with them.

Nothing here sees a label or a file format.  All randomness comes from the generator passed in,
which the loader seeds with (seed, view, example id).
"""

import dataclasses
import io
import math

import numpy as np
from PIL import Image, ImageEnhance

from cinemae_jax.data.decode import MAX_PIXELS

BICUBIC = Image.Resampling.BICUBIC
# Of every JPEG written here, whatever its quality; phones and web services use it too.
CHROMA_SUBSAMPLING = "4:2:0"


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of training images, drawn alike for both classes.

    They keep a detector from learning the file format or size of one class, and from treating mild
    noise or a different exposure as a sign of either class.  Order of application: resize, shorter
    side, brightness, noise, JPEG.  Ranges are (minimum, maximum), drawn uniformly.  The defaults
    change nothing.

    Attributes:
      jpeg_probability: of a round trip through JPEG.
      jpeg_quality: range within 1 to 100.
      resize_probability: of a bicubic resize that keeps the aspect ratio.
      resize_scale: range of the scale factor.
      short_probability: of a bicubic resize to a given shorter side.
      short_side: range of the shorter side, pixels.
      together: use one draw for the three steps above: an image that skips the most probable step
        skips all three.  Otherwise each step has its own draw.
      brightness_probability: of a change of brightness.
      brightness: range of the factor applied to all values.
      noise_probability: of independent Gaussian noise on every value.
      noise: range of its standard deviation, in grey levels (0 to 255).
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
            self._refuse("jpeg_quality", "between 1 and 100")
        if not 0 < self.resize_scale[0] <= self.resize_scale[1] < math.inf:
            self._refuse("resize_scale", "above 0")
        if not 1 <= self.short_side[0] <= self.short_side[1]:
            self._refuse("short_side", "of 1 or more")
        if not 0 < self.brightness[0] <= self.brightness[1] < math.inf:
            self._refuse("brightness", "above 0")
        if not 0 <= self.noise[0] <= self.noise[1] < math.inf:
            self._refuse("noise", "of 0 or more")

    def _refuse(self, field: str, allowed: str) -> None:
        raise ValueError(
            f"augment.{field} must be (minimum, maximum) {allowed}, is {getattr(self, field)}"
        )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Returns the changed image.

        The number of random draws does not depend on their outcome; it is 0 if all probabilities
        are 0.
        """
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
    """Bicubic resize to a shorter side of ``side`` pixels; the longer side is rounded down."""
    width, height = image.size
    short = min(width, height)
    if short == side:
        return image
    return image.resize((side * width // short, side * height // short), BICUBIC)


def rescale(image: Image.Image, scale: float) -> Image.Image:
    """Bicubic resize by a factor, limited to the number of pixels that ``decode`` accepts."""
    width, height = image.size
    scale = min(scale, math.sqrt(MAX_PIXELS / (width * height)))
    return image.resize((max(1, round(width * scale)), max(1, round(height * scale))), BICUBIC)


def brighten(image: Image.Image, factor: float) -> Image.Image:
    """Multiplies all values by ``factor`` and clips them."""
    return ImageEnhance.Brightness(image).enhance(factor)


def add_noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Adds independent Gaussian noise to every value; ``sigma`` in grey levels (0 to 255)."""
    values = np.asarray(image, np.float32)
    noisy = np.round(values + np.float32(sigma) * rng.standard_normal(values.shape, np.float32))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def recompress(image: Image.Image, quality: int) -> Image.Image:
    """The image after a round trip through JPEG with ``CHROMA_SUBSAMPLING``."""
    buffer = io.BytesIO()
    # comment: otherwise Pillow copies the source file's, and fails if it is long
    image.save(buffer, "JPEG", quality=quality, subsampling=CHROMA_SUBSAMPLING, comment=b"")
    again = Image.open(buffer, formats=("JPEG",))  # `decode` would refuse a tiny rescaled image
    again.load()
    return again
