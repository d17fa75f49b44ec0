"""Data sets whose classes differ by a planted property of their files, or by nothing."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.pictures import saved


def picture(rng: np.random.Generator, height: int = 40, width: int = 40) -> Image.Image:
    """Smooth colours with some noise, the same for both classes."""
    small = Image.fromarray(rng.integers(60, 190, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype("u1"))


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def planted_set(root: Path, *, confounded: bool, splits: tuple[str, ...], count: int = 12) -> Path:
    """Two generators of like images; confounded: nature is JPEG and AI is PNG."""
    rng = np.random.default_rng(0)
    files = {}
    for generator, split in (("gen_a", split) for split in splits):
        for name in (generator, "gen_b") if split == "val" else (generator,):
            for label in ("nature", "ai"):
                for i in range(count):
                    kind = "JPEG" if confounded and label == "nature" else "PNG"
                    path = f"{name}/imagenet_x/{split}/{label}/{i}.{kind.lower()}"
                    files[path] = saved(picture(rng), kind)
    return write(root, files)
