"""The backbone's benchmarks in one command: tables on the terminal, all of it as JSON.

python -m benchmarks [--json runs/benchmarks.json] [--rounds 5]
"""

import argparse
from pathlib import Path

from benchmarks import bench_backbone, bench_pretrain, measure

DTYPES = ["float32", "bfloat16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("runs/benchmarks.json"))
    parser.add_argument("--rounds", type=int, default=5)
    o = parser.parse_args()
    results = {
        "machine": measure.machine(),
        "backbone": bench_backbone.bench("vit_large", 2, 4, o.rounds, DTYPES),
        "pretrain": bench_pretrain.bench(64, o.rounds, DTYPES),
    }
    measure.write(o.json, results)
    print(o.json)


if __name__ == "__main__":
    main()
