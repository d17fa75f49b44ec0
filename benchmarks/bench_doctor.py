"""``cinemae doctor`` against bare decoding of the same files by the same number of workers.

    python benchmarks/bench_doctor.py [--workers 2] [--repeats 7] [--scale 1.0]

Prints images/s and their ratio for JPEG and PNG files of 512 × 512, by wall clock and by CPU time,
which other programs disturb less.  Values are medians over repetitions that take turns, so a change
of the machine's load affects all of them.  The doctor starts its processes in every repetition.
The aim is a ratio of 0.9.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from cinemae_jax.data.decode import decode
from cinemae_jax.data.inspect import diagnosis, examination, facts

SIDE = 512
DIFFERENT = 200  # distinct images; the other files are hard links to them
FILES = {"jpg": 8000, "png": 2000}  # about ten seconds of work per core


def write_images(root: Path, kind: str, count: int) -> list[Path]:
    """Images with the spectrum of photographs (amplitude as 1 / frequency), half per class."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    frequency[0, 0] = 1.0
    paths: list[Path] = []
    for i in range(count):
        folder = root / "generator/inner/val" / ("nature", "ai")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        paths.append(folder / f"{i}.{kind}")
        if i >= DIFFERENT:
            paths[i].hardlink_to(paths[i % DIFFERENT])
            continue
        noise = np.fft.rfft2(rng.normal(size=(3, SIDE, SIDE)))
        waves = np.fft.irfft2(noise / frequency, (SIDE, SIDE)).transpose(1, 2, 0)
        pixels = np.clip(127 + 50 * waves / waves.std(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(paths[i])
    return paths


def decode_some(paths: Sequence[Path]) -> None:
    for path in paths:
        decode(path.read_bytes())


def examine_some(paths: Sequence[Path]) -> None:
    for path in paths:
        facts.examine(path)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock seconds, and CPU seconds of this process and its finished children."""
    start, before = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - start, sum(os.times()[:4]) - before


def in_pool(pool: Executor, work: Callable, paths: Sequence[Path]) -> None:
    chunks = [paths[i : i + examination.CHUNK] for i in range(0, len(paths), examination.CHUNK)]
    for _ in pool.map(work, chunks):
        pass


def bench(kind: str, images: int, workers: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), kind, images)
        context = multiprocessing.get_context("spawn")
        with (
            ThreadPoolExecutor(workers) as threads,
            ProcessPoolExecutor(workers, mp_context=context) as processes,
        ):
            jobs: dict[str, Callable[[], object]] = {
                "bare decoding, threads": lambda: in_pool(threads, decode_some, paths),
                "bare decoding, processes": lambda: in_pool(processes, decode_some, paths),
                "facts alone, threads": lambda: in_pool(threads, examine_some, paths),
                "doctor: files": lambda: examination.examine(folder, workers=workers),
                "doctor: files and report": lambda: diagnosis.report(
                    examination.examine(folder, workers=workers)
                ),
            }
            in_pool(processes, decode_some, paths)  # imports, caches, worker start
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in jobs}
            for _ in range(repeats):
                for name, job in jobs.items():
                    times[name].append(seconds(job))
    print(f"{kind}: {images} files of {SIDE} x {SIDE}, {workers} workers, {repeats} repetitions")
    bare = times["bare decoding, threads"]
    for name, taken in times.items():
        rate = images / statistics.median(clock for clock, _ in taken)
        clock, cpu = (ratio([b[i] for b in bare], [t[i] for t in taken]) for i in range(2))
        by_cpu = "" if name == "bare decoding, processes" else f", by processor time {cpu}"
        print(f"  {name:<25}{rate:6.0f} images/s   ratio {clock}{by_cpu}")


def ratio(bare: Sequence[float], taken: Sequence[float]) -> str:
    """Median and quartiles of the ratios of one repetition each."""
    low, middle, high = statistics.quantiles([b / t for b, t in zip(bare, taken, strict=True)], n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--workers", type=int, default=os.cpu_count())
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--scale", type=float, default=1.0, help="factor on the number of files")
    chosen = options.parse_args()
    for kind, count in FILES.items():
        bench(kind, round(count * chosen.scale), chosen.workers, chosen.repeats)


if __name__ == "__main__":
    main()
