"""Whether the package is right and fast on this accelerator, in one command.

    python -m benchmarks.accelerator [--small] [--wheels DIR] [--json runs/accelerator.json]

Right: stored outputs of the PyTorch reference, a ViT-L in float32 and bfloat16, one device against
all, pmap against shard_map.  Fast: features, attention, layouts, XLA flags, PyTorch, head training,
pre-training, files.  Then a profile of one step, and what it would change in the defaults.

Needs no network and takes less than eight minutes on a GPU.  Sections run in processes of their
own, so that a crash or a time limit costs one section.  JSON and a table beside it (.md) are
written after every row.  Run the same command again to measure what is missing.  ``--small`` runs
every section at toy size on a CPU.

Exit code: 0 all measured, 1 something is wrong or missing (each named), 2 usage.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.accelerator import advice, store, wheels
from benchmarks.accelerator.sections import SECTIONS, Section

BUDGET = 420  # seconds, of the whole command; a section may exceed it by GRACE
PATIENCE = 10.0  # factor on the limits of toy sizes, which may run beside other jobs
GRACE = 60  # seconds beyond its own limit after which a section is killed
SMALL = {  # two devices, and programs that compile fast
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="toy sizes, on the CPU")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--again", action="store_true", help="measure finished sections again")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument(
        "--wheels", type=Path, help="folder that scripts/fetch_wheels.py has filled"
    )
    parser.add_argument("--json", type=Path, default=Path("runs/accelerator.json"))
    o = parser.parse_args(argv)
    names = o.only or list(SECTIONS)
    size = "small" if o.small else "full"
    if o.again or store.read(o.json).get("size") != size:
        store.write(o.json, {"size": size, "sections": {}})
    with tempfile.TemporaryDirectory() as folder:
        if o.wheels:
            wheels.unpack(o.wheels, Path(folder))
        environment = os.environ | (SMALL if o.small else {})
        path = [folder, str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        lacking = wheels.lacking([Path(folder)])
        if lacking:
            print(
                f"error: not installed: {', '.join(lacking)}: install them, or fill a folder by "
                "scripts/fetch_wheels.py and name it with --wheels",
                file=sys.stderr,
            )
            return 2
        patience = PATIENCE if o.small else 1.0
        measure(o.json, names, environment, until=time.time() + o.budget, patience=patience)
    results = store.read(o.json)
    print(store.table(results))
    print(advice.text(results))
    (o.json.with_suffix(".md")).write_text(f"{store.table(results)}\n{advice.text(results)}")
    wrong = store.problems(results, names)
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    print(o.json)
    return 1 if wrong else 0


def measure(
    file: Path, names: list[str], environment: dict[str, str], *, until: float, patience: float
) -> None:
    """Runs the sections that are not finished; those with the same XLA flags share a process."""
    left = [name for name in names if not store.is_finished(store.read(file), name)]
    while left and time.time() < until:
        flags = SECTIONS[left[0]].flags
        alone = SECTIONS[left[0]].alone
        group = left[:1]
        while not alone and len(group) < len(left) and _joins(SECTIONS[left[len(group)]], flags):
            group.append(left[len(group)])
        xla = f"{environment.get('XLA_FLAGS', '')} {flags}".strip()
        seconds = patience * sum(SECTIONS[name].seconds for name in group)
        limit = min(until - time.time(), seconds) + GRACE
        code = _work(file, group, environment | {"XLA_FLAGS": xla}, until=until, limit=limit)
        reached = [name for name in group if name in store.read(file)["sections"]]
        if code and reached and not store.is_finished(store.read(file), reached[-1]):
            store.fail(file, reached[-1], code)
        elif code and not reached:
            store.fail(file, group[0], code)
            reached = group[:1]
        left = left[len(reached) or len(group) :]


def _joins(section: Section, flags: str) -> bool:
    return section.flags == flags and not section.alone


def _work(
    file: Path, names: list[str], environment: dict[str, str], *, until: float, limit: float
) -> str:
    """Why the process that measured them failed; empty if it did not."""
    command = [sys.executable, "-m", "benchmarks.accelerator.work", str(file), str(until), *names]
    try:
        code = subprocess.run(command, env=environment, timeout=limit, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"killed after {limit:.0f} s"
    return f"its process ended with {code}" if code else ""


if __name__ == "__main__":
    sys.exit(main())
