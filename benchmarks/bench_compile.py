"""Compile time of the extraction, cold and from JAX's persistent cache, and its memory.

    python -m benchmarks.bench_compile [--preset vit_large] [--runs 2] [--batch 4]
        [--dtypes float32 bfloat16] [--json out.json]

Each measurement is a fresh process: the first with an empty cache, the second with the cache of the
first.  Memory is compared with its lower bound, the weights and the largest activations of a pass
(``live_bytes``): as planned by XLA, and as the process grew while it ran one batch.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import bench_backbone, measure
from cinemae_jax.model import mae
from cinemae_jax.model.cinemae import Backbone
from cinemae_jax.model.config import MAEConfig


def live_bytes(config: MAEConfig, num_runs: int, batch: int, mask_ratio: float = 0.75) -> int:
    """Bytes of the largest activations of a batch, 4 per value.

    In attention a token has its residual stream, query, key, value and one row of scores per head;
    in the MLP its residual stream and four times its width.
    """

    def widest(rows: int, tokens: int, width: int, heads: int) -> int:
        return 4 * rows * tokens * max(4 * width + heads * tokens, 5 * width)

    length, visible = 1 + config.num_patches, 1 + config.num_visible(mask_ratio)
    masked = batch * num_runs
    return max(
        widest(batch, length, config.width, config.num_heads),
        widest(masked, visible, config.width, config.num_heads),
        widest(masked, length, config.decoder_width, config.decoder_num_heads),
    )


def placed(config: MAEConfig, dtype: str) -> Any:
    """New parameters in the dtypes of a frozen backbone."""
    params = mae.initial_variables(config, jax.random.key(0))["params"]
    return Backbone(params, config).in_dtype(dtype).params


def compile_here(config: MAEConfig, num_runs: int, batch: int, dtype: str) -> dict[str, Any]:
    """Seconds and bytes, in a process that has done nothing else."""
    images, key = bench_backbone.random_batch(config, batch), jax.random.key(0)
    shapes = jax.eval_shape(lambda: placed(config, dtype))
    before = measure.peak_bytes()
    begin = time.perf_counter()
    lowered = bench_backbone.make_features(num_runs, dtype).lower(
        Backbone(shapes, config), key, images
    )
    traced = time.perf_counter()
    compiled = lowered.compile()
    facts = {"trace_s": traced - begin, "compile_s": time.perf_counter() - traced}
    params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.01, leaf.dtype), shapes)
    jax.block_until_ready(compiled(Backbone(params, config), key, images))
    facts["grown_bytes"] = measure.peak_bytes() - before
    facts["weight_bytes"] = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    facts["live_bytes"] = live_bytes(config, num_runs, batch)
    memory = compiled.memory_analysis()
    if memory is not None:
        facts["argument_bytes"] = memory.argument_size_in_bytes
        facts["temporary_bytes"] = memory.temp_size_in_bytes
    return facts


def bench(preset: str, num_runs: int, batch: int, dtypes: list[str]) -> dict[str, Any]:
    """Compiles in fresh processes; prints seconds and memory."""
    result: dict[str, Any] = {"title": f"compiling {preset}, K = {num_runs}, batch {batch}"}
    for dtype in dtypes:
        arguments = ("--here", "--preset", preset, "--runs", num_runs, "--batch", batch)
        with tempfile.TemporaryDirectory() as folder:
            for name in ("cold", "from cache"):
                facts = measure.fresh(
                    "benchmarks.bench_compile",
                    *(*arguments, "--dtypes", dtype),
                    JAX_COMPILATION_CACHE_DIR=folder,
                    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                )
                result[f"{dtype}, {name}"] = facts
                print(f"{result['title']}, {dtype}, {name}: {in_words(facts)}")
    return result


def in_words(facts: dict[str, Any]) -> str:
    least = facts["weight_bytes"] + facts["live_bytes"]
    said = f"trace {facts['trace_s']:.1f} s, compile {facts['compile_s']:.1f} s"
    said += f"; memory grew by {facts['grown_bytes'] / 1e6:,.0f} MB"
    if "temporary_bytes" in facts:
        planned = facts["argument_bytes"] + facts["temporary_bytes"]
        said += f", planned {planned / 1e6:,.0f} MB, {planned / least:.2f} of the least"
    return f"{said} ({least / 1e6:,.0f} MB)"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(bench_backbone.PRESETS), default="vit_large")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help="measure in this process, print JSON")
    o = parser.parse_args(argv)
    if o.here:
        config = bench_backbone.PRESETS[o.preset]
        print(json.dumps(compile_here(config, o.runs, o.batch, o.dtypes[0])))
        return
    result = bench(o.preset, o.runs, o.batch, o.dtypes)
    if o.json:
        measure.write(o.json, {"machine": measure.machine(), "compile": result})


if __name__ == "__main__":
    main()
