"""Names files by their first bytes: formats that are not read, and downloads that failed."""

import re

CONVERT = "convert it to PNG"
DEVELOP = "develop it to TIFF, PNG or JPEG; its preview is not the picture"
FRAME = "save a frame of it as PNG"
EXPORT = "export it as PNG"
UNPACK = "unpack it"
LOOKED_AT = 4096  # bytes at the start of a file

# (pattern of the first bytes, name, way out)
KNOWN = tuple(
    (re.compile(pattern, re.DOTALL), name, advice)
    for pattern, name, advice in (
        (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "JPEG XL image", "install cinemae_jax[jxl]"),
        (rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000 image", CONVERT),
        (rb"....ftypcrx ", "raw camera file (CR3)", DEVELOP),
        (rb"FUJIFILMCCD-RAW", "raw camera file (RAF)", DEVELOP),
        (rb"IIU\x00", "raw camera file (RW2)", DEVELOP),
        (rb"IIRO|IIRS|MMOR", "raw camera file (ORF)", DEVELOP),
        (rb"FOVb", "raw camera file (X3F)", DEVELOP),
        (rb"\x00MRM", "raw camera file (MRW)", DEVELOP),
        (rb"....ftyp(?!avi[fs]|hei|hev|mif1|msf1)|\x1aE\xdf\xa3|RIFF....AVI ", "video", FRAME),
        (rb"%PDF-", "PDF document", "export the picture in it as PNG"),
        (rb"8BPS", "Photoshop document", EXPORT),
        (rb"gimp xcf", "GIMP document", EXPORT),
        (rb"\s*<(svg|[?!].{,2000}?<svg)\b", "SVG drawing", EXPORT),
        (rb"P[1-7]\s", "PNM image", CONVERT),
        (rb"v/1\x01", "OpenEXR image", CONVERT),
        (rb"#\?(RADIANCE|RGBE)", "Radiance HDR image", CONVERT),
        (rb"\x00\x00[\x01\x02]\x00", "icon", CONVERT),
        (rb".{128}DICM", "DICOM image", CONVERT),
        (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "archive", UNPACK),
        (rb"PAR1", "Parquet file", "give it as the root of a data set"),
    )
)  # fmt: skip
# Processes of JPEG that libjpeg cannot decode, or not through Pillow, by frame marker.
JPEG_PROCESSES = {
    0xC3: "lossless JPEG",
    0xC5: "hierarchical JPEG",
    0xC6: "hierarchical JPEG",
    0xC7: "lossless JPEG",
    0xCB: "lossless JPEG",
}
# Raw files that begin as a TIFF: (mark, its place, name).
RAW_MARKS = ((b"CR\2", 8, "CR2"), (b"IIII", 8, "IIQ"))


def unread(data: bytes) -> str:
    """What the content of a file is, and the way out; empty if it is not known.

    Args:
      data: the file, or its first ``LOOKED_AT`` bytes.
    """
    if failed := failed_download(data):
        return failed
    start = data[:LOOKED_AT]
    for pattern, name, advice in KNOWN:
        if pattern.match(start):
            return f"{name}, which is not read: {advice}"
    return ""


def failed_download(data: bytes) -> str:
    """What a file is that was downloaded instead of the one wanted; empty if it is none.

    Args:
      data: the file, or its first ``LOOKED_AT`` bytes.
    """
    start = data[:LOOKED_AT].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not data:
        return "empty file: download it again"
    if start.startswith(b"version https://git-lfs"):
        return "Git LFS pointer instead of the file: run git lfs pull, or download the file itself"
    if start.startswith((b"<!doctype html", b"<html")):
        return "web page (HTML) instead of the file: download the file itself"
    if start.startswith(b"<?xml") and b"<error>" in start:
        return "error message of a file server (XML) instead of the file: download it again"
    return ""


def is_heif(data: bytes) -> bool:
    """Whether the file is HEIC or HEIF, and not AVIF, which has the same container."""
    if data[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[at : at + 4] for at in (8, *range(16, size - 3, 4))}
    if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}:
        return True
    return data[8:12] in (b"mif1", b"msf1") and not brands & {b"avif", b"avis"}


def is_jpeg_xl(data: bytes) -> bool:
    """A bare code stream, or one in its container."""
    return data.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n"))
