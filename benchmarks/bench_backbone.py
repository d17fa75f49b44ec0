"""Features of the frozen backbone in images/s, against the matmul ceiling and the alternatives:
PyTorch, eager and compiled, and a Python loop over masks.

    python -m benchmarks.bench_backbone [--preset vit_large] [--runs 2] [--batch 4] [--rounds 5]
        [--dtypes float32 bfloat16] [--json out.json]

The ceiling is a matrix product shaped like the largest layer, timed in the same rounds.  PyTorch
takes part if torch and transformers are installed.  Weights and images are random.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, torch_peer
from cinemae_jax import typed
from cinemae_jax.features import extraction
from cinemae_jax.model import mae
from cinemae_jax.model.cinemae import random_backbone
from cinemae_jax.model.config import DetectorConfig, MAEConfig

TOY = MAEConfig(32, 8, 24, 2, 3, 16, 1, 2)
PRESETS = {name: preset() for name, preset in mae.PRESETS.items()} | {"toy": TOY}


def image_flops(config: MAEConfig, num_runs: int, mask_ratio: float = 0.75) -> float:
    """FLOPs of one image (2 per multiply-add): an unmasked pass and K masked runs (METHOD 7)."""
    length, visible = config.num_patches, config.num_visible(mask_ratio)

    def blocks(tokens: int, width: int, depth: int) -> float:
        return 2 * depth * (12 * width**2 * tokens + 2 * tokens**2 * width)

    embed = 2 * length * config.patch_dim * config.width  # once, for all runs
    whole = embed + blocks(1 + length, config.width, config.depth)
    if not num_runs:
        return whole
    width = config.decoder_width
    run = blocks(1 + visible, config.width, config.depth)
    run += blocks(1 + length, width, config.decoder_depth)
    run += 2 * (1 + visible) * config.width * width
    run += 2 * (length - visible) * width * config.patch_dim
    return whole + num_runs * run


def detector_config(num_runs: int, dtype: str) -> DetectorConfig:
    fusion = "additive" if num_runs else "global"  # K = 0 has no anomaly scores
    choices = {"num_runs": num_runs, "dtype": dtype, "fusion": fusion}
    return typed.read(choices, DetectorConfig, saved=True)  # defaults for the rest


def make_features(num_runs: int, dtype: str) -> Any:
    """Jitted features of (backbone, key, batch), as in training and evaluation."""
    runs = extraction.first_runs(num_runs)
    return jax.jit(extraction.make_extract(detector_config(num_runs, dtype), runs))


def random_batch(config: MAEConfig, batch: int) -> dict[str, Any]:
    size, rng = config.image_size, np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8)),
        "example_id": jnp.arange(batch, dtype=jnp.uint32),
        "epoch": jnp.zeros(batch, jnp.int32),
    }


def jax_run(backbone: Any, num_runs: int, batch: int, dtype: str) -> Any:
    """One extraction of a batch."""
    extract, key = make_features(num_runs, dtype), jax.random.key(0)
    backbone = backbone.in_dtype(dtype)
    images = random_batch(backbone.config, batch)
    return lambda: jax.block_until_ready(extract(backbone, key, images))


def loop_run(backbone: Any, num_runs: int, batch: int, dtype: str) -> Any:
    """The same without vmap: the unmasked pass, then one program called K times."""
    key, images = jax.random.key(0), random_batch(backbone.config, batch)
    backbone = backbone.in_dtype(dtype)
    whole, config = make_features(0, dtype), detector_config(1, dtype)

    @jax.jit
    def once(backbone: Any, key: Any, images: Any, run: Any) -> Any:
        extract = extraction.make_extract(config, lambda keys, _: jnp.full((*keys.shape, 1), run))
        features = extract(backbone, key, images)
        return features.terms, features.masked  # without f_global XLA drops the unmasked pass

    def run() -> Any:
        features = whole(backbone, key, images)
        terms = [once(backbone, key, images, k) for k in range(num_runs)]
        return jax.block_until_ready((features.f_global, terms))

    return run


def matmul_run(config: MAEConfig, batch: int, dtype: str) -> tuple[float, Any]:
    """(FLOPs, repetition) of fc1's product over all tokens of a batch, many times in a row.

    With only a few, the state of the caches left by the previous contender would matter.
    """
    rows, width, times = batch * (1 + config.num_patches), config.width, 32
    a = jnp.ones((rows, width), dtype)
    b = jnp.ones((width, 4 * width), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))

    def run() -> None:
        for _ in range(times):
            product(a, b).block_until_ready()

    return times * 2 * rows * width * 4 * width, run


def bench(
    name: str, config: MAEConfig, num_runs: int, batch: int, rounds: int, dtypes: list[str]
) -> dict[str, Any]:
    """Runs and prints the comparison, with each dtype's share of the matmul ceiling."""
    backbone, flops = random_backbone(config), image_flops(config, num_runs)
    contenders: dict[str, tuple[float, Any]] = {}
    without_torch = torch_peer.missing()
    if without_torch:
        print(without_torch)
    for dtype in dtypes:
        contenders[f"jax {dtype}"] = (batch, jax_run(backbone, num_runs, batch, dtype))
        loop = loop_run(backbone, num_runs, batch, dtype)
        contenders[f"jax {dtype}, a Python loop over masks"] = (batch, loop)
        work, run = matmul_run(config, batch, dtype)
        contenders[f"matmul {dtype}"] = (work / flops, run)
        if not without_torch:
            for kind, run in torch_peer.extractions(config, num_runs, batch, dtype).items():
                contenders[f"torch {dtype}, {kind}"] = (batch, run)
    rows = measure.compare(contenders, baseline=f"jax {dtypes[0]}", rounds=rounds)
    title = f"{name}, K = {num_runs}, batch {batch}; matmul: images of as many FLOPs"
    measure.show(title, "image", rows)
    share = {dtype: measure.ratio(rows, f"jax {dtype}", f"matmul {dtype}") for dtype in dtypes}
    for dtype, value in share.items():
        print(f"{dtype}: {value:.2f} of the matmul ceiling, {flops / 1e9:.1f} GFLOP per image")
    return {
        "title": title,
        "rows": measure.as_json(rows),
        "gflop_an_image": flops / 1e9,
        "share_of_ceiling": share,
    }


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options of the backbone; ``model`` reads them."""
    parser.add_argument("--preset", choices=sorted(PRESETS), default="vit_large")
    parser.add_argument("--depth", type=int, help="encoder depth, if not the preset's")


def model(options: argparse.Namespace) -> MAEConfig:
    config = PRESETS[options.preset]
    return dataclasses.replace(config, depth=options.depth or config.depth)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_model(parser)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    o = parser.parse_args(argv)
    result = bench(o.preset, model(o), o.runs, o.batch, o.rounds, o.dtypes)
    if o.json:
        measure.write(o.json, {"machine": measure.machine(), "backbone": result})


if __name__ == "__main__":
    main()
