"""Packages from a folder of wheels, for machines where nothing can be installed or fetched."""

import importlib.metadata
import importlib.util
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

# What the benchmark imports, by the names of modules.
NEEDED = (
    "jax",
    "flax",
    "optax",
    "orbax",
    "pyarrow",
    "absl",
    "grain",
    "jaxtyping",
    "ml_collections",
    "PIL",
    "rich",
    "safetensors",
    "sklearn",
    "tqdm",
)


def unpack(folder: Path, target: Path) -> list[str]:
    """Unpacks the wheels of packages that are not installed; returns their names.

    Raises:
      FileNotFoundError: if the folder holds no wheel.
    """
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise FileNotFoundError(f"{folder} holds no wheels: fill it by scripts/fetch_wheels.py")
    unpacked = []
    for wheel in found:
        name = wheel.name.split("-")[0]
        if _is_installed(name):
            continue
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                archive.extract(member, target)
        unpacked.append(name)
    for data in target.glob("*.data"):  # a second root of some wheels
        for root in (data / "purelib", data / "platlib"):
            for path in root.rglob("*") if root.is_dir() else ():
                if path.is_file():
                    place = target / path.relative_to(root)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    path.replace(place)
    return unpacked


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(re.sub(r"[-_.]+", "-", name))
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def lacking(folders: Sequence[Path]) -> list[str]:
    """Needed modules that are neither installed nor in one of the folders."""
    return [
        name
        for name in NEEDED
        if importlib.util.find_spec(name) is None
        and not any((f / name).is_dir() or (f / f"{name}.py").is_file() for f in folders)
    ]
