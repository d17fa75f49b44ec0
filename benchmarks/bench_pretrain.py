"""MAE pre-training steps in images/s, against the same model and optimiser in PyTorch.

    python -m benchmarks.bench_pretrain [--batch 64] [--rounds 5] [--dtypes float32 bfloat16]
        [--devices 2] [--json out.json]

Model and optimiser are those of configs/pretrain_tiny.py; images are random.  PyTorch, if it is
installed, runs transformers' ViTMAE, with autocast for bfloat16.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, torch_peer
from cinemae_jax.configs import pretrain_tiny
from cinemae_jax.model.cinemae import random_backbone
from cinemae_jax.model.config import MAEConfig
from cinemae_jax.model.mae import MAE
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.training import optim, pretraining

PEAK, STEPS = 1e-4, 1000


def jax_run(settings: Any, batch: int, dtype: str) -> Any:
    """One step of ``cinemae_jax.pretrain`` on all local devices."""
    config, replicas = MAEConfig(**settings.model), Replicas()
    tx = optim.adamw(
        optim.warmup_cosine(PEAK, STEPS, settings.warmup),
        weight_decay=settings.weight_decay,
        b2=settings.b2,
    )
    params = random_backbone(config).params
    state = replicas.replicate(pretraining.PretrainState(params, tx.init(params)))
    key = replicas.replicate(jax.random.key(0))
    step = replicas.pmap_step(
        pretraining.make_step(MAE(config, jnp.dtype(dtype)), tx, settings.mask_ratio),
        replicated=2,
        donate=(0,),
    )
    size = config.image_size
    arrays: dict[str, np.ndarray] = {
        "image": np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
        "example_id": np.arange(batch, dtype=np.uint32),
        "epoch": np.zeros(batch, np.int32),
        "valid": np.ones(batch, bool),
    }
    placed = replicas.shard(arrays, pretraining.INPUTS)

    def run() -> None:
        nonlocal state
        state, loss = step(state, key, placed)
        loss.block_until_ready()

    return run


def torch_run(settings: Any, batch: int, dtype: str) -> Any:
    """One step of transformers' ViTMAE with torch's AdamW."""
    import torch

    c = MAEConfig(**settings.model)
    model = torch_peer.vit_mae(
        c, mask_ratio=settings.mask_ratio, norm_pix_loss=c.target == "norm_pix"
    ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK, betas=(0.9, settings.b2), weight_decay=settings.weight_decay
    )
    images = torch.randint(0, 256, (batch, c.image_size, c.image_size, 3), dtype=torch.uint8)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))

    def run() -> None:
        pixels = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(pixels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return run


def bench(batch: int, rounds: int, dtypes: list[str], **sizes: Any) -> dict[str, Any]:
    """Runs and prints the comparison; ``sizes`` replace fields of the model."""
    settings = pretrain_tiny.get_config()
    settings.model.update(sizes)
    without_torch = torch_peer.missing()
    if without_torch:
        print(without_torch)
    contenders: dict[str, tuple[float, Any]] = {}
    for dtype in dtypes:
        contenders[f"jax {dtype}"] = (batch, jax_run(settings, batch, dtype))
        if not without_torch:
            contenders[f"torch {dtype}"] = (batch, torch_run(settings, batch, dtype))
    rows = measure.compare(contenders, baseline=f"jax {dtypes[0]}", rounds=rounds)
    title = f"MAE pre-training step, pretrain_tiny, batch {batch}, {jax.device_count()} devices"
    measure.show(title, "image", rows)
    return {"title": title, "rows": measure.as_json(rows)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--devices", type=int, help="split the CPU into this many devices")
    parser.add_argument("--json", type=Path)
    o = parser.parse_args(argv)
    if o.devices:
        jax.config.update("jax_num_cpu_devices", o.devices)
    result = bench(o.batch, o.rounds, o.dtypes)
    if o.json:
        measure.write(o.json, {"machine": measure.machine(), "pretrain": result})


if __name__ == "__main__":
    main()
