"""Labelled folders whose classes differ in their file format alone, or in nothing."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.pictures import saved


def smooth_image(rng: np.random.Generator, height: int = 40, width: int = 40) -> Image.Image:
    """Smooth colours with some noise, drawn alike for both classes."""
    small = Image.fromarray(rng.integers(60, 190, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype("u1"))


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    """Writes files below a folder: contents by relative path."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def planted_set(root: Path, *, confounded: bool, splits: tuple[str, ...], count: int = 12) -> Path:
    """gen_a in all splits, gen_b in val; ``count`` images per class.

    Confounded: nature is JPEG and AI is PNG; otherwise all files are PNG.
    """
    rng = np.random.default_rng(0)
    files = {}
    for split in splits:
        for name in ("gen_a", "gen_b") if split == "val" else ("gen_a",):
            for label in ("nature", "ai"):
                for i in range(count):
                    kind = "JPEG" if confounded and label == "nature" else "PNG"
                    path = f"{name}/imagenet_x/{split}/{label}/{i}.{kind.lower()}"
                    files[path] = saved(smooth_image(rng), kind)
    return write_files(root, files)
