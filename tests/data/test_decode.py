import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cinemae_jax.data.decode import EXTENSIONS, decode
from cinemae_jax.data.refusal import DecodeError
from tests.helpers.pictures import encoded, gradient, noise, raw_png, saved


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


# --- modes and formats --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_formats_decode_to_what_pillow_reads(kind: str, options: dict) -> None:
    data = encoded(gradient(), kind, **options)
    plain = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(pixels(data), plain)
    assert np.abs(plain.astype(int) - gradient()).mean() < 6  # still the same picture


def test_formats_outside_the_list_are_refused() -> None:
    for kind in ("PPM", "TGA", "PCX"):
        with pytest.raises(DecodeError, match=r"not read|unsupported format"):
            decode(encoded(gradient(), kind))
    others = {".heic", ".heif", ".hif", ".jxl"}  # their files are made by libraries of their own
    for kind in {Image.registered_extensions()[one] for one in EXTENSIONS - others}:
        decode(encoded(gradient(), kind))


def test_grey_becomes_three_equal_channels() -> None:
    grey = gradient()[..., 0]
    for image in (Image.fromarray(grey), Image.fromarray(grey > 80)):  # 8 bits and 1 bit
        array = pixels(saved(image))
        np.testing.assert_array_equal(array, np.dstack([np.asarray(image.convert("L"))] * 3))


def test_cmyk_jpegs_are_not_inverted() -> None:
    array = pixels(saved(Image.fromarray(gradient()).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(array.astype(int) - gradient()).mean() < 6


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for data in (encoded(deep), encoded(deep, "TIFF")):
        np.testing.assert_array_equal(pixels(data)[..., 0], np.round(deep / 257).astype(np.uint8))


def test_sixteen_bit_colour_keeps_its_upper_bits() -> None:
    deep = np.random.default_rng(0).integers(0, 1 << 16, (20, 30, 3)).astype(np.uint16)
    array = pixels(raw_png(deep, depth=16, colour_type=2))
    np.testing.assert_array_equal(array, (deep >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((20, 20), np.int32),
        np.full((20, 20), 1.5, np.float32),
        np.full((20, 20), np.nan, np.float32),
    ],
)
def test_pixels_without_a_range_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DecodeError, match="no stated range"):
        decode(encoded(array, "TIFF"))


# --- transparency -------------------------------------------------------------------------------


@given(st.integers(0, 255), st.integers(0, 255))
def test_alpha_is_a_weight_against_white(value: int, alpha: int) -> None:
    rgba = np.full((20, 20, 4), value, np.uint8)
    rgba[..., 3] = alpha
    expected = (value * alpha + 255 * (255 - alpha)) / 255
    for array in (rgba, rgba[..., 2:]):  # RGBA and grey with alpha
        assert np.abs(pixels(encoded(array)) - expected).max() <= 1  # rounding


def test_every_kind_of_transparency_shows_the_background() -> None:
    grey = np.repeat(np.array([0, 90], np.uint8), 20 * 40).reshape(40, 40)
    palette = Image.fromarray(grey // 90).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    deep = grey.astype(np.uint16) << 8
    animated = {"save_all": True, "append_images": [palette.copy()]}
    for data, kept in (
        (saved(palette, transparency=1), (10, 20, 30)),  # one transparent entry
        (saved(palette, transparency=bytes([255, 0])), (10, 20, 30)),  # alpha of every entry
        (saved(palette, "GIF", transparency=1), (10, 20, 30)),
        (saved(palette, "GIF", transparency=1, **animated), (10, 20, 30)),
        (saved(Image.fromarray(grey), transparency=90), (0, 0, 0)),
        (raw_png(deep, depth=16, colour_type=0, transparent=struct.pack(">H", 90 << 8)), (0, 0, 0)),
    ):
        array = pixels(data)
        assert (array[:20] == kept).all()
        assert (array[20:] == 255).all()


def test_large_transparent_images_have_no_seams() -> None:
    rgba = np.dstack([noise(2500, 80), np.full((2500, 80), 128, np.uint8)])
    background = Image.new("RGBA", (80, 2500), "white")
    whole = Image.alpha_composite(background, Image.fromarray(rgba)).convert("RGB")
    np.testing.assert_array_equal(pixels(encoded(rgba)), np.asarray(whole))


# --- orientation and frames ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, 1),  # shown after a quarter turn clockwise
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](gradient())
    exif = Image.Exif()
    exif[0x0112] = orientation
    array = pixels(encoded(np.ascontiguousarray(stored), kind, exif=exif))
    assert array.shape == (40, 60, 3)
    assert np.abs(array.astype(int) - gradient()).mean() < 6


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored() -> None:
    profile = PngInfo()
    profile.add_text("Raw profile type exif", "\nexif\n8\nno hexadecimal digits")
    np.testing.assert_array_equal(pixels(encoded(gradient(), pnginfo=profile)), gradient())
    cut_off = b"Exif\0\0MM\0*\0\0\0\x08\0\x05\1\x12"
    assert pixels(encoded(gradient(), "JPEG", exif=cut_off)).shape == (40, 60, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_the_first_frame_of_several_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    array = pixels(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert array.shape == (30, 40, 3)
    assert np.abs(array.astype(int) - (255, 0, 0)).max() <= 4


def test_trailing_bytes_are_ignored() -> None:
    data = encoded(gradient(), "JPEG")
    np.testing.assert_array_equal(pixels(data + b"garbage" * 500), pixels(data))


# --- refusals -----------------------------------------------------------------------------------


def damaged_checksum() -> bytes:
    data = bytearray(encoded(noise()))
    data[data.index(b"IDAT") + 1000] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, this is text", "not an image"),
        (b"\0\0\0\x1cftypheic" + bytes(range(256)) * 4, "damaged image"),
        (b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20, "not an image|damaged image"),
        (damaged_checksum(), "damaged image"),
        (encoded(gradient(8, 8)), "too small: 8 x 8"),
        (encoded(gradient(1, 1)), "too small: 1 x 1"),
        (encoded(gradient(3, 500)), "too small: 500 x 3"),
        (encoded(gradient(16, 600)), "too narrow: 600 x 16"),
    ],
)
def test_unusable_bytes_give_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    data = encoded(noise(), kind)
    with pytest.raises(DecodeError, match=r"damaged image|not an image"):
        decode(data[: int(share * len(data))])


ENCODED = {kind: encoded(noise(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF")}


@given(st.binary(max_size=64), st.integers(0, 2**16), st.sampled_from(sorted(ENCODED)))
def test_overwritten_bytes_give_a_picture_or_a_reason(junk: bytes, where: int, kind: str) -> None:
    data = bytearray(ENCODED[kind])
    where %= len(data)
    data[where : where + len(junk)] = junk
    with contextlib.suppress(DecodeError):  # any other error fails the test
        assert decode(bytes(data)).mode == "RGB"


def resized_header(data: bytes, at: int, layout: str, *sides: int) -> bytes:
    return data[:at] + struct.pack(layout, *sides) + data[at + struct.calcsize(layout) :]


def tiff_with_a_giant_tile(side: int = 32768) -> bytes:
    body = zlib.compress(bytes(1000))
    wide = {256: 100, 257: 100, 322: side, 323: side, 324: 8 + 2 + 12 * 11 + 4, 325: len(body)}
    short = {258: 8, 259: 8, 262: 1, 277: 1, 284: 1}  # one byte per pixel, deflated
    fields = sorted([(t, 4, v) for t, v in wide.items()] + [(t, 3, v) for t, v in short.items()])
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in fields)
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + directory + bytes(4) + body


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.new("1", (9000, 9000))),
        raw_png(gradient(), depth=8, colour_type=2, size=(30000, 30000)),
        resized_header(encoded(gradient(), "GIF"), 6, "<HH", 65535, 65535),
        resized_header(encoded(gradient(), "BMP"), 18, "<ii", 10000, 9000),
        tiff_with_a_giant_tile(),
    ],
)
def test_giant_images_are_refused_before_decoding(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(DecodeError, match="too large"):
        decode(data)
