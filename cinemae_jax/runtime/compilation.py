"""JAX's persistent compilation cache."""

import contextlib
from collections.abc import Iterator

import jax

from cinemae_jax.runtime import files

CACHE_FOLDER = "jax_compilation_cache_dir"  # JAX's name of the setting


@contextlib.contextmanager
def kept_compilations() -> Iterator[None]:
    """Inside, programs are compiled once per machine, unless JAX was given a cache of its own."""
    folder = files.cache_folder()
    if getattr(jax.config, CACHE_FOLDER) or folder is None:
        yield
        return
    jax.config.update(CACHE_FOLDER, str(folder / "xla"))
    try:
        yield
    finally:
        jax.config.update(CACHE_FOLDER, None)
        _close_cache()


def _close_cache() -> None:
    """JAX opens its cache at the first compilation and ignores later changes of the setting."""
    try:
        from jax.experimental.compilation_cache import compilation_cache
    except ImportError as error:
        raise RuntimeError(
            f"JAX {jax.__version__} has no jax.experimental.compilation_cache: use a version of "
            "JAX that cinemae_jax names in its requirements"
        ) from error
    compilation_cache.reset_cache()
