"""Every image brought to the same size and JPEG quality, as if its file had been saved anew.

What is left of a detector's accuracy once format, size and quality no longer tell the classes
apart.  Traces of an earlier compression or resize may stay in the pixels; the aspect does.
"""

import dataclasses
import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cinemae_jax.data.augment import CHROMA_SUBSAMPLING, resize_short
from cinemae_jax.data.decode import MIN_SIDE, decode
from cinemae_jax.data.transforms import Transform

# Of the shorter side: at the greatest aspect the longer one still fits into a JPEG.
MAX_SIDE = 2000


def equalise(image: bytes | Image.Image, *, side: int, quality: int) -> bytes:
    """A JPEG file of an image, without what its old file said of itself.

    Args:
      image: content of a file, or RGB.
      side: shorter side of the result, pixels (bicubic, its aspect kept).
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
    """Raises ValueError unless files can have this shorter side and JPEG quality."""
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"side must be in [{MIN_SIDE}, {MAX_SIDE}], is {side}")
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be in [1, 100], is {quality}")


@dataclasses.dataclass(frozen=True)
class Equalise:
    """Another transform, on equalised files; adds no chance to it.

    Attributes:
      then: the detector's own, for example ``Crop``: it sees nothing but equalised files.
      side: shorter side, pixels.
      quality: of the JPEG.
    """

    then: Transform
    side: int = 256
    quality: int = 90

    def __post_init__(self) -> None:
        require_possible(self.side, self.quality)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of every result."""
        return self.then.shape

    def __call__(self, data: bytes, rng: np.random.Generator) -> UInt8[np.ndarray, "..."]:
        """What ``then`` makes of the equalised file."""
        return self.then(equalise(data, side=self.side, quality=self.quality), rng)
