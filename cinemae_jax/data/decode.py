"""Decodes the bytes of an image file to an 8-bit RGB image.

All decoding happens here.  Every failure is a ``DecodeError`` whose message can be shown next to
the file name.  Messages are stored in score files, banks and quarantine lists: keep their wording.
"""

import dataclasses
import io
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, UnidentifiedImageError

from cinemae_jax.data import containers, kinds, modes, profiles
from cinemae_jax.data.containers import Prepared
from cinemae_jax.data.refusal import (
    DAMAGED,
    EMPTY,
    FOREIGN,
    NO_IMAGE,
    TOO_LARGE,
    TOO_NARROW,
    TOO_SMALL,
    TRUNCATED,
    DecodeError,
)

# Larger files are not read: no image within the other limits needs that many bytes.
MAX_BYTES = 1 << 30
# Images with more pixels are refused before decoding; Pillow's own limit is 89 million.
MAX_PIXELS = 80_000_000
# Longest side over shortest; resizing a narrower strip would need gigabytes.
MAX_ASPECT = 32
# Shortest side in pixels: one patch of the official models.
MIN_SIDE = 16

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
    | {".heic", ".heif", ".hif", ".jxl"}
)
# Accepted content, whatever the file name says. Pillow's rarer parsers (one starts Ghostscript) are
# a risk with untrusted files. JPEG includes MPO, which holds further images after the first.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
# Read by libraries of their own: HEIC and HEIF as "HEIF", and JPEG XL where that is installed.
FURTHER_FORMATS = ("HEIF", "JXL")

TILE_TAGS = (322, 323)  # TIFF: width and height of a tile
MAX_ERROR = 200  # characters of an error message that are stored

RGB = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True, eq=False)
class Header:
    """A parsed file whose pixels are not decoded yet.

    Attributes:
      image: of Pillow; ``to_pixels`` uses it up.
      file: the bytes that it reads, and which page of the file they begin with.
    """

    image: Image.Image
    file: Prepared


@dataclasses.dataclass(frozen=True, eq=False)
class Decoded:
    """An image, and what a reader of its score should know about its file.

    Attributes:
      image: RGB, upright.
      transparent: whether a pixel was composited over ``modes.BACKGROUND``.
      notes: further facts, each ``name: words``.
    """

    image: Image.Image
    transparent: bool
    notes: tuple[str, ...]


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

    Transparency of any kind is laid over ``modes.BACKGROUND``; deeper pixels become 8 bits a
    channel; colour profiles are not applied.  Unreadable metadata is ignored.

    Raises:
      DecodeError: if the bytes are empty, not an image, damaged, too large, too small or too
        narrow, of a format that is not read, or have pixels without a stated range.
    """
    return to_pixels(open_header(data)).image


def open_header(data: bytes) -> Header:
    """The first half of ``decode``: parses the header without decoding any pixel.

    Raises:
      DecodeError: if the header is missing or not understood.
    """
    if not data:
        raise DecodeError("empty file", EMPTY)
    _check_bytes(len(data))
    file = Prepared(data)
    try:
        file = containers.prepare(data)
        return _opened(file)
    except DecodeError:
        raise
    except Exception as error:
        if mended := _mended(file):
            return mended
        raise _failure(error, data) from error


def _opened(file: Prepared) -> Header:
    stream = io.BytesIO(file.data)
    image: Image.Image
    if kinds.is_heif(file.data):
        from pillow_heif import HeifImageFile  # a large library that few data sets need

        image = HeifImageFile(stream)
    elif kinds.is_jpeg_xl(file.data):
        image = _open_jpeg_xl(stream)
    else:
        image = Image.open(stream, formats=FORMATS)
        if image.format in ("JPEG", "MPO"):  # arithmetic decoding cannot wait for further bytes
            image.decodermaxblock = max(len(file.data), 1)  # type: ignore[attr-defined]
    return Header(image, file)


def _open_jpeg_xl(stream: io.BytesIO) -> Image.Image:
    try:
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile
    except ImportError as error:
        raise DecodeError(kinds.unread(stream.getvalue()), FOREIGN) from error
    return JXLImageFile(stream)


def to_pixels(header: Header) -> Decoded:
    """The second half of ``decode``.

    Args:
      header: result of ``open_header``; not usable afterwards.

    Raises:
      DecodeError: as for ``decode``.
    """
    try:
        return _decoded(header)
    except DecodeError:
        raise
    except Exception as error:
        if mended := _mended(header.file):
            return _decoded(mended)
        raise _failure(error, header.file.data) from error


def _decoded(header: Header) -> Decoded:
    image = header.image
    _check_size(image.size)
    _check_tiles(image)
    # JPEG `draft` (shrinking in the DCT) is not used: after a bicubic resize to 256 its pixels
    # never equal those of a full decode.  On 726 JPEGs of 512 pixels and more the difference
    # at scale 1/2 is 1.4 grey levels on average, at most 98; on the 15 files where draft can
    # keep twice the target size it is still 0.3, at most 24.
    image.load()
    rgb, transparent = modes.to_rgb(image, png_bits=header.file.png_bits)
    upright = _upright(rgb, _orientation(image))
    return Decoded(upright, transparent, tuple(_notes(header)))


def _mended(file: Prepared) -> Header | None:
    """The header of a cut-off file with an end made up, if no pixel depends on that end."""
    completed = [dataclasses.replace(file, data=data) for data in containers.completed(file.data)]
    if not completed:
        return None
    try:
        one, other = (_decoded(_opened(version)).image for version in completed)
        if one.size != other.size or ImageChops.difference(one, other).getbbox():
            return None
        return _opened(dataclasses.replace(completed[0], cut_off=True))
    except Exception:  # the failure of the file itself is reported
        return None


def _notes(header: Header) -> Iterator[str]:
    """What a reader of the score should know about the file."""
    file = header.file
    if file.cut_off:
        yield "cut_off: the end of the file is missing; every pixel could be decoded"
    if file.pages > 1 or file.page != 1:
        which = f"page {file.page} of {file.pages}" if file.page else "the full picture"
        why = ": the first is a thumbnail" if file.page != 1 else ""
        yield f"pages: {which} was scored{why}"
    if name := profiles.unlike_srgb(header.image.info.get("icc_profile") or b""):
        yield f"profile: {name}; its colours were taken as sRGB"


def _failure(error: Exception, data: bytes) -> DecodeError:
    """Maps exceptions of decoders, which can be almost any type on damaged input, to reasons."""
    if known := kinds.unread(data) or containers.jpeg_process(data):
        return DecodeError(known, FOREIGN)
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
        fault, reason = f"is above {MAX_PIXELS:,} pixels: crop it", TOO_LARGE
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
    if image.format in FURTHER_FORMATS:  # their decoders apply it
        return None
    try:
        return image.getexif().get(ORIENTATION_TAG)
    except Exception:  # the pixels are intact: keep them as stored, as browsers do
        return None


def _upright(image: Image.Image, orientation: object) -> Image.Image:
    method = TRANSPOSITIONS.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)
