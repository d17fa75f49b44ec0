"""A checkpoint is read as it was written, or refused by name; the best one is never another one."""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cinemae_jax.runtime.checkpoints import CheckpointError, Checkpoints

NUM_DAMAGES = int(os.environ.get("CINEMAE_DAMAGES", "20"))
LIKE = {"head": {"w": np.zeros((3, 4), np.float32)}, "held_out": np.zeros(5, np.int32)}
LOSSES = {1: 0.5, 2: 0.3, 3: 0.4}


def score(metrics: Mapping[str, float]) -> float:
    return -metrics["loss"]


def opened(folder: Path) -> Checkpoints:
    return Checkpoints(folder, best=score)


def items(step: int) -> dict[str, Any]:
    w = np.arange(12, dtype=np.float32).reshape(3, 4) * step
    return {"head": {"w": w}, "held_out": np.full(5, step, np.int32)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 2, the best, and 3, the last."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with opened(folder) as checkpoints:
        for step, loss in LOSSES.items():
            checkpoints.save(step, items(step), {"kind": "test", "n": [1]}, {"loss": loss})
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "checkpoints")


@dataclasses.dataclass(frozen=True)
class Read:
    """What was read of the best and of the last checkpoint."""

    steps: tuple[int | None, ...]
    values: str

    @classmethod
    def of(cls, folder: Path) -> "Read":
        with opened(folder) as checkpoints:
            steps = checkpoints.best, checkpoints.latest
            found = [(checkpoints.metadata(s), checkpoints.restore(s, LIKE)) for s in steps]
        return cls(steps, repr(found))


def test_what_was_written_is_read(written: Path) -> None:
    assert {path.name for path in written.iterdir() if path.name.isdigit()} == {"2", "3"}
    with opened(written) as checkpoints:
        assert (checkpoints.best, checkpoints.latest, checkpoints.lost) == (2, 3, None)
        assert checkpoints.metadata(2) == {"kind": "test", "n": [1]}
        np.testing.assert_array_equal(
            checkpoints.restore(2, LIKE)["head"]["w"], items(2)["head"]["w"]
        )


def damaged_files(folder: Path, seed: int) -> str:
    """Changes one byte, cuts, empties or deletes one file; says what it did."""
    rng = np.random.default_rng(seed)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    path = files[rng.integers(len(files))]
    data = bytearray(path.read_bytes())
    kind = ("flip", "flip", "flip", "cut", "delete")[rng.integers(5)]
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(data[: rng.integers(len(data))])
    else:
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    return f"{kind} {path.relative_to(folder)}"


@pytest.mark.parametrize("seed", range(NUM_DAMAGES))
def test_no_damage_is_silent(written: Path, copy: Path, seed: int) -> None:
    what = damaged_files(copy, seed)
    with contextlib.suppress(CheckpointError):
        assert Read.of(copy) == Read.of(written), what
        return
    with pytest.raises(CheckpointError, match=str(copy)):
        Read.of(copy)


def lose_best(folder: Path) -> None:
    shutil.rmtree(folder / "2")


def lose_best_metrics(folder: Path) -> None:
    shutil.rmtree(folder / "2/metrics")


def lose_checksums(folder: Path) -> None:
    shutil.rmtree(folder / "2/checksums")


def worsen_best(folder: Path) -> None:
    (folder / "2/metrics/metrics").write_text('{"loss": 0.9}')


@pytest.mark.parametrize("lose", [lose_best, lose_best_metrics, lose_checksums, worsen_best])
def test_another_best_is_never_taken_silently(copy: Path, lose: Callable[[Path], None]) -> None:
    lose(copy)
    with pytest.raises(CheckpointError, match=r"checkpoints/2"):
        Read.of(copy)


def test_without_a_damaged_last_checkpoint_the_one_before_it_counts(copy: Path) -> None:
    for path in (copy / "3/head").rglob("d/*"):
        path.write_bytes(b"")
    with (
        opened(copy) as checkpoints,
        pytest.raises(CheckpointError, match=r"checkpoints/3 is damaged .*delete it .* step 2"),
    ):
        checkpoints.restore(3, LIKE)
    shutil.rmtree(copy / "3")
    with opened(copy) as checkpoints:
        assert (checkpoints.best, checkpoints.latest) == (2, 2)
        assert checkpoints.restore(2, LIKE)["held_out"].tolist() == [2] * 5


def test_checkpoints_without_checksums_are_read(written: Path, tmp_path: Path) -> None:
    """As older versions wrote them: neither the item nor the field of the metadata."""
    old = shutil.copytree(written, tmp_path / "old")
    for step in ("2", "3"):
        shutil.rmtree(old / step / "checksums")
        path = old / step / "metadata/metadata"
        stored = json.loads(path.read_text())
        assert stored.pop("checksums") == "sha256"
        path.write_text(json.dumps(stored))
    assert Read.of(old) == Read.of(written)


def test_a_stray_folder_is_left_alone_or_named(written: Path, copy: Path) -> None:
    (copy / "notes").mkdir()
    (copy / "notes/a.txt").write_text("mine")
    assert Read.of(copy) == Read.of(written)
    assert (copy / "notes/a.txt").exists()
    (copy / "7").mkdir()  # looks like the last checkpoint
    with pytest.raises(CheckpointError, match=r"checkpoints/7 is damaged .*delete it .* step 3"):
        Read.of(copy)
