"""Bytes of an image file to an 8-bit RGB image; what becomes of it is for ``transforms``.

Files are decoded here and nowhere else.  Every failure is a ``DecodeError`` with a reason fit to
be shown beside the file's name.
"""

import io
import stat
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

# A larger file is not even read: no picture within the other limits needs as much.
MAX_BYTES = 1 << 30
# Above this an image is refused before it is decoded; Pillow's own bomb limit is at 89 million.
MAX_PIXELS = 80_000_000
# Longest side over shortest: a resize of a longer strip would need gigabytes.
MAX_ASPECT = 32
# Shortest side, pixels, of an image worth a score: one patch of the official models.
MIN_SIDE = 16
# Transparent pixels are laid over white.
BACKGROUND = (255, 255, 255)

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif"}
)
# What a file may hold, whatever its name says: Pillow's rarer parsers (one of which starts
# Ghostscript) are no place for strangers' files. JPEG includes MPO, with more pictures behind.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")

TILE_TAGS = (322, 323)  # of TIFF: width and height

RGB = UInt8[np.ndarray, "h w 3"]


EMPTY, TRUNCATED, DAMAGED, NO_IMAGE = "empty", "truncated", "damaged", "not an image"
TOO_LARGE, TOO_SMALL, TOO_NARROW = "too large", "too small", "too narrow"
UNSUPPORTED = "unsupported pixels"


class DecodeError(ValueError):
    """An image that cannot be scored; the message is fit to be shown beside the file's name.

    Attributes:
      reason: one of the constants above, EMPTY to UNSUPPORTED.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
      OSError: if it cannot be read, or is no regular file (a pipe would be waited for for ever).
      DecodeError: if it is larger than ``MAX_BYTES``.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    _check_bytes(status.st_size)
    return path.read_bytes()


def decode(data: bytes) -> Image.Image:
    """An RGB image with its EXIF orientation applied; the first frame of an animation.

    Alpha of any kind is laid over ``BACKGROUND``; 16 bits a channel become 8; colour profiles are
    not applied.  EXIF that cannot be read counts as none.

    Raises:
      DecodeError: if the bytes are empty, no image, damaged, too large or too small.
    """
    return to_pixels(open_header(data))


def open_header(data: bytes) -> Image.Image:
    """The first half of ``decode``: what the head of a file says, before any pixel is decoded.

    Raises:
      DecodeError: if there is no head that can be understood.
    """
    if not data:
        raise DecodeError("empty file", EMPTY)
    _check_bytes(len(data))
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise _failure(error) from error


def to_pixels(image: Image.Image) -> Image.Image:
    """The second half of ``decode``.

    Args:
      image: of ``open_header``; is used up.

    Raises:
      DecodeError: if the image is too large, too small or damaged.
    """
    try:
        _check_size(image.size)
        _check_tiles(image)
        # No JPEG `draft` here: shrinking in the DCT and then resizing is not what the crop policies
        # state.  Against a full decode and bicubic to 256, over 726 JPEGs of 512 pixels and more:
        # never equal, off by 1.4 levels on average at scale 1/2 and by up to 98; over the 15 where
        # draft can leave twice the size asked for, still by 0.3 and up to 24.
        image.load()
        return _upright(_to_rgb(image), _orientation(image))
    except DecodeError:
        raise
    except Exception as error:
        raise _failure(error) from error


def _failure(error: Exception) -> DecodeError:
    """What Pillow meant: its codecs raise almost anything on damaged input."""
    match error:
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return DecodeError(f"too large: above {MAX_PIXELS:,} pixels", TOO_LARGE)
        case UnidentifiedImageError():
            return DecodeError("not an image, or of an unsupported format", NO_IMAGE)
        case MemoryError():
            return DecodeError("out of memory while decoding", TOO_LARGE)
    reason = TRUNCATED if "truncated" in str(error).lower() else DAMAGED
    return DecodeError(f"damaged image ({type(error).__name__}: {error})", reason)


def encode_png(array: RGB) -> bytes:
    """An array as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _check_bytes(count: int) -> None:
    if count > MAX_BYTES:
        raise DecodeError(f"too large: {count:,} bytes are above {MAX_BYTES:,}", TOO_LARGE)


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        fault, reason = f"is above {MAX_PIXELS:,} pixels", TOO_LARGE
    elif min(size) < MIN_SIDE:
        fault, reason = f"has a side below {MIN_SIDE} pixels", TOO_SMALL
    elif max(size) > MAX_ASPECT * min(size):
        fault, reason = f"has sides of above {MAX_ASPECT} to 1", TOO_NARROW
    else:
        return
    raise DecodeError(f"{reason}: {width} x {height} {fault}", reason)


def _check_tiles(image: Image.Image) -> None:
    """A TIFF's tiles may be larger than the image itself, and are decoded whole."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag, 0) for tag in TILE_TAGS)
    if width * height > MAX_PIXELS:
        fault = f"a tile of {width} x {height} is above {MAX_PIXELS:,} pixels"
        raise DecodeError(f"too large: {fault}", TOO_LARGE)


# --- modes --------------------------------------------------------------------------------------


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise DecodeError("32-bit pixels have no stated range", UNSUPPORTED)
    if image.mode.startswith("I;16"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        return _over_background(image)
    return image if image.mode == "RGB" else image.convert("RGB")


# (65536,): round(v / 257), by which 16-bit grey becomes 8-bit; Pillow would clip it to white.
EIGHT_BITS = ((np.arange(1 << 16, dtype=np.uint32) * 255 + 32895) >> 16).astype(np.uint8)


def _to_8_bits(image: Image.Image) -> Image.Image:
    deep = np.asarray(image)
    grey = EIGHT_BITS[deep]
    if "transparency" not in image.info:
        return Image.fromarray(grey)
    alpha = np.where(deep == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([grey, alpha]))


BAND = 1024  # rows laid over the background at a time: a large image is not held four times


def _over_background(image: Image.Image) -> Image.Image:
    width, height = image.size
    result = Image.new("RGB", image.size)
    for top in range(0, height, BAND):
        box = (0, top, width, min(top + BAND, height))
        part = image.crop(box).convert("RGBA")
        background = Image.new("RGBA", part.size, (*BACKGROUND, 255))
        result.paste(Image.alpha_composite(background, part).convert("RGB"), box)
    return result


# --- orientation --------------------------------------------------------------------------------

ORIENTATION_TAG = 0x0112
# Value of the tag to what brings the image upright. ``ImageOps.exif_transpose`` would copy images
# that are upright and write the other tags anew, which fails on some that cameras produce.
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ORIENTATION_TAG)
    except Exception:  # the pixels are whole: shown as they are stored, as browsers do
        return None


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    method = TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)
