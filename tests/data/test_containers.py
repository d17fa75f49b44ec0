"""Whole pixels in files with useless, damaged or missing parts are read; lost pixels are not."""

import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from cinemae_jax.data import containers
from cinemae_jax.data.decode import Decoded, decode, open_header, to_pixels
from cinemae_jax.data.refusal import DAMAGED, FOREIGN, TOO_LARGE, TRUNCATED, DecodeError
from tests.helpers.pictures import encoded, gradient, noise, saved

PNG, JPEG = encoded(noise()), encoded(gradient(), "JPEG", quality=95)


def decoded(data: bytes) -> Decoded:
    return to_pixels(open_header(data))


def refusal(data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(data)
    return caught.value.reason


# --- PNG ----------------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    checksum = zlib.crc32(kind + body) ^ (not sound)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def with_chunk(*parts: bytes, png: bytes = PNG, before: bytes = b"IDAT") -> bytes:
    at = png.index(before) - 4
    return png[:at] + b"".join(parts) + png[at:]


LONG = zlib.compress(bytes(3 << 20))


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    "parts",
    [
        [chunk(b"zTXt", b"workflow\0\0" + LONG)],
        [chunk(b"iTXt", b"prompt\0\1\0\0\0" + LONG)],
        [chunk(b"iTXt", b"prompt\0\0\0\0\0" + bytes(3 << 20))],
        [chunk(b"zTXt", b"part\0\0" + zlib.compress(bytes(1_000_000)))] * 70,
        [chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + LONG)],
        [chunk(b"zTXt", b"broken\0\0no deflated text")],
        [chunk(b"iCCP", b"profile\0\0" + LONG)],
        [chunk(b"iCCP", b"profile\0\0no deflated profile")],
        *([chunk(kind, b"a\0b" * 9, sound=False)] for kind in (b"tEXt", b"iCCP", b"eXIf", b"gAMA")),
        [chunk(b"acTL", b"")],
        [chunk(b"fcTL", b"short")],
        [chunk(b"prVt", b"of a program")],
    ],
)
def test_png_metadata_does_not_cost_the_pixels(parts: list[bytes], before: bytes) -> None:
    found = decoded(with_chunk(*parts, before=before))
    np.testing.assert_array_equal(np.asarray(found.image), noise())
    assert not found.notes


def test_png_pixel_data_must_be_sound() -> None:
    palette = saved(Image.fromarray(noise()).quantize(16), transparency=bytes([0]))
    for data, kind in ((PNG, b"IDAT"), (palette, b"PLTE"), (palette, b"tRNS"), (PNG, b"IHDR")):
        damaged = bytearray(data)
        damaged[data.index(kind) + 5] ^= 1
        with pytest.raises(DecodeError):
            decode(bytes(damaged))


def test_a_palette_image_without_a_palette_is_refused() -> None:
    data = saved(Image.fromarray(noise()).quantize(16))
    start = data.index(b"PLTE") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    assert refusal(data[:start] + data[end:]) == DAMAGED


def test_an_animated_png_shows_its_first_frame() -> None:
    frames = [Image.fromarray(noise()), Image.fromarray(gradient())]
    data = saved(frames[0], save_all=True, append_images=frames[1:])
    header = open_header(data)
    assert getattr(header.image, "is_animated", False)
    np.testing.assert_array_equal(np.asarray(to_pixels(header).image), noise())


def test_many_tiny_chunks_are_refused_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_PARTS", 100)
    assert refusal(with_chunk(*[chunk(b"tEXt", b"a\0b")] * 200)) == DAMAGED


# --- JPEG ---------------------------------------------------------------------------------------


def segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def test_many_exif_segments_cost_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    first = segment(0xE1, exif.tobytes())
    crowd = segment(0xE1, b"Exif\0\0" + bytes(60)) * 20_000
    rest = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(200)) + JPEG[2:]
    started = time.process_time()
    found = decoded(JPEG[:2] + first + crowd + rest)
    assert time.process_time() - started < 2  # without the limit, 20 s
    plain = np.asarray(decode(JPEG))
    np.testing.assert_array_equal(np.asarray(found.image), np.rot90(plain, -1))  # the first counts
    header = open_header(JPEG[:2] + crowd + rest)
    assert len(header.image.info["icc_profile"]) == 200
    assert len(header.file.data) < len(JPEG) + 500


def many_scans(side: int, count: int) -> bytes:
    data = saved(Image.new("RGB", (side, side), "grey"), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def test_endless_progressive_files_are_refused_before_decoding() -> None:
    started = time.process_time()
    assert refusal(many_scans(2000, 1500)) == TOO_LARGE
    assert time.process_time() - started < 2
    assert decode(many_scans(64, 1500)).size == (64, 64)  # tiny: it takes no time


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}]
)
@pytest.mark.parametrize("array", [gradient(), gradient()[..., 0], noise(37, 53)])
@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xff"])
def test_a_jpeg_without_its_end_marker_is_whole(
    options: dict, array: np.ndarray, end: bytes
) -> None:
    data = encoded(array, "JPEG", **options)
    found = decoded(data[:-2] + end)
    np.testing.assert_array_equal(np.asarray(found.image), np.asarray(decode(data)))
    assert found.notes[0].startswith("cut_off: ")
    assert not decoded(data).notes


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_pixels_is_refused(progressive: bool) -> None:
    data = encoded(noise(200, 200), "JPEG", progressive=progressive)
    for lost in (8, 30, 300, len(data) // 2):
        assert refusal(data[:-lost]) == TRUNCATED


def test_a_progressive_jpeg_that_ends_between_two_scans_is_refused() -> None:
    data = encoded(noise(), "JPEG", progressive=True)
    starts = [at for at in range(len(data)) if data.startswith(b"\xff\xda", at)]
    for at in starts[1:]:
        assert refusal(data[:at]) == TRUNCATED


@pytest.mark.parametrize(("code", "name"), [(0xC3, "lossless"), (0xC7, "lossless")])
def test_jpeg_processes_are_named(code: int, name: str) -> None:
    at = JPEG.index(b"\xff\xc0")
    with pytest.raises(DecodeError, match=name) as caught:
        decode(JPEG[:at] + bytes([0xFF, code]) + JPEG[at + 2 :])
    assert caught.value.reason == FOREIGN


def test_arithmetic_coding_is_read_in_large_files() -> None:
    data = encoded(noise(400, 400), "JPEG", quality=95)
    assert len(data) > 100_000  # more than the decoder is given at a time by default
    at = data.index(b"\xff\xc0")
    assert decode(data[:at] + b"\xff\xc9" + data[at + 2 :]).size == (400, 400)  # of other pixels


def test_12_bit_jpegs_are_named() -> None:
    at = JPEG.index(b"\xff\xc0")
    with pytest.raises(DecodeError, match="12-bit JPEG"):
        decode(JPEG[: at + 4] + b"\x0c" + JPEG[at + 5 :])


# --- the ends of other formats ------------------------------------------------------------------


def test_a_png_without_its_end_is_whole_until_pixels_are_lost() -> None:
    for lost in (1, 4, 8, 12, 16):
        found = decoded(PNG[:-lost])
        np.testing.assert_array_equal(np.asarray(found.image), noise())
        assert found.notes[0].startswith("cut_off: ")
    assert refusal(PNG[:-60]) == TRUNCATED


@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_without_its_end_is_whole_until_pixels_are_lost(lossless: bool) -> None:
    data = encoded(noise(), "WEBP", lossless=lossless, xmp=b"x" * 500, exif=b"Exif\0\0" + bytes(99))
    whole = np.asarray(decode(data))
    for lost in (1, 90, 300, 500, 600):
        found = decoded(data[:-lost])
        np.testing.assert_array_equal(np.asarray(found.image), whole)
        assert found.notes[0].startswith("cut_off: ")
    plain = encoded(noise(), "WEBP", lossless=lossless)
    for lost in (20, 200, len(plain) // 2):
        with pytest.raises(DecodeError):
            decode(plain[:-lost])


def tiff(fields: dict[int, tuple[str, tuple[int, ...]]], body: bytes, *further: bytes) -> bytes:
    """A little-endian TIFF whose strip (273, 279) is ``body``, after its directory."""
    codes = {"B": 1, "H": 3, "I": 4}
    size = 2 + 12 * (len(fields) + 2) + 4
    fields = fields | {273: ("I", (8 + size,)), 279: ("I", (len(body),))}
    rows = b""
    for tag, (layout, values) in sorted(fields.items()):
        packed = struct.pack(f"<{len(values)}{layout}", *values).ljust(4, b"\0")
        assert len(packed) == 4
        rows += struct.pack("<HHI", tag, codes[layout], len(values)) + packed
    directory = struct.pack("<H", len(fields)) + rows + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + body + b"".join(further)


def grey_tiff(array: np.ndarray, *, bits: int, **tags: int) -> bytes:
    height, width = array.shape
    fields = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height}
    fields |= {int(tag[1:]): value for tag, value in tags.items()}
    return tiff({tag: ("H", (value,)) for tag, value in fields.items()}, array.tobytes())


def test_a_tiff_without_its_end_is_whole_until_pixels_are_lost() -> None:
    packed = b"".join(b"\x3b" + row.tobytes() for row in gradient()[..., 0])  # 60 bytes as they are
    fields = {256: 60, 257: 40, 258: 8, 259: 32773, 262: 1, 277: 1, 278: 40}
    data = tiff({tag: ("H", (value,)) for tag, value in fields.items()}, packed + bytes(100))
    for lost in (1, 50, 100):
        found = decoded(data[:-lost])
        np.testing.assert_array_equal(np.asarray(found.image)[..., 0], gradient()[..., 0])
        assert found.notes[0].startswith("cut_off: ")
    for lost in (101, 160, 1000):
        with pytest.raises(DecodeError):
            decode(data[:-lost])


# --- pages of a TIFF ----------------------------------------------------------------------------

GREY, SMALL = gradient(80, 120)[..., 0], gradient(20, 30)[..., 0]


def pages(*arrays: np.ndarray, subfile: int = 0) -> bytes:
    """A TIFF of several pages; ``subfile`` is the kind of the first."""
    first, *others = map(Image.fromarray, arrays)
    return saved(first, "TIFF", save_all=True, append_images=others, tiffinfo={254: subfile})


@pytest.mark.parametrize("subfile", [0, 1])
def test_a_tiff_with_a_thumbnail_first_shows_its_picture(subfile: int) -> None:
    found = decoded(pages(SMALL, GREY, subfile=subfile))
    np.testing.assert_array_equal(np.asarray(found.image)[..., 0], GREY)
    assert found.notes[0].startswith("pages: page 2 of 2 ")


def test_a_tiff_of_several_pages_says_which_was_scored() -> None:
    for data in (pages(GREY, GREY[::-1].copy()), pages(GREY, SMALL)):
        found = decoded(data)
        np.testing.assert_array_equal(np.asarray(found.image)[..., 0], GREY)
        assert found.notes == ("pages: page 1 of 2 was scored",)
    assert not decoded(pages(GREY)).notes


def test_a_tiff_whose_pages_form_a_loop_ends() -> None:
    data = bytearray(pages(GREY, SMALL))
    (start,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    np.testing.assert_array_equal(np.asarray(decode(bytes(data)))[..., 0], GREY)


@pytest.mark.parametrize("big", [False, True])
def test_the_picture_in_a_sub_directory_is_found(big: bool) -> None:
    layout, head, width = ("<Q", 8, 20) if big else ("<I", 2, 12)
    one = saved(Image.fromarray(SMALL), "TIFF", tiffinfo={330: 0}, big_tiff=big)
    two = bytearray(saved(Image.fromarray(GREY), "TIFF", big_tiff=big))
    at = 8 if big else 4
    (start,) = struct.unpack_from(layout, two, at)
    (count,) = struct.unpack_from("<Q" if big else "<H", two, start)
    rows = [start + head + width * i for i in range(count)]
    size = 12 if big else 8
    for row in rows:  # everything in the second file moves behind the first
        tag, kind, number = struct.unpack_from("<HHQ" if big else "<HHI", two, row)
        outside = number * {3: 2, 4: 4, 16: 8}.get(kind, 1) > (8 if big else 4)
        if tag == 273 or outside:
            form = {3: "<H", 4: "<I", 16: "<Q"}[kind] if not outside else layout
            (value,) = struct.unpack_from(form, two, row + size)
            struct.pack_into(form, two, row + size, value + len(one))
    data = bytearray(one + two)
    (start_one,) = struct.unpack_from(layout, data, at)
    (count,) = struct.unpack_from("<Q" if big else "<H", data, start_one)
    for row in (start_one + head + width * i for i in range(count)):
        if struct.unpack_from("<H", data, row)[0] == 330:
            struct.pack_into("<HQ" if big else "<HI", data, row + 2, 16 if big else 4, 1)
            struct.pack_into(layout, data, row + size, len(one) + start)
    found = decoded(bytes(data))
    np.testing.assert_array_equal(np.asarray(found.image)[..., 0], GREY)
    assert "full picture" in found.notes[0]


@pytest.mark.parametrize(
    ("tags", "mark"),
    [({50706: 1}, b""), ({262: 32803}, b""), ({262: 34892}, b""), ({}, b"CR\2\0")],
)
def test_raw_files_are_refused_whatever_is_first_in_them(tags: dict, mark: bytes) -> None:
    fields = {256: 120, 257: 80, 258: 8, 259: 1, 262: 1, 277: 1, 278: 80} | tags
    data = tiff({tag: ("H", (value,)) for tag, value in fields.items()}, GREY.tobytes())
    if mark:  # between the header and the directory, as Canon writes it
        at = len(data)
        data = data[:4] + struct.pack("<I", at) + mark + data[12:] + data[8:]
    with pytest.raises(DecodeError, match="raw camera file") as caught:
        decode(data)
    assert caught.value.reason == FOREIGN


# --- depth and polarity -------------------------------------------------------------------------


def grey_of(data: bytes) -> np.ndarray:
    return np.asarray(decode(data))[..., 0]


def twelve_bits(values: np.ndarray) -> np.ndarray:
    """Two values in three bytes."""
    one, two = values[:, ::2], values[:, 1::2]
    packed = np.stack([one >> 4, (one & 15) << 4 | two >> 8, two & 255], -1)
    return packed.astype(np.uint8).reshape(len(values), -1)


def test_depth_of_grey_tiffs() -> None:
    levels = np.linspace(0, 4095, 80 * 120).round().astype(np.uint16).reshape(80, 120)
    shown = np.rint(levels * (255 / 4095)).astype(np.uint8)
    packed = grey_tiff(twelve_bits(levels), bits=12, t256=120)
    np.testing.assert_array_equal(grey_of(packed), shown)
    in_16 = grey_tiff(levels, bits=16, t281=4095)
    np.testing.assert_array_equal(grey_of(in_16), shown)
    share = (levels / 4095).astype(np.float32)
    np.testing.assert_array_equal(grey_of(encoded(share, "TIFF")), np.rint(share * 255))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero(dtype: type) -> None:
    most = 1.0 if dtype is np.float32 else np.iinfo(dtype).max
    array: np.ndarray = (GREY.astype(np.float64) * most / 255).astype(dtype)
    bits, kind = 8 * array.itemsize, 3 if dtype is np.float32 else 1
    plain, inverted = (grey_tiff(array, bits=bits, t262=p, t339=kind) for p in (1, 0))
    np.testing.assert_array_equal(grey_of(plain), GREY)
    np.testing.assert_array_equal(grey_of(inverted), 255 - GREY)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_signed_pixels_are_refused(bits: int) -> None:
    data = grey_tiff(GREY.astype(f"i{bits // 8}"), bits=bits, t339=2)
    with pytest.raises(DecodeError, match="stated range"):
        decode(data)


# --- transparency -------------------------------------------------------------------------------


def packed_png(levels: np.ndarray, bits: int, key: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits with a transparent value."""
    per = 8 // bits
    shifts = np.arange(per)[::-1] * bits
    rows = (levels.reshape(len(levels), -1, per) << shifts).sum(-1).astype(np.uint8)
    header = struct.pack(">IIBBBBB", *levels.shape[::-1], bits, 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = (b"IHDR", header), (b"tRNS", struct.pack(">H", key)), (b"IDAT", body), (b"IEND", b"")
    return containers.PNG + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_colour_keys_of_shallow_pngs(bits: int) -> None:
    levels = np.random.default_rng(0).integers(0, 1 << bits, (40, 64))
    for key in (0, 1):
        shown = np.where(levels == key, 255, levels * 255 // ((1 << bits) - 1))
        found = decoded(packed_png(levels, bits, key))
        np.testing.assert_array_equal(np.asarray(found.image)[..., 0], shown)
        assert found.transparent


def test_the_unused_alpha_of_a_bitmap_is_ignored() -> None:
    hidden = np.dstack([noise(), np.zeros((40, 60), np.uint8)])
    shown = decoded(encoded(hidden, "BMP"))
    np.testing.assert_array_equal(np.asarray(shown.image), noise())
    assert not shown.transparent


OPAQUE = np.dstack([noise(), np.full((40, 60), 255, np.uint8)])


def opaque_palette() -> bytes:
    """A palette whose transparent entry no pixel uses."""
    image = Image.fromarray(noise()[..., 0] % 8).convert("P")
    return saved(image, transparency=200)


@pytest.mark.parametrize(
    "make",
    [
        lambda: encoded(np.dstack([noise(), np.full((40, 60), 255, np.uint8)])),
        lambda: encoded(
            np.dstack([noise(), np.full((40, 60), 255, np.uint8)]), "WEBP", lossless=True
        ),
        opaque_palette,
    ],
)
def test_transparency_is_of_pixels_not_of_channels(make: Callable[[], bytes]) -> None:
    assert not decoded(make()).transparent


def test_one_transparent_pixel_is_enough() -> None:
    alpha = np.full((40, 60), 255, np.uint8)
    alpha[-1, -1] = 254
    assert decoded(encoded(np.dstack([noise(), alpha]))).transparent
