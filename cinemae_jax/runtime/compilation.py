"""The persistent compilation cache."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from cinemae_jax.runtime import files

CACHE_FOLDER = "jax_compilation_cache_dir"  # JAX's name of the setting


@contextlib.contextmanager
def kept_compilations() -> Iterator[None]:
    """Programs are compiled once a machine, unless JAX was told of a cache of its own."""
    folder = files.cache_folder()
    if getattr(jax.config, CACHE_FOLDER) or folder is None:
        yield
        return
    jax.config.update(CACHE_FOLDER, str(folder / "xla"))
    try:
        yield
    finally:
        jax.config.update(CACHE_FOLDER, None)
        compilation_cache.reset_cache()
