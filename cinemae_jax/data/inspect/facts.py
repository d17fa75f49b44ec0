"""Facts of one image file: what it really is, and whether the loader will be able to read it.

Comes in: a path.  Goes out: ``Facts``, whatever the file holds.  The file is opened and decoded as
by ``decode.decode``, which the loader calls; between its two halves the header is asked for what a
decoded image no longer tells (format, mode, quantisation tables), and so this module needs Pillow.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cinemae_jax.data import decode
from cinemae_jax.data.decode import (
    DAMAGED,
    EMPTY,
    NO_IMAGE,
    TOO_LARGE,
    TOO_NARROW,
    TOO_SMALL,
    TRUNCATED,
    UNSUPPORTED,
    DecodeError,
)

MAX_ERROR = 200  # characters kept of a message

NO_ACCESS, CRASH, TOO_SLOW = "no access", "crashes the decoder", "takes too long"
# Why a file is unreadable, in one to three words; ``Facts.error`` has the detail.
REASONS = (
    *(EMPTY, TRUNCATED, DAMAGED, NO_IMAGE, UNSUPPORTED, NO_ACCESS),
    *(TOO_LARGE, TOO_SMALL, TOO_NARROW, CRASH, TOO_SLOW),
)

SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}  # JPEG with more pictures behind it; BMP without a head


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a file; what is not known is empty, 0 or None.

    Attributes:
      reason: one of ``REASONS``, or empty if the loader can read the file.
      error: the decoder's own words; of a readable file, what is wrong behind its first frame.
      num_bytes: size of the file.
      sha256: of its bytes; empty if they could not be read.
      format: of the content, in Pillow's words: JPEG, PNG, WEBP.
      wrong_extension: the name promises another format.
      mode: Pillow's, before conversion to RGB: RGB, L, P, CMYK.
      deep: more than 8 bits a channel.
      alpha: transparency, in whatever form.
      animated: more than one frame; the first is the one that is scored.
      width, height: pixels, as scored (EXIF orientation applied) if readable, else as stored.
      quality: of a JPEG, 1 to 100, by its luminance quantisation table.
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
    """Reads and decodes one file; raises nothing, whatever the file is."""
    try:
        data = decode.read_file(path)
    except OSError as error:
        return Facts(NO_ACCESS, (error.strerror or str(error))[:MAX_ERROR])
    except DecodeError as failure:  # of its size: not read
        return Facts(failure.reason, str(failure), num_bytes=path.stat().st_size)
    return examine_bytes(data, suffix=path.suffix)


def examine_bytes(data: bytes, *, suffix: str) -> Facts:
    """Facts of a file's content.

    Args:
      data: all of it.
      suffix: of its name, with the dot, in any case.
    """
    known: dict[str, Any] = {"num_bytes": len(data), "sha256": hashlib.sha256(data).digest()}
    try:
        image = decode.open_header(data)
        known |= _header(image, suffix)
        width, height = decode.to_pixels(image).size
    except DecodeError as failure:
        return Facts(failure.reason, str(failure)[:MAX_ERROR], **known)
    known |= {"width": width, "height": height}
    return Facts(**known, **_frames(image))


def _header(image: Image.Image, suffix: str) -> dict[str, Any]:
    """Fields of ``Facts`` that the head of a file tells."""
    format_ = SAME_FORMAT.get(image.format or "", image.format or "")
    return {
        "format": format_,
        "wrong_extension": format_ != format_of_suffix(suffix.lower()),
        "mode": image.mode,
        "deep": _is_deep(image),
        "alpha": image.has_transparency_data,
        "width": image.width,
        "height": image.height,
        "quality": _jpeg_quality(image) if format_ == "JPEG" else None,
    }


@functools.cache
def format_of_suffix(suffix: str) -> str:
    """The format that a lower-case extension promises; empty if Pillow knows none."""
    format_ = Image.registered_extensions().get(suffix, "")
    return SAME_FORMAT.get(format_, format_)


def _is_deep(image: Image.Image) -> bool:
    """Whether the file has more than 8 bits a channel, which Pillow's mode may hide (RGB)."""
    if image.mode.startswith(("I", "F")):
        return True
    arguments = [tile[3] for tile in getattr(image, "tile", ()) if len(tile) > 3]
    layouts = [str(a[0]) if isinstance(a, tuple) and a else str(a) for a in arguments]
    return any(";16" in layout and layout != "BGR;16" for layout in layouts)  # not 5-6-5 bits


def _frames(image: Image.Image) -> dict[str, Any]:
    """What follows the first frame, which is the one that is scored."""
    if image.format == "MPO":  # a photograph with a preview or a second view behind it
        return {"animated": False}
    try:
        return {"animated": bool(getattr(image, "is_animated", False))}
    except Exception as error:  # something follows, and it is damaged
        text = f"behind the first frame: {type(error).__name__}: {error}"
        return {"animated": True, "error": text[:MAX_ERROR]}


# --- JPEG quality -------------------------------------------------------------------------------

# Row by row, at quality 50. ITU-T T.81, table K.1.
LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55),
    *(14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62),
    *(18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
    *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


@functools.cache
def libjpeg_tables() -> np.ndarray:
    """(100, 64): the luminance table that libjpeg writes at quality 1 to 100."""
    quality = np.arange(1, 101)[:, None]
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.clip((np.array(LUMINANCE) * percent + 50) // 100, 1, 255)


@functools.lru_cache(maxsize=4096)  # a data set holds few different tables
def quality_of_table(table: tuple[int, ...]) -> int:
    """The libjpeg quality, 1 to 100, whose luminance table is nearest (sum of differences).

    Exact for files written by libjpeg and its kin; for the tables of other programs, the
    quality that quantises about as coarsely.

    Args:
      table: 64 steps, row by row.
    """
    return int(np.abs(libjpeg_tables() - np.array(table)).sum(axis=1).argmin()) + 1


def _jpeg_quality(image: Image.Image) -> int | None:
    table = getattr(image, "quantization", {}).get(0)
    return quality_of_table(tuple(table)) if table and len(table) == 64 else None
