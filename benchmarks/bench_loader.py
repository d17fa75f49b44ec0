"""Loader throughput against the floor: the same decoding in a bare thread pool.

    python benchmarks/bench_loader.py [--images 256] [--threads 2] [--repeats 5]

All contenders read the same JPEG and PNG files of 512 x 512 pixels on the same cores, in turn.  The
table gives medians over the repeats, and ratios to the floor of the same repeat.  "processes" uses
as many of Grain's processes as there are threads: what the loader would gain from them.  Its rate
excludes their start, which is printed separately.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grain
import numpy as np
from absl import flags
from PIL import Image
from rich.console import Console
from rich.table import Table

from cinemae_jax.data import catalog, loader
from cinemae_jax.data.transforms import Crop

SIDE, SIZE, BATCH = 512, 224, 32


def write_images(root: Path, count: int, suffix: str) -> None:
    """Smooth colours with grain, which compress about as well as photographs."""
    rng = np.random.default_rng(0)
    folder = root / "bench" / "i" / "val" / "nature"
    folder.mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
        pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}{suffix}", quality=92)


@dataclasses.dataclass(frozen=True)
class Work:
    """From a row to a cropped image; threads and processes get the same work."""

    images: loader.Images
    crop: Crop

    def __call__(self, row: int) -> np.ndarray:
        return self.crop(self.images.read(row), np.random.default_rng(0))


def floor(work: Work, threads: int) -> float:
    """Images per second."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(1 for _ in pool.map(work, range(len(work.images))))
    return count / (time.perf_counter() - begin)


def loading(work: Work, threads: int) -> float:
    """Images per second."""
    begin = time.perf_counter()
    batches = loader.Loader(work.images, work.crop, num_threads=threads).eval_batches(
        batch_size=BATCH
    )
    count = sum(int(batch["valid"].sum()) for batch in batches)
    return count / (time.perf_counter() - begin)


def processes(work: Work, workers: int) -> tuple[float, float]:
    """(images per second once all processes run, seconds until then)."""
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    stream = grain.MapDataset.range(len(work.images)).repeat().map(work).batch(BATCH)
    alone = grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCH)
    begin = time.perf_counter()
    batches = iter(stream.to_iter_dataset(alone).mp_prefetch(options))
    for _ in range(4 * workers):  # batches prefetched while other processes started
        next(batches)
    rounds = max(4, len(work.images) // (BATCH * workers))  # every process delivers
    ready = time.perf_counter()
    count = sum(len(next(batches)) for _ in range(rounds * workers))
    seconds = time.perf_counter() - ready
    batches.close()
    return count / seconds, ready - begin


def bench(images: int, threads: int, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Runs and prints the comparison.

    Returns:
      For each kind of file, images/s of every repeat, and seconds until the processes started.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's processes require it
    table = Table(title=f"{SIDE}² images, {threads} threads")
    for name in ("images/s", "floor", "loader", "processes", "loader / floor", "processes / floor"):
        table.add_column(name)
    result = {}
    for suffix in (".jpg", ".png"):
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), images, suffix)
            source = loader.from_catalog(catalog.scan(folder))
            work = Work(source, Crop(SIZE, resize=256))
            floor(work, threads)  # warms the page cache
            rates, starts = [], []
            for _ in range(repeats):
                rate, start = processes(work, threads)
                starts.append(start)
                rates.append((floor(work, threads), loading(work, threads), rate))
        floors, loads, parallel = (list(each) for each in zip(*rates, strict=True))
        table.add_row(
            suffix[1:],
            *(f"{np.median(each):.0f}" for each in (floors, loads, parallel)),
            *(spread(each, floors) for each in (loads, parallel)),
        )
        print(f"{suffix}: processes and first batches: {np.median(starts):.1f} s")
        result[suffix] = {
            "floor": floors,
            "loader": loads,
            "processes": parallel,
            "start_s": starts,
        }
    Console().print(table)
    return result


def spread(rates: Sequence[float], floors: Sequence[float]) -> str:
    """Smallest, median and largest ratio."""
    ratios = sorted(a / b for a, b in zip(rates, floors, strict=True))
    return f"{ratios[0]:.2f}, {np.median(ratios):.2f}, {ratios[-1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    bench(options.images, options.threads, options.repeats)


if __name__ == "__main__":
    main()
