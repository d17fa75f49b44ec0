"""Time to scan a data set, and memory of its catalog.

    python benchmarks/bench_catalog.py --files 300000

Makes a tree of empty files in GenImage's layout in a temporary folder, scans it in new processes,
and deletes it.  "bare" only lists the names with ``os.scandir``: the floor.  The folders are in the
operating system's cache; a cold disk or network adds its own time.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GENERATORS = ("ADM", "BigGAN", "Midjourney", "VQDM", "glide", "sd_v_1_4", "sd_v_1_5", "wukong")
MEASURES = ("bare", "off", "cold", "warm")
SETTLE_SECONDS = 3  # the catalog does not cache a folder that has just changed


def make_tree(root: Path, num_files: int) -> None:
    """A small GenImage: 27 of 28 images are in the train split."""
    folders = [
        root / generator / f"imagenet_ai_{generator.lower()}" / split / label
        for generator in GENERATORS
        for label in ("ai", "nature")
        for split in ["train"] * 27 + ["val"]
    ]
    for folder in dict.fromkeys(folders):
        folder.mkdir(parents=True)
    for i in range(num_files):
        where = folders[i % len(folders)]
        os.close(os.open(where / f"n{i % 1000:08d}_{i}.v1.PNG", os.O_CREAT | os.O_WRONLY))


def bare(root: str) -> int:
    """Number of files, from a plain listing."""
    count, pending = 0, [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(entry.path)
                else:
                    count += 1
    return count


def measure(what: str, root: str) -> dict[str, float]:
    """Seconds and bytes of one scan in this process.

    Args:
      what: one of ``MEASURES``.
      root: root of the tree.
    """
    from cinemae_jax.data import catalog  # before the clock starts

    before, start = resident(), time.perf_counter()
    if what == "bare":
        return {"files": bare(root), "seconds": time.perf_counter() - start}
    found = catalog.scan(root, cache=what != "off")
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    found.select(split="train").hold_out(0.01)
    choose = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "files": len(found),
        "seconds": seconds,
        "choose": choose,
        "table": found.table.nbytes,
        "peak": peak - before,
    }


def resident() -> int:
    """Bytes of memory in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=300_000, help="number of images")
    parser.add_argument("--dir", default=None, help="folder for the tree (default: temporary)")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "ROOT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(*args.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="bench_catalog_", dir=args.dir) as scratch:
        root = Path(scratch, "tree")
        start = time.perf_counter()
        make_tree(root, args.files)
        print(f"made    {args.files:,} empty files in {time.perf_counter() - start:.1f} s")
        time.sleep(SETTLE_SECONDS)
        environment = os.environ | {"XDG_CACHE_HOME": str(Path(scratch, "cache"))}
        results = {}
        for what in MEASURES:
            command = [sys.executable, __file__, "--measure", what, str(root)]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            results[what] = json.loads(done.stdout)
        kept = sum(f.stat().st_size for f in Path(scratch, "cache").rglob("*.parquet"))
        print(as_text(results, kept))


def as_text(results: dict[str, dict[str, float]], kept: int) -> str:
    """A table of seconds, ratio to the bare listing, and memory.

    Args:
      results: results by measure.
      kept: size of the cache file in bytes.
    """
    lines = ["scan      seconds  x bare   us/file  table MB/million  peak MB/million"]
    for what, r in results.items():
        line = f"{what:8} {r['seconds']:8.2f} {r['seconds'] / results['bare']['seconds']:7.1f}"
        line += f" {r['seconds'] / r['files'] * 1e6:9.2f}"
        if "table" in r:
            line += f" {r['table'] / r['files']:17.0f} {r['peak'] / r['files']:16.0f}"
        lines.append(line)
    lines.append(f"select a split and hold out 1 %: {results['warm']['choose']:.2f} s")
    lines.append(f"cache file: {kept / results['warm']['files']:.0f} MB/million")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
