"""Image files of every unusual kind, made here."""

import numpy as np
from PIL import Image

from cinemae_jax.data.inspect import facts
from tests.helpers.pictures import raw_png
from tests.helpers.pictures import saved as encoded


def picture(seed: int = 0, width: int = 80, height: int = 64) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header claims any size."""
    nothing = np.zeros((0, 0, 3), np.uint8)
    return raw_png(nothing, depth=8, colour_type=2, size=(width, height))


def animation(kind: str) -> bytes:
    frames = [picture(i) for i in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def translucent(mode: str) -> Image.Image:
    image = picture().convert(mode)
    image.putalpha(128)
    return image


PNG, JPEG = encoded(picture()), encoded(picture(), "JPEG")

UNREADABLE = {
    "empty.jpg": (b"", facts.EMPTY),
    "cut.jpg": (JPEG[: len(JPEG) // 2], facts.TRUNCATED),
    "cut.png": (PNG[: len(PNG) // 2], facts.TRUNCATED),
    "flipped.png": (PNG[:-40] + bytes([PNG[-40] ^ 255]) + PNG[-39:], facts.DAMAGED),
    "cut_head.jpg": (JPEG[:100], facts.TRUNCATED),
    "text.png": (b"no picture\n" * 20, facts.NO_IMAGE),
    "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", facts.FOREIGN),
    "one_pixel.png": (encoded(picture(width=1, height=1)), facts.TOO_SMALL),
    "strip.png": (encoded(picture(width=16 * 33, height=16)), facts.TOO_NARROW),
    "bomb.png": (bomb(30_000, 30_000), facts.TOO_LARGE),
    "wide_bomb.png": (bomb(2**31 - 1, 20), facts.TOO_LARGE),
    "large.png": (bomb(9_000, 9_000), facts.TOO_LARGE),
    "float.tiff": (encoded(Image.new("F", (64, 64), 2.0), "TIFF"), facts.UNSUPPORTED),
}
ODD = {
    "jpeg_named.png": (JPEG, {"wrong_extension"}),
    "frames.gif": (animation("GIF"), {"animated", "palette"}),
    "frames.webp": (animation("WEBP"), {"animated"}),
    "small.png": (encoded(picture(width=32, height=20)), {"tiny"}),
    "long.png": (encoded(picture(width=500, height=80)), {"narrow"}),
    "huge.png": (encoded(Image.new("L", (4100, 4000))), {"giant", "grey"}),
    "deep.png": (encoded(Image.new("I;16", (64, 64))), {"deep", "grey"}),
    "deep_rgb.png": (raw_png(np.zeros((64, 64, 3)), depth=16, colour_type=2), {"deep"}),
    "cmyk.jpg": (encoded(picture().convert("CMYK"), "JPEG"), {"cmyk"}),
    "palette.png": (encoded(picture().quantize(16)), {"palette"}),
    "transparent.png": (encoded(translucent("RGB")), {"alpha"}),
    "grey_alpha.png": (encoded(translucent("L")), {"alpha", "grey"}),
    "opaque.png": (encoded(picture().convert("RGBA")), set()),
    "clear_colour.png": (encoded(picture().quantize(16), transparency=3), {"palette", "alpha"}),
    "lab.tiff": (encoded(Image.new("LAB", (64, 64)), "TIFF"), {"other_mode"}),
}
