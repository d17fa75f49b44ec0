"""Turns a decoded Pillow image of any mode into 8-bit RGB: depth, polarity, transparency."""

import functools

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from cinemae_jax.data.refusal import UNSUPPORTED, DecodeError

# Colour behind transparent pixels.
BACKGROUND = (255, 255, 255)
BAND = 1024  # rows composited at a time, which limits the memory for large images
# TIFF tags
BITS, PHOTOMETRIC, MOST, SAMPLE_FORMAT = 258, 262, 281, 339
WHITE_IS_ZERO, SIGNED = 0, 2


def to_rgb(image: Image.Image, *, png_bits: int = 8) -> tuple[Image.Image, bool]:
    """The image as RGB over ``BACKGROUND``, and whether any pixel is transparent.

    Args:
      image: decoded.
      png_bits: bits per channel of a PNG, which Pillow's mode does not show.

    Raises:
      DecodeError: if the pixels have no stated range.
    """
    tags = getattr(image, "tag_v2", {})
    if SIGNED in _tuple(tags.get(SAMPLE_FORMAT)):
        raise _no_range("signed pixels have no stated range")
    if image.mode == "I":
        raise _no_range("32-bit pixels have no stated range")
    if image.mode == "F":
        image = _of_floats(np.asarray(image), inverted=tags.get(PHOTOMETRIC) == WHITE_IS_ZERO)
    elif image.mode.startswith("I;16"):
        image = _to_8_bits(image, tags)
    elif image.format == "PNG":
        _scale_colour_key(image, png_bits)
    if image.has_transparency_data and not _is_unused(image):
        return _over_background(image)
    return (image if image.mode == "RGB" else image.convert("RGB")), False


def _no_range(fault: str) -> DecodeError:
    return DecodeError(f"{fault}: save the picture with 8 or 16 bits per channel", UNSUPPORTED)


def _tuple(value: object) -> tuple:
    return value if isinstance(value, tuple) else (value,)


# --- depth --------------------------------------------------------------------------------------


@functools.cache
def _eight_bits(most: int) -> UInt8[np.ndarray, " levels"]:
    """8-bit value by 16-bit value, if ``most`` is white; Pillow would clip most values to white."""
    levels = np.minimum(np.arange(1 << 16), most)
    return np.rint(levels * (255 / most)).astype(np.uint8)


def _to_8_bits(image: Image.Image, tags: dict) -> Image.Image:
    """16-bit grey, of which a TIFF may use fewer bits, or call 0 white."""
    bits, most = _tuple(tags.get(BITS, 16))[0], _tuple(tags.get(MOST, 0))[0]
    most = most if 255 <= most < 1 << bits else (1 << bits) - 1
    deep = np.asarray(image)
    grey = _eight_bits(most)[deep]
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if "transparency" not in image.info:
        return Image.fromarray(grey)
    alpha = np.where(deep == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([grey, alpha]))


def _of_floats(pixels: Float[np.ndarray, "h w"], *, inverted: bool) -> Image.Image:
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN
        raise _no_range("floating-point pixels outside 0 to 1 have no stated range")
    grey = np.rint(pixels * 255).astype(np.uint8)
    return Image.fromarray(255 - grey if inverted else grey)


# --- transparency -------------------------------------------------------------------------------


def _scale_colour_key(image: Image.Image, bits: int) -> None:
    """Brings the transparent colour of a PNG from its own depth to the 8 bits of the pixels."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and bits < 8:
        image.info["transparency"] = key * 255 // ((1 << bits) - 1)
    elif image.mode == "RGB" and isinstance(key, tuple) and bits == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _is_unused(image: Image.Image) -> bool:
    """Whether the fourth byte per pixel of a BMP is 0 throughout: programs leave it so."""
    return image.format in ("BMP", "DIB") and image.getchannel("A").getextrema() == (0, 0)


def _over_background(image: Image.Image) -> tuple[Image.Image, bool]:
    if image.mode == "La":  # premultiplied; Pillow converts it to LA alone
        image = image.convert("LA")
    width, height = image.size
    result, transparent = Image.new("RGB", image.size), False
    for top in range(0, height, BAND):
        box = (0, top, width, min(top + BAND, height))
        part = image.crop(box).convert("RGBA")
        if part.getchannel("A").getextrema() != (255, 255):
            transparent = True
            background = Image.new("RGBA", part.size, (*BACKGROUND, 255))
            part = Image.alpha_composite(background, part)
        result.paste(part.convert("RGB"), box)
    return result, transparent
