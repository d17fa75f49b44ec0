"""Compiled feature programs and repeated timing, shared by the sections."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.sizes import Size
from benchmarks.bench_backbone import detector_config, image_flops, random_batch
from cinemae_jax.features import extraction
from cinemae_jax.model.cinemae import Backbone, random_backbone
from cinemae_jax.model.config import DetectorConfig, MAEConfig

Row = dict[str, Any]


@functools.cache
def backbone_of(config: MAEConfig) -> Backbone:
    """Random weights, float32; the same in every section of a process."""
    return random_backbone(config)


@functools.cache
def in_dtype(config: MAEConfig, dtype: str) -> Backbone:
    return jax.block_until_ready(backbone_of(config).in_dtype(dtype))


@dataclasses.dataclass(frozen=True)
class Program:
    """Feature extraction compiled for one batch.

    Attributes:
      run: takes no argument; returns features that are there.
      compile_seconds: without tracing.
      bytes: arguments, results and temporaries as XLA plans them.
    """

    run: Callable[[], Any]
    compile_seconds: float
    bytes: int


def detector(num_runs: int, dtype: str, **fields: Any) -> DetectorConfig:
    return dataclasses.replace(detector_config(num_runs, dtype), **fields)


def features(
    model: MAEConfig, config: DetectorConfig, batch: int, device: jax.Device | None = None
) -> Program:
    """Compiles ``extraction.make_extract`` for random images."""
    backbone = in_dtype(model, config.dtype)
    arguments = (backbone, jax.random.key(0), random_batch(model, batch))
    if device is not None:
        arguments = jax.device_put(arguments, device)
    extract = jax.jit(extraction.make_extract(config, extraction.first_runs(config.num_runs)))
    lowered = extract.lower(*arguments)
    begin = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    memory = compiled.memory_analysis()
    planned = 0
    if memory is not None:
        planned = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        )
    return Program(lambda: jax.block_until_ready(compiled(*arguments)), seconds, planned)


def rate(run: Callable[[], Any], work: float, seconds: float) -> float:
    """Work per second, median over repetitions of at least ``seconds`` in total."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 100):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return work / statistics.median(times)


@functools.cache
def matmul_rate(side: int, dtype: str, seconds: float) -> float:
    """FLOP/s of a square product, accumulated in float32; of float32 operands without TF32."""
    a = jax.random.normal(jax.random.key(0), (side, side), dtype)
    precision = "highest" if dtype == "float32" else None
    product = jax.jit(
        lambda a: jnp.matmul(a, a, precision=precision, preferred_element_type=jnp.float32)
    )
    return rate(lambda: product(a).block_until_ready(), 2.0 * side**3, seconds)


def measured(size: Size, config: DetectorConfig, batch: int, program: Program | None = None) -> Row:
    """Speed, memory and compile time of one feature program, compiled unless it is given."""
    program = program or features(size.model, config, batch)
    speed = rate(program.run, batch, size.seconds)
    flops = image_flops(size.model, config.num_runs)
    ceiling = matmul_rate(size.square, config.dtype, size.seconds)
    return {
        "K": config.num_runs,
        "batch": batch,
        "dtype": config.dtype,
        "attention": config.attention,
        "layout": config.run_layout,
        "images/s": speed,
        "of matmul": speed * flops / ceiling,
        "GB planned": program.bytes / 1e9,
        "compile s": program.compile_seconds,
    }
