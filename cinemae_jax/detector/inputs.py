"""From a file, bytes, a Pillow image or an array to one upright RGB image; without JAX.

The masks of an image are drawn by a hash of its pixels, so an image has the same score under any
name and in any lossless format.
"""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from cinemae_jax.data.containers import Prepared
from cinemae_jax.data.decode import Header, open_header, read_file, to_pixels
from cinemae_jax.data.inspect.facts import SAME_FORMAT
from cinemae_jax.data.modes import BAND

# A path, the bytes of an image file, a Pillow image, or RGB pixels (H, W, 3) uint8.
Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """One image, and facts of its file that the pixels do not show.

    Attributes:
      image: RGB, upright.
      example_id: 32-bit hash of the pixels, by which the masks are drawn.
      format: of the file, as Pillow names it; empty if the image came as pixels.
      animated: whether the file holds further frames; this is the first.
      transparent: whether a pixel was composited over white.
      notes: further facts of the file, each ``name: words``.
    """

    image: Image.Image
    example_id: int
    format: str = ""
    animated: bool = False
    transparent: bool = False
    notes: tuple[str, ...] = ()


def listed(images: Source | Iterable[Source]) -> Iterable[Source]:
    """The sources as an iterable; a single one becomes a list.

    Raises:
      TypeError: if ``images`` is neither a source nor iterable.
    """
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    if not isinstance(images, Iterable):
        raise TypeError(
            f"images must be paths, bytes, Pillow images or arrays, not {type(images).__name__}"
        )
    return images


def name_of(source: Source) -> str:
    """The path of a file; empty for other sources."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else ""


def read(source: Source) -> Picture:
    """Decodes a source, with the limits of ``data.decode``.

    Raises:
      DecodeError: if the content cannot be decoded.
      OSError: if the file cannot be read.
      TypeError, ValueError: if the object cannot be an image: a programming error.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise ValueError(
                f"an array of shape {source.shape} and type {source.dtype} is not an image: "
                "give (height, width, 3) uint8 RGB"
            )
        source = Image.fromarray(source)
    elif isinstance(source, str | os.PathLike):
        source = read_file(Path(source))
    if isinstance(source, Image.Image):
        header = Header(source, Prepared(b""))
    else:
        header = open_header(source)
    decoded = to_pixels(header)
    kind = header.image.format or ""
    return Picture(
        decoded.image,
        example_id(decoded.image),
        format=SAME_FORMAT.get(kind, kind),
        animated=_is_animated(header.image),
        transparent=decoded.transparent,
        notes=decoded.notes,
    )


def example_id(image: Image.Image) -> int:
    """The low 32 bits of the blake2b hash of size and pixels; masks are drawn by it."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=8)
    for top in range(0, image.height, BAND):  # a copy of a large image would cost memory
        digest.update(image.crop((0, top, image.width, min(top + BAND, image.height))).tobytes())
    return int.from_bytes(digest.digest(), "big") & 0xFFFFFFFF


def _is_animated(header: Image.Image) -> bool:
    # MPO is a photograph followed by a preview or a second view; of a TIFF, the notes name the page
    if header.format in ("MPO", "TIFF"):
        return False
    try:
        return bool(getattr(header, "is_animated", False))
    except Exception:  # a damaged later frame; the first one is intact
        return True


def ahead(
    function: Callable[[Source], T], sources: Iterable[Source], num_threads: int
) -> Iterator[T]:
    """Results in order, computed in threads a little ahead of the consumer."""
    pending: collections.deque[Future[T]] = collections.deque()
    pool = ThreadPoolExecutor(num_threads)
    try:
        for source in sources:
            pending.append(pool.submit(function, source))
            if len(pending) > 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
