"""What an encoder's images must go through, as preprocessor_config.json beside its tensors says."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cinemae_jax.model.vit import Preprocessing
from weights_convert.sources import ConversionError

FILE = "preprocessor_config.json"
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # PIL's numbers

# As each layout's repositories publish it, for square images of the given size.
USUAL: Mapping[str, Callable[[int], Preprocessing]] = {
    "clip": lambda size: Preprocessing(*OPENAI, size, size, "bicubic"),
    "siglip": lambda size: Preprocessing(*HALF, size, 0, "bicubic"),
    "siglip2": lambda size: Preprocessing(*HALF, size, 0, "bilinear"),
    "dinov2": lambda size: Preprocessing(*IMAGENET, 224, 256, "bicubic"),
    "dinov3": lambda size: Preprocessing(*IMAGENET, 224, 0, "bilinear"),
}


def read(folder: Path, layout: str, image_size: int, patch_size: int) -> tuple[Preprocessing, str]:
    """Preprocessing, and a note on it for the header, which may be empty.

    Args:
      folder: of the tensors; ``USUAL`` is taken if it holds no ``FILE``.
      layout: of ``encoder_mapping``.
      image_size: of the position table, pixels.
      patch_size: pixels; must divide the size of the result.

    Raises:
      ConversionError: naming the entry that is missing, or asks for something else.
    """
    path = folder / FILE
    note = ""
    if path.is_file():
        try:
            found, note = _parsed(json.loads(path.read_text(encoding="utf-8")), image_size)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConversionError(f"{path} is refused: {reason}") from error
    else:
        found = USUAL[layout](image_size)
        note = f"no {FILE}: preprocessing as published for {layout}"
    if found.size % patch_size:
        lower = found.size // patch_size * patch_size
        raise ConversionError(
            f"{folder}: patches of {patch_size} do not divide images of {found.size} pixels: write "
            f"{lower or patch_size} or {lower + patch_size} for their size into {path.name}"
        )
    return found, note


def _parsed(config: Mapping[str, Any], image_size: int) -> tuple[Preprocessing, str]:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if config.get(step) is False:
            raise ValueError(f"{step} is false: it must be true")
    factor = config.get("rescale_factor", 1 / 255)
    if not math.isclose(factor, 1 / 255, rel_tol=1e-6):
        raise ValueError(f"rescale_factor is {factor}: it must be 1/255")
    mean, std = (_channels(name, config[name]) for name in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise ValueError(f"image_std {std} must be positive")
    size, shortest_edge, note = _sizes(config, image_size)
    return Preprocessing(mean, std, size, shortest_edge, _interpolation(config["resample"])), note


def _channels(name: str, values: Any) -> tuple[float, float, float]:
    if not isinstance(values, list) or len(values) != 3 or not all(map(math.isfinite, values)):
        raise ValueError(f"{name} must be three numbers, is {values!r}")
    red, green, blue = map(float, values)
    return red, green, blue


def _interpolation(number: Any) -> str:
    if type(number) is not int or not 0 <= number < len(INTERPOLATIONS):
        raise ValueError(f"resample must be one of PIL's numbers, 0 to 5, is {number!r}")
    return INTERPOLATIONS[number]


def _sizes(config: Mapping[str, Any], image_size: int) -> tuple[int, int, str]:
    """Side of the square, shortest edge before its crop (0: no crop), and a note."""
    if "max_num_patches" in config:
        note = "naflex keeps the aspect ratio; here the image is squashed to a square"
        return image_size, 0, note
    size, crop = config["size"], config.get("crop_size")
    crops = bool(crop) and config.get("do_center_crop") is not False
    if isinstance(size, int):  # of transformers before 4.25: the shortest edge where it crops
        size = {"shortest_edge": size} if crops else {"height": size, "width": size}
    if "shortest_edge" in size:
        if not crops:
            raise ValueError("size keeps the aspect ratio and do_center_crop is off: the encoder "
                             "needs squares; set crop_size and do_center_crop")  # fmt: skip
        return _square("crop_size", crop), int(size["shortest_edge"]), ""
    side = _square("size", size)
    if crops and _square("crop_size", crop) != side:
        raise ValueError(f"crop_size {crop} differs from size {size}: use size with shortest_edge")
    return side, 0, ""


def _square(name: str, size: Any) -> int:
    height, width = (size, size) if isinstance(size, int) else (size["height"], size["width"])
    if height != width or type(height) is not int or height < 1:
        raise ValueError(f"{name} must be a square in pixels, is {size!r}")
    return height
