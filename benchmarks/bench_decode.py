"""Decoding cost per core: images of 512 x 512 in memory, one thread.

    python benchmarks/bench_decode.py [--images 24] [--repetitions 7]

Times are CPU times of this process, which other work on the machine disturbs little.  Each is the
median over repetitions that take turns.  'floor' is Pillow alone: decode, bicubic resize to 256,
centre crop.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from cinemae_jax.data.augment import Augment
from cinemae_jax.data.decode import decode
from cinemae_jax.data.transforms import Crop, MultiCrop

SIDE = 512
Work = Callable[[bytes, np.random.Generator], object]


def picture(rng: np.random.Generator) -> Image.Image:
    """1/f noise, which has about as much detail at every scale as a photograph."""
    total = np.zeros((SIDE, SIDE, 3))
    for level in range(2, 10):
        coarse = rng.normal(0, 26, (2**level, 2**level, 3)) * 1.35 ** (2 - level)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel].astype(np.float32))
            total[..., channel] += np.asarray(layer.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def floor(data: bytes, _: np.random.Generator) -> object:
    image = Image.open(io.BytesIO(data)).resize((256, 256), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((16, 16, 240, 240)))


WORK: dict[str, Work] = {
    "floor: Pillow alone": floor,
    "decode": lambda data, _: decode(data),
    "resize_crop 256/224": Crop(224, resize=256),
    "crop 224": Crop(224, resize=0),
    "multi_crop 4 x 224": MultiCrop(224, num_crops=4),
    "crop 224, JPEG p=1": Crop(224, resize=0, random=True, augment=Augment(1.0)),
    "crop 224, resize p=1": Crop(
        224, resize=0, random=True, augment=Augment(resize_probability=1.0)
    ),
}


def seconds(work: Work, files: list[bytes]) -> float:
    """CPU seconds per image."""
    rng = np.random.default_rng(0)
    start = time.process_time()
    for data in files:
        work(data, rng)
    return (time.process_time() - start) / len(files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(options.images)]
    sets = {
        f"JPEG {SIDE}": [encoded(image, "JPEG", quality=90) for image in pictures],
        f"PNG {SIDE}": [encoded(image, "PNG") for image in pictures],
    }
    rows = [(name, what) for name in sets for what in WORK]
    times: dict[tuple[str, str], list[float]] = {row: [] for row in rows}
    for _ in range(options.repetitions):
        for name, what in rows:
            times[name, what].append(seconds(WORK[what], sets[name]))
    print(f"{'files':9} {'KB':>5}  {'work':22} {'ms':>7} {'images/s':>9} {'of floor':>9}")
    for name, what in rows:
        median = statistics.median(times[name, what])
        share = statistics.median(times[name, "floor: Pillow alone"]) / median
        size = statistics.mean(map(len, sets[name])) / 1000
        print(
            f"{name:9} {size:5.0f}  {what:22} {1000 * median:7.2f} {1 / median:9.0f} {share:9.0%}"
        )


if __name__ == "__main__":
    main()
