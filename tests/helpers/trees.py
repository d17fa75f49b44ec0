"""Trees of empty files, for catalogs, which never open an image."""

from pathlib import Path

from cinemae_jax.data.catalog import Catalog


def touch(root: Path, *paths: str) -> Path:
    """Makes empty files below a folder."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def names(found: Catalog) -> list[str]:
    """The paths of a catalog."""
    return found.table["path"].to_pylist()
