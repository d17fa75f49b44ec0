"""Facts about one image file: its real content, and whether the loader can read it.

In: a path.  Out: ``Facts``, for any file.  The file is decoded as by ``decode.decode``, which the
loader uses; between its two halves, the header gives what a decoded image no longer has (format,
mode, quantisation tables).
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from cinemae_jax.data import decode
from cinemae_jax.data.decode import MAX_ERROR
from cinemae_jax.data.refusal import (
    DAMAGED,
    EMPTY,
    FOREIGN,
    NO_IMAGE,
    TOO_LARGE,
    TOO_NARROW,
    TOO_SMALL,
    TRUNCATED,
    UNSUPPORTED,
    DecodeError,
)

NO_ACCESS, CRASH, TOO_SLOW = "no access", "crashes the decoder", "takes too long"
# Why a file is unreadable; ``Facts.error`` has the details.
REASONS = (
    *(EMPTY, TRUNCATED, DAMAGED, NO_IMAGE, FOREIGN, UNSUPPORTED, NO_ACCESS),
    *(TOO_LARGE, TOO_SMALL, TOO_NARROW, CRASH, TOO_SLOW),
)

FURTHER_SUFFIXES = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL"}
SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}  # several JPEGs in one file; BMP without file header


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known about a file; unknown values are empty, 0 or None.

    Attributes:
      reason: one of ``REASONS``; empty if the loader can read the file.
      error: message of the decoder; for a readable file, what is wrong after its first frame.
      num_bytes: size of the file.
      sha256: of the file; empty if it could not be read.
      format: of the content, as Pillow names it: JPEG, PNG, WEBP.
      wrong_extension: the file name implies another format.
      mode: Pillow's mode before conversion to RGB: RGB, L, P, CMYK.
      deep: more than 8 bits per channel.
      alpha: some pixel is transparent.
      animated: more than one frame; the first is scored.
      width, height: pixels; as scored (after EXIF orientation) if readable, else as stored.
      quality: JPEG quality, 1 to 100, from the luminance quantisation table.
    """

    reason: str = ""
    error: str = ""
    num_bytes: int = 0
    sha256: bytes = b""
    format: str = ""
    wrong_extension: bool = False
    mode: str = ""
    deep: bool = False
    alpha: bool = False
    animated: bool = False
    width: int = 0
    height: int = 0
    quality: int | None = None


def examine(path: Path) -> Facts:
    """Reads and decodes one file; never raises."""
    try:
        data = decode.read_file(path)
    except OSError as error:
        return Facts(NO_ACCESS, (error.strerror or str(error))[:MAX_ERROR])
    except DecodeError as failure:  # too large to be read
        return Facts(failure.reason, str(failure), num_bytes=path.stat().st_size)
    return examine_bytes(data, suffix=path.suffix)


def examine_bytes(data: bytes, *, suffix: str) -> Facts:
    """Facts about the content of a file.

    Args:
      data: the whole file.
      suffix: of the file name, with the dot, in upper or lower case.
    """
    known: dict[str, Any] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).digest()}
    try:
        header = decode.open_header(data)
        known |= _header(header.image, suffix)
        decoded = decode.to_pixels(header)
    except DecodeError as failure:
        return Facts(failure.reason, str(failure)[:MAX_ERROR], **known)
    known |= {"width": decoded.image.width, "height": decoded.image.height}
    return Facts(**known, alpha=decoded.transparent, **_frames(header.image))


def _header(image: Image.Image, suffix: str) -> dict[str, Any]:
    """Fields of ``Facts`` that come from the header of a file."""
    format_ = SAME_FORMAT.get(image.format or "", image.format or "")
    return {
        "format": format_,
        "wrong_extension": format_ != format_of_suffix(suffix.lower()),
        "mode": image.mode,
        "deep": _is_deep(image),
        "width": image.width,
        "height": image.height,
        "quality": _jpeg_quality(image) if format_ == "JPEG" else None,
    }


@functools.cache
def format_of_suffix(suffix: str) -> str:
    """The format that a lower-case extension stands for; empty if it is not known."""
    format_ = FURTHER_SUFFIXES.get(suffix) or Image.registered_extensions().get(suffix, "")
    return SAME_FORMAT.get(format_, format_)


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits per channel, which Pillow's mode may hide (RGB)."""
    if image.mode.startswith(("I", "F")):
        return True
    arguments = [tile[3] for tile in getattr(image, "tile", ()) if len(tile) > 3]
    layouts = [str(a[0]) if isinstance(a, tuple) and a else str(a) for a in arguments]
    return any(";16" in layout and layout != "BGR;16" for layout in layouts)  # BGR;16 is 5-6-5 bits


def _frames(image: Image.Image) -> dict[str, Any]:
    """Fields of ``Facts`` about the frames after the first."""
    if image.format == "MPO":  # a photograph followed by a preview or a second view
        return {"animated": False}
    try:
        return {"animated": bool(getattr(image, "is_animated", False))}
    except Exception as error:  # a later frame is damaged
        text = f"after the first frame: {type(error).__name__}: {error}"
        return {"animated": True, "error": text[:MAX_ERROR]}


# --- JPEG quality -------------------------------------------------------------------------------

# Luminance steps at quality 50, row by row. ITU-T T.81, table K.1.
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


@functools.cache
def libjpeg_tables() -> Int[np.ndarray, "100 64"]:
    """The luminance tables that libjpeg writes at quality 1 to 100."""
    quality = np.arange(1, 101)[:, None]
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((np.array(LUMINANCE) * percent + 50) // 100, 1, 255)


@functools.lru_cache(maxsize=4096)  # a data set has few different tables
def quality_of_table(table: tuple[int, ...]) -> int:
    """The libjpeg quality, 1 to 100, with the nearest luminance table (sum of differences).

    Exact for files written by libjpeg and its derivatives; for other programs, the quality with
    about the same quantisation.

    Args:
      table: 64 steps, row by row.
    """
    return int(np.abs(libjpeg_tables() - np.array(table)).sum(axis=1).argmin()) + 1


def _jpeg_quality(image: Image.Image) -> int | None:
    table = getattr(image, "quantization", {}).get(0)
    return quality_of_table(tuple(table)) if table and len(table) == 64 else None
