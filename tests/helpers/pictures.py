"""Small images and the files that hold them, made on the spot."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def encoded(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    return saved(Image.fromarray(array), kind, **options)


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 4, rows + columns], -1).astype(np.uint8)


def noise(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def raw_png(
    array: np.ndarray,
    *,
    depth: int,
    colour_type: int,
    transparent: bytes = b"",
    size: tuple[int, int] | None = None,
) -> bytes:
    """A PNG of a kind that Pillow does not write.

    Args:
      array: (H, W) or (H, W, C), integers of ``depth`` bits.
      depth: 8 or 16.
      colour_type: 0 grey, 2 RGB.
      transparent: the tRNS chunk, if any.
      size: (width, height) that the header claims, if not the array's.
    """
    width, height = size or array.shape[1::-1]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    big_endian = array.astype(">u2" if depth == 16 else np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in big_endian)
    chunks = {b"IHDR": header, b"tRNS": transparent, b"IDAT": zlib.compress(rows)}
    present = {kind: body for kind, body in chunks.items() if body} | {b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in present.items()
    )
