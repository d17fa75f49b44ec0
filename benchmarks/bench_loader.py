"""Loader throughput against the floor: the same decoding in a bare thread pool.

    python benchmarks/bench_loader.py [--images 256] [--threads 2] [--repeats 5]

Both read the same JPEG and PNG files of 512 x 512 pixels, on the same cores, in turn; the table
gives medians over the repeats and the ratio loader / floor.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from cinemae_jax.data import catalog, loader
from cinemae_jax.data.transforms import Crop

SIDE, SIZE, BATCH = 512, 224, 64


def write_images(root: Path, count: int, suffix: str) -> None:
    """Pictures of clouds and grain, about as hard to compress as photographs."""
    rng = np.random.default_rng(0)
    folder = root / "bench" / "i" / "val" / "nature"
    folder.mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
        pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}{suffix}", quality=92)


def rate(function: Callable[[], int]) -> float:
    begin = time.perf_counter()
    return function() / (time.perf_counter() - begin)


def measure(images: loader.Images, threads: int, repeats: int) -> tuple[list[float], list[float]]:
    crop = Crop(SIZE, resize=256)

    def one(row: int) -> int:
        crop(images.read(row), np.random.default_rng(0))
        return 1

    def floor() -> int:
        with ThreadPoolExecutor(threads) as pool:
            return sum(pool.map(one, range(len(images))))

    def loading() -> int:
        batches = loader.eval_batches(
            images, crop, size=SIZE, batch_size=BATCH, num_threads=threads
        )
        return sum(int(batch["valid"].sum()) for batch in batches)

    floor(), loading()  # warm the page cache
    pairs = [(rate(floor), rate(loading)) for _ in range(repeats)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    table = Table(title=f"{SIDE}² images, {options.threads} threads, {platform.processor()}")
    for name in ("format", "floor, images/s", "loader, images/s", "ratio: least, median, most"):
        table.add_column(name)
    for suffix in (".jpg", ".png"):
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), options.images, suffix)
            images = loader.from_catalog(catalog.scan(folder))
            floors, loads = measure(images, options.threads, options.repeats)
        ratios = sorted(b / a for a, b in zip(floors, loads, strict=True))
        spread = f"{ratios[0]:.2f}, {np.median(ratios):.2f}, {ratios[-1]:.2f}"
        table.add_row(suffix[1:], f"{np.median(floors):.0f}", f"{np.median(loads):.0f}", spread)
    Console().print(table)


if __name__ == "__main__":
    main()
