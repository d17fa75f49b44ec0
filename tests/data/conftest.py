"""A cache folder and a data set of empty files for each test."""

from pathlib import Path

import pytest

from tests.helpers.trees import touch


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two generators with two splits, three images per class, and a text file."""
    paths = [f"{g}/i/{s}/{c}/{i}.png" for g in "ab" for s in ("train", "val")
             for c in ("ai", "nature") for i in range(3)]  # fmt: skip
    return touch(tmp_path / "tree", *paths, "a/notes.txt")
