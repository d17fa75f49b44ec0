import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinemae_jax.data import catalog, index, records, walk
from cinemae_jax.data.catalog import CatalogError
from tests.helpers.trees import names, touch


@pytest.fixture(autouse=True)
def fine_clock(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stamps so fine that a listing can be cached at once."""
    monkeypatch.setattr(index, "TICK_NS", 0)


# --- walk -----------------------------------------------------------------------------------------


def test_names_of_every_kind_are_found(tmp_path: Path) -> None:
    kinds = ["A.PNG", "b.JPEG", "with spaces.jpg", "ünï写.webp", "a.b.c.v1.2.png", "-dash.jpg"]
    kinds += ["line\nbreak.png", "back\\slash.gif", "_x.TIFF"]
    touch(tmp_path, *(f"g/i/val/ai/{n}" for n in kinds), "g/i/val/ai/notes.txt", "g/i/val/.hid.png")
    found = catalog.scan(tmp_path)
    assert {Path(p).name for p in names(found)} == set(kinds)
    assert found.skipped == {"extension .txt": 1, "hidden file or folder": 1}


@pytest.mark.parametrize("warm", [False, True])
def test_names_that_are_not_utf8_are_counted(tmp_path: Path, warm: bool) -> None:
    touch(tmp_path, "g/val/ai/x.png")
    bad = os.fsencode(tmp_path / "g/val/ai") + b"/\xff\xfe"
    for path in (bad + b".png", bad + b".txt"):
        Path(os.fsdecode(path)).touch()
    touch(Path(os.fsdecode(bad)), "in/a.png", "in/b.png")
    for _ in range(1 + warm):
        found = catalog.scan(tmp_path)
    assert names(found) == ["g/val/ai/x.png"]
    assert found.skipped == {"name is not UTF-8": 4}
    str(found.skipped).encode()


segment = st.sampled_from(["a", "b.c", "é", "z z", "写"])
suffix = st.sampled_from([".png", ".JPG", ".txt", ""])


@given(st.sets(st.tuples(st.lists(segment, max_size=3), segment, suffix).map(
    lambda t: "/".join(["ai", *t[0], t[1] + "-" + t[2]])
), min_size=1))  # fmt: skip
def test_every_file_is_an_image_or_counted(
    tmp_path_factory: pytest.TempPathFactory, paths: set[str]
) -> None:
    root = touch(tmp_path_factory.mktemp("tree"), "ai/x.png", *paths)
    found = catalog.scan(root)
    files = [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]
    images = [p for p in files if p.lower().endswith((".png", ".jpg"))]
    assert names(found) == sorted(images)
    assert found.table["example_id"].to_pylist() == [records.example_id(p) for p in names(found)]
    assert len(found) + sum(found.skipped.values()) == len(files)


def test_many_extensions_are_counted_together(tmp_path: Path) -> None:
    touch(tmp_path, "ai/x.png", *(f"ai/log.{i}" for i in range(50)), "ai/log2.7")
    skipped = catalog.scan(tmp_path).skipped
    assert len(skipped) == walk.MAX_REASONS + 1
    assert sum(skipped.values()) == 51
    assert skipped["extension .7"] == 2


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "a/val/nature/x.png", "a/val/ai/y.png", "b/val/ai/z.png")
    (root / "b/val/nature").symlink_to(root / "a/val/nature")  # shared photographs, not a loop
    (root / "a/val/ai/up").symlink_to(root)
    (root / "a/val/ai/link.png").symlink_to("y.png")
    (root / "a/val/ai/gone.png").symlink_to("nowhere.png")  # an unreadable image
    (root / "a/val/ai/gone").symlink_to("nowhere")
    (root / "a/val/ai/self.png").symlink_to("self.png")
    os.mkfifo(root / "a/val/ai/pipe.png")
    found = catalog.scan(root)
    assert names(found) == [
        "a/val/ai/gone.png",
        "a/val/ai/link.png",
        "a/val/ai/y.png",
        "a/val/nature/x.png",
        "b/val/ai/z.png",
        "b/val/nature/x.png",
    ]
    assert found.skipped == {"symlink loop": 2, "broken link": 1, "no regular file": 1}


def test_too_many_links_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "MAX_VISITS", 50)
    folders = [tmp_path / f"{i}" for i in range(9)]
    for folder in folders:
        touch(folder, "ai/x.png")
    for folder in folders:
        for other in folders:
            (folder / f"to_{other.name}").symlink_to(other)
    with pytest.raises(CatalogError, match=r"50 ways .*symbolic links"):
        catalog.scan(tmp_path)


def test_an_unreadable_folder_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "g/val/ai/x.png", "g/val/nature/x.png")
    scandir = os.scandir

    def refuse(path: str) -> object:  # root could read it
        if path.endswith("nature"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CatalogError, match=r"g/val/nature .*Permission denied"):
        catalog.scan(tmp_path)


# --- index ----------------------------------------------------------------------------------------


@pytest.fixture
def listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed during the test."""
    seen, scandir = [], os.scandir

    def note(path: str) -> object:
        if str(path).startswith(str(tree)):
            seen.append(path)
        return scandir(path)

    monkeypatch.setattr(walk.os, "scandir", note)
    return seen


def test_a_warm_start_lists_nothing_and_finds_the_same(
    tree: Path, cache: Path, listed: list[str]
) -> None:
    cold = catalog.scan(tree)
    assert len(listed) == 17
    assert len(list(cache.rglob("*.parquet"))) == 1
    listed.clear()
    warm = catalog.scan(tree)
    assert listed == []
    assert warm.table.equals(cold.table)
    assert (warm.skipped, warm.explain()) == (cold.skipped, cold.explain())
    assert all(warm.table[name].num_chunks == 1 for name in records.SCHEMA.names)
    catalog.scan(tree, cache=False)
    assert len(listed) == 17


CHANGES: dict[str, Callable[[Path], object]] = {
    "new": lambda t: touch(t, "b/i/val/ai/new.png"),
    "gone": lambda t: (t / "b/i/val/ai/1.png").unlink(),
    "renamed": lambda t: (t / "b/i/val/ai/1.png").rename(t / "b/i/val/ai/7.png"),
    "moved": lambda t: (t / "b/i/val/ai/1.png").rename(t / "b/i/val/nature/7.png"),
    "new folder": lambda t: touch(t, "c/i/val/ai/new.png"),
    "folder gone": lambda t: shutil.rmtree(t / "a"),
    "folder renamed": lambda t: (t / "a").rename(t / "c"),
    "link mended": lambda t: touch(t.parent / "elsewhere", "val/ai/x.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(tree: Path, change: str) -> None:
    (tree / "d").symlink_to(tree.parent / "elsewhere")
    before = catalog.scan(tree)
    CHANGES[change](tree)
    after = catalog.scan(tree)
    assert names(after) == names(catalog.scan(tree, cache=False)) != names(before)


def test_a_change_is_seen_when_the_mtime_is_restored(tree: Path) -> None:
    """``tar`` and ``rsync -a`` set the times of folders."""
    folder = tree / "b/i/val/ai"
    catalog.scan(tree)
    times = folder.stat()
    touch(folder, "new.png")
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert "b/i/val/ai/new.png" in names(catalog.scan(tree))


def test_a_listing_as_new_as_its_folders_is_not_cached(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later change within the same tick of the clock would not show."""
    monkeypatch.setattr(index, "TICK_NS", 3_600_000_000_000)
    catalog.scan(tree)
    assert not list(cache.rglob("*.parquet"))


@pytest.mark.parametrize("damage", ["empty", "short", "text", "other", "gone"])
def test_a_damaged_cache_file_is_rebuilt(
    tree: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = catalog.scan(tree)
    file = index.cache_file(tree)
    assert file is not None
    data = file.read_bytes()
    if damage == "other":
        pq.write_table(pa.table({"path": ["x"]}), file)
    elif damage == "gone":
        file.unlink()
    else:
        file.write_bytes(
            {
                "empty": b"",
                "short": data[: len(data) // 2],
                "text": b"hello",
            }[damage]
        )
    with caplog.at_level(logging.WARNING):
        assert catalog.scan(tree).table.equals(before.table)
    assert ("is damaged" in caplog.text) == (damage != "gone")
    caplog.clear()
    assert catalog.scan(tree).table.equals(before.table)
    assert not caplog.text


def test_a_flipped_byte_in_the_cache_file_does_no_harm(tree: Path) -> None:
    before = catalog.scan(tree)
    file = index.cache_file(tree)
    assert file is not None
    data = file.read_bytes()
    for place in range(0, len(data), 29):
        file.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
        after = catalog.scan(tree)
        assert after.table.equals(before.table), place
        assert after.explain() == before.explain()


def test_a_cache_file_of_another_version_is_not_used(
    tree: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.scan(tree)
    monkeypatch.setattr(index, "VERSION", [1, [".png"]])
    listed.clear()
    catalog.scan(tree)
    assert listed


def test_nothing_is_written_into_the_data_set(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(tree.parent.rglob("*"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "cache"))
    assert index.cache_file(tree) is None
    catalog.scan(tree)
    (tree.parent / "link").symlink_to(tree)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree.parent / "link" / "cache"))
    catalog.scan(tree)
    (tree.parent / "link").unlink()
    assert sorted(tree.parent.rglob("*")) == before


def test_the_cache_follows_the_xdg_variables(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = index.cache_file(tree)
    assert file is not None
    assert file.is_relative_to(cache / "cinemae_jax")
    monkeypatch.setenv("HOME", str(tree.parent / "home"))
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        file = index.cache_file(tree)
        assert file is not None
        assert file.is_relative_to(tree.parent / "home/.cache/cinemae_jax")


def test_a_cache_that_cannot_be_written_is_a_warning(
    tree: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (cache / "cinemae_jax").write_text("in the way")
    assert len(catalog.scan(tree)) == 24
    assert "cannot be cached" in caplog.text


def test_the_cache_keeps_the_most_recently_used_listings(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "KEPT", 3)
    roots = [tree / "a", tree / "b", tree / "a/i", tree / "b/i", tree]
    folder = cache / "cinemae_jax/index"
    for now, root in enumerate(roots[:4]):
        catalog.scan(root)
        os.utime(folder / index.cache_file(root).name, (now, now))
    (folder / "killed.partial").touch()
    os.utime(folder / "killed.partial", (9, 9))
    catalog.scan(roots[1])  # now the most recently used
    catalog.scan(roots[4])
    kept = {index.cache_file(root) for root in (roots[1], roots[4])} | {folder / "killed.partial"}
    assert set(folder.iterdir()) == kept
    monkeypatch.setattr(index, "KEPT", 2)
    catalog.scan(roots[0])
    assert set(folder.iterdir()) == {index.cache_file(root) for root in (roots[0], roots[4])}
