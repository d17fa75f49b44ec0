"""The persistent compilation cache: on while a command runs, unless JAX was given another one."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from cinemae_jax.runtime.compilation import CACHE_FOLDER, kept_compilations


def cache_folder() -> str | None:
    return getattr(jax.config, CACHE_FOLDER)


@pytest.fixture
def no_cache() -> Iterator[None]:
    """Without the cache of the test session."""
    before = cache_folder()
    jax.config.update(CACHE_FOLDER, None)
    yield
    jax.config.update(CACHE_FOLDER, before)


@pytest.mark.usefixtures("no_cache")
def test_the_cache_lies_in_the_users_cache_folder_and_is_switched_off_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with kept_compilations():
        assert cache_folder() == str(tmp_path / "cinemae_jax" / "xla")
    assert cache_folder() is None


def test_a_cache_that_jax_was_given_is_kept() -> None:
    before = cache_folder()
    assert before
    with kept_compilations():
        assert cache_folder() == before
    assert cache_folder() == before
