"""Decodes the bytes of an image file to an 8-bit RGB image.

All decoding happens here.  Every failure is a ``DecodeError`` whose message can be shown next to
the file name.  Messages are stored in score files, banks and quarantine lists: keep their wording.
"""

import io
import stat
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

# Larger files are not read: no image within the other limits needs that many bytes.
MAX_BYTES = 1 << 30
# Images with more pixels are refused before decoding; Pillow's own limit is 89 million.
MAX_PIXELS = 80_000_000
# Longest side over shortest; resizing a narrower strip would need gigabytes.
MAX_ASPECT = 32
# Shortest side in pixels: one patch of the official models.
MIN_SIDE = 16
# Colour behind transparent pixels.
BACKGROUND = (255, 255, 255)

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif"}
)
# Accepted content, whatever the file name says. Pillow's rarer parsers (one starts Ghostscript) are
# a risk with untrusted files. JPEG includes MPO, which holds further images after the first.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")

TILE_TAGS = (322, 323)  # TIFF: width and height of a tile
MAX_ERROR = 200  # characters of an error message that are stored

RGB = UInt8[np.ndarray, "h w 3"]

# Reasons of a ``DecodeError``.
EMPTY, TRUNCATED, DAMAGED, NO_IMAGE = "empty", "truncated", "damaged", "not an image"
TOO_LARGE, TOO_SMALL, TOO_NARROW = "too large", "too small", "too narrow"
UNSUPPORTED = "unsupported pixels"


class DecodeError(ValueError):
    """An image that cannot be scored; the message can be shown next to the file name.

    Attributes:
      reason: one of the constants above, EMPTY to UNSUPPORTED.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises:
      OSError: if it cannot be read or is not a regular file (reading a pipe might never end).
      DecodeError: if it is larger than ``MAX_BYTES``.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    _check_bytes(status.st_size)
    return path.read_bytes()


def decode(data: bytes) -> Image.Image:
    """Decodes to RGB with the EXIF orientation applied; takes the first frame of an animation.

    Transparency of any kind is laid over ``BACKGROUND``; 16 bits per channel become 8; colour
    profiles are not applied.  Unreadable EXIF is ignored.

    Raises:
      DecodeError: if the bytes are empty, not an image, damaged, too large, too small or too
        narrow, or have pixels without a stated range.
    """
    return to_pixels(open_header(data))


def open_header(data: bytes) -> Image.Image:
    """The first half of ``decode``: parses the header without decoding any pixel.

    Raises:
      DecodeError: if the header is missing or not understood.
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
      image: result of ``open_header``; not usable afterwards.

    Raises:
      DecodeError: as for ``decode``.
    """
    try:
        _check_size(image.size)
        _check_tiles(image)
        # JPEG `draft` (shrinking in the DCT) is not used: after a bicubic resize to 256 its pixels
        # never equal those of a full decode.  On 726 JPEGs of 512 pixels and more the difference
        # at scale 1/2 is 1.4 grey levels on average, at most 98; on the 15 files where draft can
        # keep twice the target size it is still 0.3, at most 24.
        image.load()
        return _upright(_to_rgb(image), _orientation(image))
    except DecodeError:
        raise
    except Exception as error:
        raise _failure(error) from error


def _failure(error: Exception) -> DecodeError:
    """Maps Pillow's exceptions, which can be almost any type on damaged input, to reasons."""
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
    """The bytes of a PNG file."""
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
    """TIFF tiles may be larger than the image, and each is decoded whole."""
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


# (65536,): round(v / 257) maps 16-bit to 8-bit grey; Pillow would clip most values to white.
EIGHT_BITS = ((np.arange(1 << 16, dtype=np.uint32) * 255 + 32895) >> 16).astype(np.uint8)


def _to_8_bits(image: Image.Image) -> Image.Image:
    deep = np.asarray(image)
    grey = EIGHT_BITS[deep]
    if "transparency" not in image.info:
        return Image.fromarray(grey)
    alpha = np.where(deep == image.info["transparency"], 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([grey, alpha]))


BAND = 1024  # rows composited at a time, which limits the memory for large images


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
# By the tag's value. ``ImageOps.exif_transpose`` would copy upright images and rewrite their other
# tags, which fails on some that cameras write.
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
    except Exception:  # the pixels are intact: keep them as stored, as browsers do
        return None


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    method = TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)
