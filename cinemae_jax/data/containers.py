"""Prepares the bytes of an image file for its decoder, by its container alone.

Drops metadata that no pixel depends on, where it could make the decoder fail or wait; bounds the
number of parts; chooses the page of a TIFF; completes the end of a cut-off file.
"""

import dataclasses
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from cinemae_jax.data import kinds
from cinemae_jax.data.refusal import DAMAGED, FOREIGN, TOO_LARGE, DecodeError

# Parts (chunks, segments) of one file. A PNG of 80 megapixels in chunks of 4 kB has 80,000.
MAX_PARTS = 200_000


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the decoder gets.

    Attributes:
      data: the file, or a copy without its useless parts.
      pages: number of pages of a TIFF; 0 for other formats.
      page: number of the page that is decoded, from 1; 0 for a picture inside a page.
      cut_off: whether the end of the file is missing.
      png_bits: bits per channel of a PNG; 8 for other formats.
    """

    data: bytes
    pages: int = 0
    page: int = 1
    cut_off: bool = False
    png_bits: int = 8


def prepare(data: bytes) -> Prepared:
    """Prepares a file of any format.

    Raises:
      DecodeError: if it has too many parts, or is a raw camera file.
    """
    if data.startswith(PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data[:4] in TIFF_HEADERS:
        return _tiff(data)
    return Prepared(data)


def _too_many(what: str) -> DecodeError:
    return DecodeError(f"damaged image (more than {MAX_PARTS:,} {what})", DAMAGED)


# --- PNG ----------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that change pixels, and those that tell how to read them. Text is metadata, except where
# Pillow looks for the orientation.
NEEDED = frozenset({b"IHDR", b"PLTE", b"IDAT", b"tRNS"})
USEFUL = frozenset({b"acTL", b"iCCP", b"eXIf"})
TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})
ORIENTED = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
MAX_TEXT = 1 << 20  # bytes of one text, decompressed; Pillow's own limit


class _Chunk(NamedTuple):
    kind: bytes
    start: int  # of the length field
    body: int
    end: int  # after the checksum


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """The chunks up to IEND or to the end of the file; the last may be cut off."""
    at = len(PNG)
    for _ in range(MAX_PARTS):
        if len(data) - at < 8:
            return
        length, kind = struct.unpack_from(">I4s", data, at)
        yield _Chunk(kind, at, at + 8, at + 12 + length)
        if kind == b"IEND":
            return
        at += 12 + length
    raise _too_many("chunks")


def _png(data: bytes) -> Prepared:
    kept, ended, size = [PNG], False, len(PNG)
    for chunk in _chunks(data):
        ended = chunk.kind == b"IEND" and chunk.end <= len(data)
        if _is_kept(data, chunk):
            part = data[chunk.start : chunk.end]
            kept.append(part)
            size += len(part)
    bits = data[24] if len(data) > 24 else 8
    whole = size == len(data)
    return Prepared(data if whole else b"".join(kept), cut_off=not ended, png_bits=bits)


def _is_kept(data: bytes, chunk: _Chunk) -> bool:
    """Whether the decoder gets a chunk: all pixel data, and metadata that is whole and of use."""
    kind = chunk.kind
    if kind in NEEDED or not kind[0] & 0x20:  # a critical chunk of unknown kind is the decoder's
        return True
    if kind not in USEFUL | TEXT:
        return False
    body = data[chunk.body : chunk.end - 4]
    if zlib.crc32(kind + body) != int.from_bytes(data[chunk.end - 4 : chunk.end], "big"):
        return False
    if kind in TEXT and not body.startswith(ORIENTED):
        return False
    if kind == b"acTL":  # number of frames and of repetitions
        return len(body) == 8 and any(body[:4])
    return kind == b"eXIf" or _is_short(kind, body)


def _is_short(kind: bytes, body: bytes) -> bool:
    """Whether a text or profile is within the decoder's limits."""
    if kind == b"tEXt" or (kind == b"iTXt" and body.partition(b"\0")[2][:1] != b"\1"):
        return len(body) <= MAX_TEXT
    packed = body.partition(b"\0")[2]
    packed = packed[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else packed[1:]
    inflated = zlib.decompressobj()
    try:
        return len(inflated.decompress(packed, MAX_TEXT)) < MAX_TEXT
    except zlib.error:
        return False


# --- JPEG ---------------------------------------------------------------------------------------

SCAN, END, EXIF = b"\xff\xda", b"\xff\xd9", b"Exif\0\0"
MARKER = re.compile(rb"\xff+[^\0\xff]", re.DOTALL)
ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
PROGRESSIVE = 0xC2
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Metadata: APP1 to APP13, APP15 and comments. APP0 and APP14 tell how colours are coded.
METADATA = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
MANY_SEGMENTS = 64  # a file with more of them loses those without use
# Every scan of a progressive file passes over all its pixels. Encoders write up to 15 scans.
MANY_SCANS = 20
MAX_SCANNED = 1_000_000_000  # pixels times scans, for files with many scans


class _Segment(NamedTuple):
    code: int  # second byte of the marker
    start: int
    end: int


def _segments(data: bytes) -> Iterator[_Segment]:
    """The segments of a JPEG up to its first scan, which is the last one given."""
    at = 2
    for _ in range(MAX_PARTS):
        if not (found := MARKER.search(data, at)):
            return
        at, code = found.end(), data[found.end() - 1]
        if code not in ALONE:
            at += int.from_bytes(data[at : at + 2], "big")
        yield _Segment(code, found.end() - 2, at)
        if code in (0xDA, 0xD9):
            return
    raise _too_many("segments")


def _jpeg(data: bytes) -> Prepared:
    """Refuses what takes minutes to decode; drops metadata that slows the decoder quadratically."""
    segments = list(_segments(data))
    scan = next((one.start for one in segments if one.code == 0xDA), len(data))
    _check_scans(data, segments, scan)
    exifs = [one for one in segments if one.code == 0xE1 and data.startswith(EXIF, one.start + 4)]
    cut_off = data.rfind(END, scan) < 0
    if len(exifs) < 2 and len(segments) < MANY_SEGMENTS:
        return Prepared(data, cut_off=cut_off)
    kept = [
        data[one.start : one.end]
        for one in segments
        if one.start < scan and (one.code not in METADATA or one in exifs[:1] or _is_icc(data, one))
    ]
    return Prepared(b"".join([data[:2], *kept, data[scan:]]), cut_off=cut_off)


def _is_icc(data: bytes, segment: _Segment) -> bool:
    return data.startswith(b"ICC_PROFILE\0", segment.start + 4)


def _check_scans(data: bytes, segments: list[_Segment], scan: int) -> None:
    if (num_scans := data.count(SCAN, scan)) <= MANY_SCANS:
        return
    frames = (data[one.start + 5 : one.start + 9] for one in segments if one.code in FRAMES)
    height, width = struct.unpack(">HH", next(frames, b"").ljust(4, b"\0"))
    if num_scans * width * height > MAX_SCANNED:
        raise DecodeError(
            f"too large: {num_scans:,} scans of {width} x {height} pixels take too long to decode: "
            "save the picture again as an ordinary JPEG",
            TOO_LARGE,
        )


def jpeg_process(data: bytes) -> str:
    """How a JPEG is coded if no decoder for it is at hand, and the way out; otherwise empty."""
    for one in _segments(data) if data.startswith(b"\xff\xd8") else ():
        if one.code in FRAMES and one.start + 4 < len(data):
            bits, process = data[one.start + 4], kinds.JPEG_PROCESSES.get(one.code, "")
            if process or bits in (12, 16):
                name = process or f"{bits}-bit JPEG"
                return f"{name}, which is not read: {kinds.CONVERT}"
    return ""


# --- TIFF ---------------------------------------------------------------------------------------

TIFF_HEADERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_PAGES = 1000  # more are not counted
# Tags
SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, PHOTOMETRIC = 254, 255, 256, 257, 262
SUB_IFDS, DNG_VERSION = 330, 50706
SENSOR = (32803, 34892)  # PHOTOMETRIC of raw sensor data
TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # of tag values that are read here
READ = frozenset(
    {SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, PHOTOMETRIC, SUB_IFDS, DNG_VERSION}
)  # fmt: skip
MAX_VALUES = 16  # of one tag
# A first page whose sides are at most this share of another page's, in proportion, is a thumbnail.
THUMBNAIL_SHARE, SAME_ASPECT = 0.5, 0.05


class _Page(NamedTuple):
    offset: int
    tags: dict[int, tuple[int, ...]]
    following: int

    @property
    def size(self) -> tuple[int, int]:
        return self.tags.get(WIDTH, (0,))[0], self.tags.get(HEIGHT, (0,))[0]

    @property
    def is_reduced(self) -> bool:
        """Whether the file calls it a smaller version of another page."""
        return bool(self.tags.get(SUBFILE, (0,))[0] & 1) or self.tags.get(OLD_SUBFILE) == (2,)

    def is_thumbnail_of(self, other: "_Page") -> bool:
        (w, h), (width, height) = self.size, other.size
        if not min(w, h, width, height) or w > THUMBNAIL_SHARE * width:
            return False
        return abs(w * height / (h * width) - 1) < SAME_ASPECT


class _Tiff:
    """Reads the directories of a TIFF or BigTIFF; whatever lies outside the file is left out."""

    def __init__(self, data: bytes) -> None:
        self.data, self.order, self.big = data, "<" if data[0:1] == b"I" else ">", b"+" in data[2:4]
        self.offset_layout = self.order + ("Q" if self.big else "I")
        self.first_at = 8 if self.big else 4

    def _number(self, layout: str, at: int) -> int:
        try:
            return int(struct.unpack_from(layout, self.data, at)[0])
        except struct.error:
            return 0

    def page(self, offset: int) -> _Page:
        head, width, inline = (8, 20, 8) if self.big else (2, 12, 4)
        count = min(self._number(self.order + ("Q" if self.big else "H"), offset), 1 << 16)
        tags = {}
        for at in range(offset + head, offset + head + width * count, width):
            if self._number(self.order + "H", at) in READ:
                tags[self._number(self.order + "H", at)] = self._values(at, inline)
        return _Page(offset, tags, self._number(self.offset_layout, offset + head + width * count))

    def _values(self, at: int, inline: int) -> tuple[int, ...]:
        layout = TYPES.get(self._number(self.order + "H", at + 2), "B")
        count = min(self._number(self.offset_layout, at + 4), MAX_VALUES)
        size, place = struct.calcsize(layout), at + 4 + inline
        if size * count > inline:
            place = self._number(self.offset_layout, place)
        values = tuple(self._number(self.order + layout, place + i * size) for i in range(count))
        return values or (0,)

    def pages(self) -> list[_Page]:
        """The chain of pages, without loops."""
        found: dict[int, _Page] = {}
        at = self._number(self.offset_layout, self.first_at)
        while at and at not in found and at < len(self.data) and len(found) < MAX_PAGES:
            found[at] = self.page(at)
            at = found[at].following
        return list(found.values())

    def starting_at(self, page: _Page) -> bytes:
        """The file with another first page."""
        start = self.first_at
        offset = struct.pack(self.offset_layout, page.offset)
        return self.data[:start] + offset + self.data[start + len(offset) :]


def _tiff(data: bytes) -> Prepared:
    """The file, beginning with its full picture; refuses raw camera files."""
    file = _Tiff(data)
    pages = file.pages()
    if not pages:
        return Prepared(data)
    inside = [
        file.page(offset)
        for page in pages[:MAX_VALUES]
        for offset in page.tags.get(SUB_IFDS, ())
        if 0 < offset < len(data)
    ]
    _refuse_raw(data, [*pages, *inside])
    first, others = pages[0], [*inside, *pages[1:]]
    full = [page for page in others if first.is_reduced and not page.is_reduced]
    others = full or [page for page in others if first.is_thumbnail_of(page)]
    if not others:
        return Prepared(data, pages=len(pages))
    chosen = max(others, key=lambda page: page.size[0] * page.size[1])
    number = pages.index(chosen) + 1 if chosen in pages else 0
    return Prepared(file.starting_at(chosen), pages=len(pages), page=number)


def _refuse_raw(data: bytes, pages: list[_Page]) -> None:
    name = next((name for mark, at, name in kinds.RAW_MARKS if data.startswith(mark, at)), "")
    if any(DNG_VERSION in page.tags for page in pages):
        name = "DNG"
    is_sensor = any(page.tags.get(PHOTOMETRIC, (0,))[0] in SENSOR for page in pages)
    if name or is_sensor:
        kind = f"raw camera file ({name})" if name else "raw camera file"
        raise DecodeError(f"{kind}, which is not read: {kinds.DEVELOP}", FOREIGN)


# --- cut-off files ------------------------------------------------------------------------------

MAX_MISSING = 1 << 20  # bytes that are made up at most
# Two fillings that differ in every bit: pixels that are the same with both do not depend on it.
FILLINGS = (b"\xaa", b"\x55")
WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")


def completed(data: bytes) -> tuple[bytes, ...]:
    """A file without its end, completed in two different ways; nothing if that is not its fault.

    If both decode to the same pixels, no pixel depends on what is missing.

    Args:
      data: a file that its decoder refuses.
    """
    if data.startswith(b"\xff\xd8"):
        return tuple(_completed_jpeg(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return tuple(_completed_webp(data))
    if data[:4] in TIFF_HEADERS:
        return tuple(data + fill * MAX_MISSING for fill in FILLINGS)
    return ()


def _completed_webp(data: bytes) -> Iterator[bytes]:
    at = end = 12
    while len(data) >= at + 8:
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if end > len(data):
            break
        at = end
    missing = max(0, end - len(data))
    if int.from_bytes(data[4:8], "little") + 8 <= len(data) or missing > MAX_MISSING:
        return
    is_drawn = data[at : at + 4] in WEBP_PIXELS
    for fill in FILLINGS:
        body = data + fill * missing if is_drawn else data[:at]
        yield body[:4] + struct.pack("<I", len(body) - 8) + body[8:]


def _completed_jpeg(data: bytes) -> Iterator[bytes]:
    segments = list(_segments(data))
    scan = segments[-1].start if segments else 0
    if data.rfind(END, scan) < 0 and _has_all_scans(data, segments):
        for fill in FILLINGS:
            yield data.rstrip(b"\xff") + fill * 64 + END


def _has_all_scans(data: bytes, segments: list[_Segment]) -> bool:
    """Whether a JPEG has scans for every bit of every coefficient of every component.

    A progressive file that ends between two scans decodes without an error, but blurred.
    """
    frame = next((data[one.start + 1 : one.end] for one in segments if one.code in FRAMES), b"")
    components = frame[9::3]
    missing = {(component, k) for component in components for k in range(64)}
    at = data.find(SCAN, segments[-1].start)
    while at >= 0 and missing:
        count = int.from_bytes(data[at + 4 : at + 5], "big")
        head = data[at + 5 : at + 8 + 2 * count]
        if len(head) < 3 + 2 * count:
            return False
        first, last, bits = head[-3:] if frame[0] == PROGRESSIVE else (0, 63, 0)
        if not bits & 15:
            missing -= {(one, k) for one in head[:-3:2] for k in range(first, last + 1)}
        at = data.find(SCAN, at + 2)
    return bool(components) and not missing
