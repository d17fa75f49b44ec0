"""Every speed measurement in one command: tables on the terminal, everything as JSON.

    python -m benchmarks [--only backbone extract] [--rounds 5] [--quick]
        [--json runs/benchmarks.json]

A section takes minutes on a small machine and needs a quiet one; the JSON records the machine's
load before and after it.  ``--quick`` runs everything once at toy size, to check that it works.
Each section is a module with more options of its own.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    bench_backbone,
    bench_bank,
    bench_compile,
    bench_extract,
    bench_loader,
    bench_pretrain,
    bench_sweep,
    measure,
)
from cinemae_jax import typed
from cinemae_jax.configs import sd14
from cinemae_jax.features.sources import Sets
from cinemae_jax.settings import Settings

CORES = os.cpu_count() or 1
SMALL_MODEL = {
    "width": 24,
    "depth": 1,
    "decoder_width": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything is measured.

    Attributes:
      preset: backbone of most sections.
      extracted: detector or backbone of ``extract``.
      dtypes: dtypes of the backbone.
      batch: images per step of the backbone.
      rounds: repetitions.
      images: image files of ``extract``.
      decoded: image files of ``loader``; with few, the start of its threads dominates.
      banked: images of the bank from which heads are trained.
      pretrained: images per step of pre-training.
      model: fields of the pre-trained model that differ from its config.
    """

    preset: str = "vit_large"
    extracted: str = "tiny"
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    batch: int = 4
    rounds: int = 5
    images: int = 48
    decoded: int = 256
    banked: int = 32_768
    pretrained: int = 64
    model: dict[str, int] = dataclasses.field(default_factory=dict)


QUICK = Size(
    preset="toy",
    extracted="toy",
    dtypes=("float32",),
    batch=2,
    rounds=1,
    images=bench_extract.BATCH,
    decoded=bench_extract.BATCH,
    banked=512,
    pretrained=8,
    model=SMALL_MODEL,
)


def sections(size: Size) -> dict[str, Callable[[], Any]]:
    """The measurements by name."""
    preset, batch, rounds, dtypes = size.preset, size.batch, size.rounds, list(size.dtypes)
    config = bench_backbone.PRESETS[preset]
    runs = [0, 1, 2, 3, 4]
    return {
        "backbone": lambda: bench_backbone.bench(preset, config, 2, batch, rounds, dtypes),
        "sweep": lambda: bench_sweep.bench(preset, config, runs, [batch], rounds, dtypes[0]),
        "compile": lambda: bench_compile.bench(preset, 2, batch, dtypes),
        "pretrain": lambda: bench_pretrain.bench(size.pretrained, rounds, dtypes, **size.model),
        "loader": lambda: bench_loader.bench(size.decoded, CORES, rounds),
        "head": lambda: head(size.banked),
        "extract": lambda: bench_extract.bench(size.extracted, size.images, rounds),
        "latency": lambda: bench_extract.latency(rounds),
    }


def head(images: int, epochs: int = 2) -> dict[str, float]:
    """Seconds of training from a bank of ViT-L/16; ``bench_bank`` adds floors and full size."""
    model, raw = bench_backbone.PRESETS["vit_large"], sd14.get_config()
    raw.data.root, raw.train.epochs, raw.train.checkpoint_every = "bank", epochs, 10**9
    config = typed.read(raw.to_dict(), Settings)
    train, held = (bench_bank.banked(n, config, model) for n in (images, images // 8))
    seconds = bench_bank.seconds_of_training(config, Sets(train, held, held), model)
    print(
        f"head: {epochs} epochs of {images} banked images in {seconds:.1f} s with one compilation"
    )
    return {"images": images, "epochs": epochs, "seconds": seconds}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sections(QUICK), metavar="SECTION")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks.json"))
    o = parser.parse_args(argv)
    size = QUICK if o.quick else Size()
    chosen = sections(dataclasses.replace(size, rounds=o.rounds or size.rounds))
    results: dict[str, Any] = {"machine": measure.machine()}
    for name in o.only or chosen:
        load, begin = os.getloadavg(), time.perf_counter()
        found = chosen[name]()
        seconds = time.perf_counter() - begin
        loads = {"load_before": load, "load_after": os.getloadavg()}
        results[name] = {"found": found, "seconds": seconds, **loads}
        measure.write(o.json, results)
        print(f"{name}: {seconds:.0f} s, load {load[0]:.1f} before, {os.getloadavg()[0]:.1f} after")
    print(o.json)


if __name__ == "__main__":
    main()
