"""Saves every image with the same shorter side and JPEG quality.

Format, size and quality no longer tell the classes apart then; the aspect ratio still may, and so
may traces that an earlier compression or resize left in the pixels.
"""

import dataclasses
import io

import numpy as np
from PIL import Image

from cinemae_jax.data.augment import CHROMA_SUBSAMPLING, resize_short
from cinemae_jax.data.decode import MIN_SIDE, decode
from cinemae_jax.data.transforms import Pixels, Transform

# Largest shorter side with which every aspect ratio that we read still fits into a JPEG.
MAX_SIDE = 2000


def equalise(image: bytes | Image.Image, *, side: int, quality: int) -> bytes:
    """A JPEG file of an image, without any metadata of the old file.

    Args:
      image: content of a file, or an RGB image.
      side: shorter side of the result in pixels (bicubic, aspect ratio kept).
      quality: 1 to 100, with the chroma subsampling of ``augment.recompress``.

    Raises:
      DecodeError: if the file cannot be read.
    """
    if not isinstance(image, Image.Image):
        image = decode(image)
    bare = Image.fromarray(np.asarray(resize_short(image, side)))
    buffer = io.BytesIO()
    bare.save(buffer, "JPEG", quality=quality, subsampling=CHROMA_SUBSAMPLING)
    return buffer.getvalue()


def require_possible(side: int, quality: int) -> None:
    """Raises ValueError if files cannot have this shorter side and JPEG quality."""
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"side must be in [{MIN_SIDE}, {MAX_SIDE}], is {side}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in [1, 100], is {quality}")


@dataclasses.dataclass(frozen=True)
class Equalise:
    """A transform that equalises files first, without any randomness.

    Attributes:
      then: the detector's own transform, for example ``Crop``; it sees only equalised files.
      side: shorter side in pixels.
      quality: JPEG quality.
    """

    then: Transform
    side: int = 256
    quality: int = 90

    def __post_init__(self) -> None:
        require_possible(self.side, self.quality)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every result."""
        return self.then.shape

    @property
    def global_shape(self) -> tuple[int, ...]:
        """Shape of what a global encoder gets; () if there is none."""
        return self.then.global_shape

    def __call__(self, data: bytes, rng: np.random.Generator) -> Pixels:
        """Equalises the file and applies ``then``."""
        return self.then(equalise(data, side=self.side, quality=self.quality), rng)
