"""Training from a bank of GenImage's SD v1.4 size, against the floor of arithmetic and memory.

    python benchmarks/bench_bank.py [--images 324000] [--epochs 2] [--seeds 1,5]

Makes random features of ViT-L/16 in memory (1,024 global values, 8 runs of 147 patches; 4.4 GB at
full size) and trains heads on them as ``cinemae_jax.train`` does, with checkpoints and validation.
The floor is the larger of two times: the head's matrix products at the rate of a large product, and
the bytes of the features at the bandwidth of a copy, both measured here.  Also writes and reads one
part of a bank, for its bytes and seconds per image.
"""

import argparse
import dataclasses
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from cinemae_jax import typed
from cinemae_jax.configs import sd14
from cinemae_jax.data import records
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.detector import resuming, trained
from cinemae_jax.features import bank
from cinemae_jax.features.bank import Recipe, Stored
from cinemae_jax.features.run import Run
from cinemae_jax.features.sources import BankedSet, Sets
from cinemae_jax.features.splits import Data
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.config import MAEConfig, vit_large
from cinemae_jax.runtime.checkpoints import Checkpoints
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings
from cinemae_jax.training import fitting

HELD_OUT = 2048
NUM_RUNS = 8


def catalog_of(count: int) -> Catalog:
    paths = [f"{i:07d}.png" for i in range(count)]
    table = records.build(
        pa.array(paths),
        (np.arange(count) % 2).astype(np.int8),
        records.repeated("sd14", count),
        records.repeated("train", count),
        records.example_ids(paths),
    )
    return Catalog(Path(), table, {})


def random_features(count: int, model: MAEConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    masked = model.num_patches - model.num_visible(0.75)
    return {
        "f_global": rng.standard_normal((count, 1, model.width), np.float32),
        "uniform_share": rng.random((count, 1), np.float32),
        **{
            name: rng.random((count, 1, NUM_RUNS, masked), np.float32)
            for name in ("deviation", "mismatch")
        },
        "context_variance": rng.random((count, 1, NUM_RUNS, 3), np.float32),
    }


def banked(count: int, config: Settings, model: MAEConfig) -> BankedSet:
    stored = Stored(random_features(count, model), np.full(count, ""))
    return BankedSet(
        catalog_of(count),
        stored,
        config.detector,
        config.masks,
        model,
        model.width,
        Replicas(),
        batch_size=config.eval.batch_size,
        num_views=config.features.num_views,
    )


def seconds_of_training(config: Settings, sets: Sets, model: MAEConfig) -> float:
    """Seconds of all epochs, including the compilation of the first step."""
    backbone = Backbone({}, model, "random")
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        with Checkpoints(workdir / "checkpoints", best=resuming.validation_score) as checkpoints:
            data = Data(sets.train.images, sets.validation.images, sets.test.images)
            metadata = trained.metadata(config, backbone, data)
            begin = time.perf_counter()
            fitting.fit(config, sets, backbone, Run.start(workdir), checkpoints, metadata)
            return time.perf_counter() - begin


def matmul_rate() -> float:
    """FLOP/s of a product of 2048 x 2048."""
    a = jnp.ones((2048, 2048))
    product = jax.jit(lambda x: x @ x)
    product(a).block_until_ready()
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * 2048**3 / float(np.median(times))


def copy_rate() -> float:
    """Bytes/s of a copy of 1 GB, counting the bytes once."""
    source = np.ones(1 << 28, np.float32)
    target = np.empty_like(source)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - begin)
    return source.nbytes / float(np.median(times))


def head_flops(model: MAEConfig, hidden: int, statistics: int = 3) -> int:
    """FLOPs of one image and step: the forward product and the two backward products."""
    return 3 * 2 * (statistics * hidden + hidden * model.width + model.width)


def one_part(model: MAEConfig) -> dict[str, float]:
    """Bytes per image on disk, and images written and read per second."""
    count, images = 2048, catalog_of(2048)
    stored = random_features(count, model)
    stored |= {name: stored["mismatch"] for name in bank.TERMS if name not in stored}
    stored["context_variance"] = np.ones((count, 1, NUM_RUNS, 3), np.float32)
    same = {"width": 512, "height": 512, "format": "PNG", "error": ""}
    facts = {name: [value] * count for name, value in same.items()}
    recipe = Recipe("", "", {}, 0, NUM_RUNS, 1)
    with tempfile.TemporaryDirectory() as folder:
        (part,) = bank.plan(Path(folder), count, count)
        begin = time.perf_counter()
        flat = {k: v.reshape(count, -1) for k, v in stored.items()}
        bank.write(part, recipe, images, facts, flat)
        written = time.perf_counter() - begin
        begin = time.perf_counter()
        columns = ("f_global", "uniform_share", "deviation", "mismatch")
        bank.read([part], images, columns, num_views=1, num_runs=NUM_RUNS, memory=1e12)
        read = time.perf_counter() - begin
        return {
            "bytes_an_image": part.path.stat().st_size / count,
            "images_written_a_second": count / written,
            "images_read_a_second": count / read,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=324_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", default="1,5", help="numbers of heads to time")
    options = parser.parse_args()
    model, raw = vit_large(), sd14.get_config()
    raw.data.root, raw.train.epochs, raw.train.checkpoint_every = "x", options.epochs, 10**9
    config = typed.read(raw.to_dict(), Settings)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(json.dumps({k: round(v, 1) for k, v in one_part(model).items()}))
    rates = matmul_rate(), copy_rate()
    train, held = banked(options.images, config, model), banked(HELD_OUT, config, model)
    seen = options.images * options.epochs
    terms = 2 * config.detector.num_runs * train.stored.columns["mismatch"].shape[-1]
    for num_seeds in map(int, options.seeds.split(",")):
        seeded = dataclasses.replace(config, num_seeds=num_seeds)
        masks = seeded.masks
        sets = Sets(*(dataclasses.replace(s, masks=masks) for s in (train, held, held)))
        taken = seconds_of_training(seeded, sets, model)
        arithmetic = seen * num_seeds * head_flops(model, config.detector.hidden) / rates[0]
        memory = seen * 4 * (model.width + num_seeds * terms) / rates[1]
        floor = max(arithmetic, memory)
        print(
            json.dumps(
                {
                    "heads": num_seeds,
                    "images": options.images,
                    "epochs": options.epochs,
                    "seconds": round(taken, 1),
                    "images_a_second": round(seen / taken),
                    "floor_seconds": round(floor, 1),
                    "arithmetic_seconds": round(arithmetic, 1),
                    "memory_seconds": round(memory, 1),
                    "ratio": round(taken / floor, 2),
                    "load": round(os.getloadavg()[0], 1),
                }
            ),
            flush=True,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    matmul, copy = (rate / 1e9 for rate in rates)
    print(f"peak {peak:.1f} GiB; matmul {matmul:.0f} GFLOP/s, copy {copy:.1f} GB/s")


if __name__ == "__main__":
    main()
