"""Features of the frozen backbone: images a second beside the matmul ceiling and PyTorch.

    python -m benchmarks.bench_backbone [--preset vit_large] [--runs 2] [--batch 4] [--rounds 5]
        [--dtypes float32 bfloat16] [--json out.json]

The ceiling is a product shaped like the largest layer, timed in the same rounds; PyTorch
joins where torch and transformers can be imported.  Weights and images are random.
"""

import argparse
import importlib.util
import resource
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from cinemae_jax.model import mae, masking
from cinemae_jax.model.config import DetectorConfig, MAEConfig
from cinemae_jax.model.detector import extract_features, random_backbone


def image_flops(config: MAEConfig, num_runs: int, mask_ratio: float = 0.75) -> float:
    """2 a multiply-add of one image: an unmasked pass and K masked runs (docs/method.md 7)."""
    length, visible = config.num_patches, config.num_visible(mask_ratio)

    def blocks(tokens: int, width: int, depth: int) -> float:
        return 2 * depth * (12 * width**2 * tokens + 2 * tokens**2 * width)

    embed = 2 * length * config.patch_dim * config.width  # once: every run looks rows of it up
    whole = embed + blocks(1 + length, config.width, config.depth)
    if not num_runs:
        return whole
    width = config.decoder_width
    run = blocks(1 + visible, config.width, config.depth)
    run += blocks(1 + length, width, config.decoder_depth)
    run += 2 * (1 + visible) * config.width * width
    run += 2 * (length - visible) * width * config.patch_dim
    return whole + num_runs * run


def jax_run(config: MAEConfig, num_runs: int, batch: int, dtype: str) -> tuple[Any, dict[str, Any]]:
    """A compiled extraction as a repetition, and what compiling it took."""
    backbone = random_backbone(config)
    fusion = "additive" if num_runs else "global"  # K = 0 leaves nothing else
    detector = DetectorConfig(num_runs=num_runs, dtype=dtype, fusion=fusion)
    rng = np.random.default_rng(0)
    size = config.image_size
    images = jnp.asarray(rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8))
    keys = masking.example_keys(jax.random.key(0), jnp.arange(batch, dtype=jnp.uint32))
    runs = jnp.broadcast_to(jnp.arange(num_runs), (batch, num_runs))
    function = jax.jit(extract_features, static_argnames="config")
    begin = time.perf_counter()
    lowered = function.lower(backbone, images, keys, runs, config=detector)
    traced = time.perf_counter()
    compiled = lowered.compile()
    facts: dict[str, Any] = {
        "trace_s": traced - begin,
        "compile_s": time.perf_counter() - traced,
    }
    memory = compiled.memory_analysis()
    if memory is not None:
        facts["argument_bytes"] = memory.argument_size_in_bytes
        facts["temporary_bytes"] = memory.temp_size_in_bytes
    return lambda: jax.block_until_ready(compiled(backbone, images, keys, runs)), facts


def torch_run(config: MAEConfig, num_runs: int, batch: int, dtype: str) -> Any:
    """The PyTorch reference on the same sizes."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    from weights_convert import torch_reference

    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            intermediate_size=4 * config.width,
            decoder_hidden_size=config.decoder_width,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_num_heads,
            decoder_intermediate_size=4 * config.decoder_width,
            layer_norm_eps=config.layer_norm_eps,
        )
    )
    model = model.eval().to(getattr(torch, dtype))
    size = config.image_size
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    noise = torch.rand(batch, num_runs, config.num_patches)
    return lambda: torch_reference.extract_features(model, images, noise)


def matmul_run(config: MAEConfig, batch: int, dtype: str) -> tuple[float, Any]:
    """(FLOPs, repetition) of fc1's product over all tokens of a batch, four in a row."""
    rows, width, times = batch * (1 + config.num_patches), config.width, 4
    a = jnp.ones((rows, width), dtype)
    b = jnp.ones((width, 4 * width), dtype)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))

    def run() -> None:
        for _ in range(times):
            product(a, b).block_until_ready()

    return times * 2 * rows * width * 4 * width, run


def bench(
    preset: str, num_runs: int, batch: int, rounds: int, dtypes: list[str], depth: int | None = None
) -> dict[str, Any]:
    """Runs the comparison; ``depth`` shortens the encoder, to look at shapes on a small machine."""
    config = mae.PRESETS[preset](**({"depth": depth} if depth else {}))
    flops = image_flops(config, num_runs)
    contenders: dict[str, tuple[float, Any]] = {}
    facts: dict[str, Any] = {"gflop_an_image": flops / 1e9}
    for dtype in dtypes:
        run, facts[dtype] = jax_run(config, num_runs, batch, dtype)
        contenders[f"jax {dtype}"] = (batch, run)
        work, run = matmul_run(config, batch, dtype)
        contenders[f"matmul {dtype}"] = (work / flops, run)
        if all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
            contenders[f"torch {dtype}"] = (batch, torch_run(config, num_runs, batch, dtype))
    rows = measure.compare(contenders, baseline=f"jax {dtypes[0]}", rounds=rounds)
    facts["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    title = f"{preset}, K = {num_runs}, batch {batch}; matmul: images whose FLOPs it could do"
    measure.show(title, "image", rows)
    return {"title": title, "rows": measure.as_json(rows), "facts": facts}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(mae.PRESETS), default="vit_large")
    parser.add_argument("--depth", type=int, help="of the encoder, if not the preset's")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    o = parser.parse_args(argv)
    result = bench(o.preset, o.runs, o.batch, o.rounds, o.dtypes, o.depth)
    if o.json:
        measure.write(o.json, {"machine": measure.machine(), "backbone": result})


if __name__ == "__main__":
    main()
