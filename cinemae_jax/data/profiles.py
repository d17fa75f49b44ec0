"""Tells from an ICC colour profile whether its colours differ from sRGB (ICC.1:2022, 7.2, 9.2)."""

import struct

import numpy as np

# Red, green and blue of sRGB in the connection space of profiles (XYZ, D50); profiles that mean it
# differ in the third digit.
SRGB = {
    b"rXYZ": (0.4361, 0.2225, 0.0139),
    b"gXYZ": (0.3851, 0.7169, 0.0971),
    b"bXYZ": (0.1431, 0.0606, 0.7141),
}
TOLERANCE = 0.02
MAX_TAGS, MAX_NAME = 100, 60


def unlike_srgb(profile: bytes) -> str:
    """The name of a profile whose primaries are not those of sRGB, or that is for CMYK or Lab.

    Empty for sRGB, for grey, and for a profile that cannot be read.
    """
    try:
        space, tags = profile[16:20], _tags(profile)
        if space not in (b"RGB ", b"CMYK", b"Lab "):
            return ""
        if space == b"RGB ":
            found = np.array([_xyz(tags[colour]) for colour in SRGB])
            if np.abs(found - list(SRGB.values())).max() <= TOLERANCE:
                return ""
        kind = space.decode("ascii").strip()
        return f"{kind} profile {_name(tags.get(b'desc', b''))}".strip()
    except (struct.error, KeyError, UnicodeDecodeError):
        return ""


def _tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    rows = [struct.unpack_from(">4sII", profile, 132 + 12 * i) for i in range(min(count, MAX_TAGS))]
    return {kind: profile[start : start + size] for kind, start, size in rows}


def _xyz(tag: bytes) -> tuple[float, float, float]:
    x, y, z = struct.unpack_from(">iii", tag, 8)
    return x / 65536, y / 65536, z / 65536


def _name(tag: bytes) -> str:
    """The description, in version 2 (ASCII) or version 4 (UTF-16) of the format."""
    if tag.startswith(b"mluc"):
        size, start = struct.unpack_from(">II", tag, 20)
        text = tag[start : start + size].decode("utf-16-be", "replace")
    else:
        text = tag[12:].partition(b"\0")[0].decode("latin-1")
    return "".join(c for c in text if c.isprintable())[:MAX_NAME]
