"""Fills a folder with the wheels that ``python -m benchmarks.accelerator --wheels DIR`` lacks.

    .venv/bin/python scripts/fetch_wheels.py wheels [--python-version 3.12]

Run it where this package is installed and there is a network; copy the folder to the machine with
the accelerator.  It takes the versions installed here.  Left out is what that machine has
(``--installed``), with all that those packages need.
"""

import argparse
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

INSTALLED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "pyarrow", "numpy")
# Published without a wheel; pure Python, so the one built here works everywhere.
NO_WHEEL = ("promise",)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names: tuple[str, ...]) -> set[str]:
    """Packages installed here and all that they need."""
    found: set[str] = set()
    left = [canonical(name) for name in names]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.distribution(name).requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(canonical(requirement.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python-version", default="3.12")
    parser.add_argument("--installed", nargs="*", default=INSTALLED, help="on the other machine")
    o = parser.parse_args()
    names = sorted(closure(("cinemae_jax",)) - closure(tuple(o.installed)) - {"cinemae-jax"})
    pinned = {name: f"{name}=={importlib.metadata.version(name)}" for name in names}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={o.python_version}"]
    target += [f"--platform={platform}" for platform in PLATFORMS]
    wheels = [pinned[name] for name in names if name not in NO_WHEEL]
    to = f"--dest={o.folder}"
    subprocess.run([*pip, "download", "--quiet", "--no-deps", *target, to, *wheels], check=True)
    for name in set(NO_WHEEL) & set(names):
        built = [*pip, "wheel", "--quiet", "--no-deps", f"--wheel-dir={o.folder}", pinned[name]]
        subprocess.run(built, check=True)
    found = list(o.folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in found)
    print(f"{o.folder}: {len(found)} wheels, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
