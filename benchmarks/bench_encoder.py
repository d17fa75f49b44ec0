"""Features of an image encoder: images a second beside transformers' PyTorch.

    python -m benchmarks.bench_encoder [--preset clip_b16] [--batch 16] [--rounds 5]
        [--dtypes float32 bfloat16] [--json out.json]

Needs torch and transformers.  Weights and images are random.
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import measure
from cinemae_jax.model import vit
from cinemae_jax.model.vit import ViT, ViTConfig
from weights_convert import encoder_reference as reference
from weights_convert import sources


def jax_run(config: ViTConfig, pixels: Any, dtype: str) -> Any:
    """Features as one repetition; kernels are in the dtype already, as they are in PyTorch's."""
    params = vit.initial_variables(config, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim == 2 else leaf, params)
    model = ViT(config, jnp.dtype(dtype))
    features = jax.jit(functools.partial(model.apply, method="global_feature"))
    images = jnp.asarray(pixels)
    return lambda: features(params, images).block_until_ready()


def torch_run(config: ViTConfig, pixels: Any, dtype: str) -> Any:
    torch = sources.need("torch")
    model = reference.random_model(config).to(getattr(torch, dtype))
    return lambda: reference.torch_feature(model, pixels)


def bench(name: str, batch: int, rounds: int, dtypes: list[str]) -> dict[str, Any]:
    """Runs the comparison and prints it."""
    config = vit.PRESETS[name]
    size = config.image_size if config.family != "dinov2" else 224
    pixels = reference.random_pixels(size, size, batch=batch)
    runs = {}
    for dtype in dtypes:
        runs[f"jax {dtype}"] = (batch, jax_run(config, pixels, dtype))
        runs[f"torch {dtype}"] = (batch, torch_run(config, pixels, dtype))
    rows = measure.compare(runs, baseline=f"torch {dtypes[0]}", rounds=rounds)
    title = f"{name}, {size} pixels, batch {batch}"
    measure.show(title, "image", rows)
    return {"title": title, "rows": measure.as_json(rows)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=sorted(vit.PRESETS), default="clip_b16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path)
    o = parser.parse_args(argv)
    result = bench(o.preset, o.batch, o.rounds, o.dtypes)
    if o.json:
        measure.write(o.json, {"machine": measure.machine(), "encoder": result})


if __name__ == "__main__":
    main()
