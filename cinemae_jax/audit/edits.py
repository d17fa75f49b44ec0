"""Corruptions that people and services apply: occlusion, colour, filters, screenshots, uploads.

As those of ``corruptions``: an RGB image and a random generator in, another image out.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageEnhance, ImageFilter

from cinemae_jax.data.augment import recompress, rescale

# --- parts of the image -------------------------------------------------------------------------

CELLS = 8  # squares along the shorter side


@dataclasses.dataclass(frozen=True)
class Occlude:
    """Random squares, an eighth of the shorter side wide, in the image's mean colour.

    Of the grid of whole squares, ``share`` are hidden, at least one.
    """

    share: float
    family = "occlusion"

    @property
    def strength(self) -> float:
        return self.share

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        values = np.array(image)
        side = max(1, min(image.size) // CELLS)
        rows, columns = (length // side for length in values.shape[:2])
        hidden = rng.permutation(rows * columns)[: max(1, round(self.share * rows * columns))]
        colour = values.mean(axis=(0, 1)).round().astype(np.uint8)
        for cell in hidden:
            top, left = (side * int(place) for place in divmod(cell, columns))
            values[top : top + side, left : left + side] = colour
        return Image.fromarray(values)


# --- colour -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Distance of all values from the mean grey level times ``factor``, clipped."""

    factor: float
    family = "contrast"

    @property
    def strength(self) -> float:
        return self.factor

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return ImageEnhance.Contrast(image).enhance(self.factor)


@dataclasses.dataclass(frozen=True)
class Saturation:
    """Distance of all colours from grey times ``factor``; 0 is a black-and-white image."""

    factor: float
    family = "saturation"

    @property
    def strength(self) -> float:
        return self.factor

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return ImageEnhance.Color(image).enhance(self.factor)


# Grey levels in and out of R, G and B, joined by straight lines.  The shapes are those of common
# filters, not the curves of any one application.
IN = (0, 64, 128, 192, 255)
TONES: dict[str, tuple[tuple[int, ...], ...]] = {
    "vivid": ((0, 48, 128, 208, 255),) * 3,  # an S: darker shadows, lighter highlights
    "faded": ((40, 88, 136, 184, 225),) * 3,  # lifted blacks, lowered whites
    "warm": ((0, 76, 146, 208, 255), (0, 64, 130, 194, 255), (0, 52, 110, 172, 235)),
    "cool": ((0, 52, 112, 176, 240), (0, 64, 128, 192, 255), (0, 78, 146, 206, 255)),
}


@dataclasses.dataclass(frozen=True)
class ToneCurve:
    """A photo filter: a curve for each channel; ``name`` is one of ``TONES``."""

    name: str
    family = "tone curve"

    @property
    def strength(self) -> float:
        return list(TONES).index(self.name)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        levels = np.arange(256)
        curves = [np.interp(levels, IN, out).round().astype(int) for out in TONES[self.name]]
        return image.point(np.concatenate(curves).tolist())


# Mean and deviation in Y, Cb, Cr of eight bundled photographs, in grey levels.
PALETTES: Float[np.ndarray, "n 2 3"] = np.array(
    [
        [[124, 136, 120], [61, 22, 15]],
        [[112, 117, 129], [67, 13, 10]],
        [[154, 125, 128], [24, 15, 11]],
        [[125, 120, 122], [72, 10, 6]],
        [[124, 97, 151], [32, 25, 21]],
        [[130, 135, 120], [63, 13, 11]],
        [[106, 121, 126], [51, 12, 5]],
        [[130, 121, 122], [55, 28, 22]],
    ],
    np.float32,
)
FLAT = 1.0  # grey levels: least deviation that is divided by


@dataclasses.dataclass(frozen=True)
class ColourTransfer:
    """Mean and deviation of Y, Cb and Cr moved to those of another photograph (Reinhard 2001).

    ``share`` of the way; 1 takes them over, as adaptive instance normalisation does.
    """

    share: float
    family = "colour transfer"

    @property
    def strength(self) -> float:
        return self.share

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        values = np.asarray(image.convert("YCbCr"), np.float32)
        mean, deviation = values.mean(axis=(0, 1)), values.std(axis=(0, 1))
        new_mean, new_deviation = PALETTES[rng.integers(len(PALETTES))]
        moved = (values - mean) / np.maximum(deviation, FLAT) * new_deviation + new_mean
        mixed = np.clip(np.round(values + self.share * (moved - values)), 0, 255)
        pixels: UInt8[np.ndarray, "h w 3"] = mixed.astype(np.uint8)
        return Image.fromarray(pixels, "YCbCr").convert("RGB")


# --- what services do ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Screenshot:
    """An image shown at ``scale`` on a screen of another gamma, sharpened and saved lossless."""

    scale: float = 0.8
    gamma: float = 1.1
    family = "screenshot"

    @property
    def strength(self) -> float:
        return self.scale

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        curve = (255 * (np.arange(256) / 255) ** self.gamma).round().astype(int).tolist()
        shown = rescale(image, self.scale).point(curve * 3)
        return shown.filter(ImageFilter.UnsharpMask(radius=1, percent=60, threshold=0))


@dataclasses.dataclass(frozen=True)
class Uploads:
    """Uploaded, saved and uploaded again: each time a longer side of at most ``side``, then JPEG.

    Services differ and change: these are round numbers, not those of any one service.  Before the
    second upload the image loses a border of one pixel, as by a careless crop, which shifts the
    grid of the JPEG blocks.
    """

    side: int
    quality: int
    family = "two uploads"

    @property
    def strength(self) -> float:
        return self.quality

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        first = self._upload(image)
        width, height = first.size
        return self._upload(first.crop((1, 1, max(2, width - 1), max(2, height - 1))))

    def _upload(self, image: Image.Image) -> Image.Image:
        return recompress(rescale(image, min(1.0, self.side / max(image.size))), self.quality)
