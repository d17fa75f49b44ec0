"""Convert an image to the common size and codec of the set.

In: an open image and the square to keep. Out: the bytes of a JPEG file without metadata.
"""

from __future__ import annotations

import io

from PIL import Image, ImageOps

SIDE = 256
# Most sources are 400-pixel thumbnails, some are 20-megapixel photographs. Reducing the large ones
# to 400 first gives nearly all files of both classes the same last step, 400 -> 256.
COMMON_SIDE = 400
MIN_REDUCTION = 1.25
JPEG_QUALITY = 90


def crop_box(size: tuple[int, int], crop: str) -> tuple[int, int, int, int]:
    """The square to keep: the centre, or "left,top,side" if ``crop`` is given."""
    if crop:
        left, top, side = (int(number) for number in crop.split(","))
    else:
        side = min(size)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
    if left + side > size[0] or top + side > size[1]:
        raise ValueError(f"the crop {crop} exceeds the image size {size}")
    return left, top, left + side, top + side


def render(image: Image.Image, crop: str) -> bytes:
    """Convert an image to the common size and codec, without its metadata."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    square = upright.crop(crop_box(upright.size, crop))
    if square.width < MIN_REDUCTION * SIDE:
        raise ValueError(f"a side of {square.width} pixels is too small to reduce to {SIDE}")
    if square.width > COMMON_SIDE:
        square = square.resize((COMMON_SIDE, COMMON_SIDE), Image.Resampling.LANCZOS)
    small = square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    # A new image has no EXIF, colour profile or comment that the encoder could copy.
    clean = Image.new("RGB", small.size)
    clean.paste(small)
    buffer = io.BytesIO()
    clean.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0", optimize=True)
    return buffer.getvalue()
