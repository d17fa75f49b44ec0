"""Files that are not read are told from junk; HEIC and JPEG XL are read."""

import io
import struct

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from cinemae_jax.data import kinds
from cinemae_jax.data.decode import decode, open_header, to_pixels
from cinemae_jax.data.inspect import facts
from cinemae_jax.data.refusal import FOREIGN, NO_IMAGE, DecodeError
from tests.helpers.pictures import encoded, gradient, noise, saved

REST = bytes(range(256)) * 4


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n" + REST, "JPEG 2000"),
        (b"\xff\x4f\xff\x51" + REST, "JPEG 2000"),
        (b"\0\0\0\x18ftypcrx " + REST, "raw camera file"),
        (b"FUJIFILMCCD-RAW 0201" + REST, "raw camera file"),
        (b"IIU\0\x18\0\0\0" + REST, "raw camera file"),
        (b"IIRO\x08\0\0\0" + REST, "raw camera file"),
        (b"\0\0\0\x20ftypisom" + REST, "video"),
        (b"\0\0\0\x14ftypqt  " + REST, "video"),
        (b"\x1aE\xdf\xa3" + REST, "video"),
        (b"RIFF" + REST[:4] + b"AVI " + REST, "video"),
        (b"%PDF-1.7\n" + REST, "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- a -->\n<svg>" + REST, "SVG"),
        (b"8BPS\0\1" + REST, "Photoshop"),
        (b"PK\3\4" + REST, "archive"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in", "web page"),
        (b"\xef\xbb\xbf\n<HTML>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "file server"),
    ],
)
def test_known_content_is_named_with_the_way_out(data: bytes, name: str) -> None:
    with pytest.raises(DecodeError, match=name) as caught:
        decode(data)
    assert caught.value.reason == FOREIGN
    assert ":" in str(caught.value)


def test_junk_is_not_given_a_name() -> None:
    for data in (b"hello, this is text", REST, b"<note>to self</note>"):
        with pytest.raises(DecodeError) as caught:
            decode(data)
        assert caught.value.reason == NO_IMAGE


def test_names_take_no_time() -> None:
    assert not kinds.unread(b"<!" + b"<!---->" * 100_000)  # nested patterns would take for ever


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=90, **options)
    return buffer.getvalue()


def test_heic_is_read() -> None:
    picture = Image.fromarray(gradient(64, 96))
    data = heic(picture)
    assert np.abs(np.asarray(decode(data)).astype(int) - gradient(64, 96)).mean() < 6
    found = facts.examine_bytes(data, suffix=".HEIC")
    assert (found.reason, found.format, found.wrong_extension) == ("", "HEIF", False)


def test_heic_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = pillow_heif.from_bytes("RGB", (96, 64), gradient(64, 96).tobytes())
    stored.info["exif"] = exif.tobytes()
    buffer = io.BytesIO()
    stored.save(buffer, quality=90)
    assert b"irot" in buffer.getvalue()
    shown = np.asarray(decode(buffer.getvalue())).astype(int)
    assert shown.shape == (96, 64, 3)
    assert np.abs(shown - np.rot90(gradient(64, 96), -1)).mean() < 6


def test_deep_heic_has_the_right_brightness() -> None:
    deep = (gradient(64, 96).astype(np.uint16) << 8).tobytes()
    buffer = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (96, 64), deep).save(buffer, quality=90)
    shown = np.asarray(decode(buffer.getvalue())).astype(int)
    assert np.abs(shown - gradient(64, 96)).mean() < 6


def test_jpeg_xl_is_read() -> None:
    pytest.importorskip("pillow_jxl")
    data = encoded(noise(), "JXL", lossless=True)
    np.testing.assert_array_equal(np.asarray(decode(data)), noise())


def test_jpeg_xl_without_its_decoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_jxl.JpegXLImagePlugin", None)
    for start in (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"):
        with pytest.raises(DecodeError, match=r"cinemae_jax\[jxl\]"):
            decode(start + REST)


# --- colour profiles ----------------------------------------------------------------------------


def notes(image: Image.Image, profile: bytes, kind: str = "PNG") -> tuple[str, ...]:
    return to_pixels(open_header(saved(image, kind, icc_profile=profile))).notes


def wide_gamut(name: str) -> bytes:
    """The sRGB profile with other primaries and another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    rows = [struct.unpack_from(">4sII", profile, 132 + 12 * i) for i in range(count)]
    places = {kind: start for kind, start, _ in rows}
    struct.pack_into(">i", profile, places[b"rXYZ"] + 8, round(0.515 * 65536))
    start = places[b"desc"]
    size, at = struct.unpack_from(">II", profile, start + 20)
    text = name.encode("utf-16-be").ljust(size, b"\0")[:size]
    profile[start + at : start + at + size] = text
    return bytes(profile)


def test_profiles_that_are_not_applied_are_named() -> None:
    picture, cmyk = Image.fromarray(noise()), Image.new("CMYK", (40, 40))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert notes(picture, srgb) == ()
    (note,) = notes(picture, wide_gamut("Display"))
    assert note.startswith("profile: RGB profile Display")
    inks = bytearray(srgb)
    inks[16:20] = b"CMYK"
    assert notes(cmyk, bytes(inks), "JPEG")[0].startswith("profile: CMYK")
    for broken in (b"", b"x" * 50, srgb[:140], bytes(500)):
        assert not any("RGB" in note for note in notes(picture, broken, "JPEG"))
