"""Cost of features as a function of the number of masked runs, or of the batch size.

    python -m benchmarks.bench_sweep [--preset vit_large] [--runs 0 1 2 3 4] [--batch 4]
        [--rounds 5] [--dtype float32] [--json out.json]

Give several ``--batch`` and one ``--runs`` to sweep over batch sizes.  A sweep over runs also
prints the measured cost of a run next to the one that FLOPs predict, both in unmasked passes.
"""

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bench_backbone, measure
from cinemae_jax.model.cinemae import random_backbone
from cinemae_jax.model.config import MAEConfig


def bench(
    name: str, config: MAEConfig, runs: list[int], batches: list[int], rounds: int, dtype: str
) -> dict[str, Any]:
    """Times every pair of number of runs and batch size, in turn."""
    backbone = random_backbone(config)
    pairs = list(itertools.product(runs, batches))
    contenders = {
        f"K = {k}, batch {b}": (b, bench_backbone.jax_run(backbone, k, b, dtype)) for k, b in pairs
    }
    rows = measure.compare(contenders, baseline=next(iter(contenders)), rounds=rounds)
    title = f"{name}, {dtype}"
    measure.show(title, "image", rows)
    result: dict[str, Any] = {"title": title, "rows": measure.as_json(rows)}
    if len(runs) > 2 and len(batches) == 1:
        found = result["slope"] = slope(config, runs, rows)
        print(
            f"a run costs {found['measured']:.3f} of an unmasked pass by wall clock, "
            f"{found['measured_cpu']:.3f} by CPU time, {found['counted']:.3f} by FLOPs; "
            f"medians are within {found['off_line']:.1%} of a straight line"
        )
    return result


def slope(config: MAEConfig, runs: list[int], rows: list[measure.Row]) -> dict[str, float]:
    """Slope of seconds over K: a least-squares line through the medians over rounds.

    Returns:
      measured, measured_cpu, counted: cost of one run relative to the unmasked pass, by wall clock,
        by CPU time and by FLOPs.
      off_line: largest relative distance of a median from the line, by wall clock.
    """
    seconds = np.array([(1 / row.rate, 1 / row.rate_cpu) for row in rows])
    (steepness, by_cpu), (start, start_cpu) = np.polyfit(runs, seconds, 1)
    line = start + steepness * np.array(runs)
    unmasked, one = (bench_backbone.image_flops(config, k) for k in (0, 1))
    return {
        "measured": float(steepness / start),
        "measured_cpu": float(by_cpu / start_cpu),
        "counted": one / unmasked - 1,
        "off_line": float(np.abs(seconds[:, 0] / line - 1).max()),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    bench_backbone.add_model(parser)
    parser.add_argument("--runs", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    o = parser.parse_args(argv)
    result = bench(o.preset, bench_backbone.model(o), o.runs, o.batch, o.rounds, o.dtype)
    if o.json:
        measure.write(o.json, {"machine": measure.machine(), "sweep": result})


if __name__ == "__main__":
    main()
