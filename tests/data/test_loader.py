import os
from pathlib import Path

import numpy as np
import pytest

from cinemae_jax.data import catalog, decode, loader
from cinemae_jax.data.loader import Loader
from cinemae_jax.data.order import Order
from cinemae_jax.data.transforms import Crop, MultiCrop, RandomResizedCrop, Transform
from cinemae_jax.data.unread import BadImages, count_by_class
from cinemae_jax.runtime.shard import WHOLE, Shard
from tests.conftest import write_data_set

CROP = Crop(32, resize=32)


def train_stream(
    images: loader.Images, *, batch_size: int = 10, start_step: int = 0, host: Shard = WHOLE
) -> list[loader.Batch]:
    order = Order(len(images), batch_size, epochs=2, seed=3)
    shown = Loader(images, CROP, seed=3, host=host)
    return list(shown.train_batches(order, start_step=start_step))


@pytest.fixture(scope="module")
def train_images(data_set: Path) -> loader.Images:
    return loader.from_catalog(catalog.scan(data_set).select(split="train"))


def test_training_reads_every_image_once_per_epoch(train_images: loader.Images) -> None:
    batches = train_stream(train_images, batch_size=16)
    assert len(batches) == Order(48, 16, 2, 0).num_steps == 6
    for epoch in (0, 1):
        rows = np.concatenate([b["row"][b["epoch"] == epoch] for b in batches])
        assert sorted(rows) == list(range(48))
    assert (batches[0]["row"] != batches[3]["row"]).any()  # a new order each epoch


def test_a_batch_may_span_two_epochs(train_images: loader.Images) -> None:
    batches = train_stream(train_images)
    assert len(batches) == 9  # 96 images, 10 per batch
    assert set(batches[4]["epoch"]) == {0, 1}


def test_a_stream_can_resume_at_any_step(train_images: loader.Images) -> None:
    whole, tail = train_stream(train_images), train_stream(train_images, start_step=4)
    assert len(tail) == 5
    for one, two in zip(whole[4:], tail, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_two_hosts_read_the_interleaved_halves_of_one(train_images: loader.Images) -> None:
    whole = train_stream(train_images)
    halves = [train_stream(train_images, host=Shard(i, 2)) for i in (0, 1)]
    for step, batch in enumerate(whole):
        for i in (0, 1):
            np.testing.assert_array_equal(batch["row"][i::2], halves[i][step]["row"])
            np.testing.assert_array_equal(batch["image"][i::2], halves[i][step]["image"])


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_reads_every_image_once_and_pads(
    train_images: loader.Images, hosts: int
) -> None:
    rows = []
    for i in range(hosts):
        batches = list(Loader(train_images, CROP, host=Shard(i, hosts)).eval_batches(batch_size=10))
        assert len(batches) == 5  # the same number on every host
        rows += [b["row"][b["valid"]] for b in batches]
        assert all(len(b["row"]) == 10 // hosts for b in batches)
    assert sorted(np.concatenate(rows)) == list(range(48))


def test_an_unread_file_becomes_an_example_with_a_reason(tmp_path: Path) -> None:
    root = write_data_set(tmp_path, train=4, val=1)
    bad = root / "gen_a/imagenet_ai_test/train/ai/001.png"
    bad.write_bytes(bad.read_bytes()[:200])
    gone = root / "gen_a/imagenet_ai_test/train/nature/002.png"
    images = catalog.scan(root).select(split="train")
    gone.unlink()
    path = tmp_path / "bad_images.csv"
    unread = BadImages(path)
    for batch in train_stream(loader.from_catalog(images), batch_size=8):
        assert len(batch["row"]) == 8
        assert batch["valid"].sum() == 6
        assert not batch["image"][~batch["valid"]].any()
        unread.note(images, batch)
    listed = unread.listed
    assert [(b.path.split("/")[-2:], b.label) for b in listed] == [
        (["ai", "001.png"], "ai"),
        (["nature", "002.png"], "nature"),
    ]
    assert "damaged image" in listed[0].error
    assert "No such file" in listed[1].error
    assert count_by_class(listed) == {"nature": 1, "ai": 1}
    assert BadImages(path).listed == listed  # what another process reads
    assert unread.of(images) == listed
    assert unread.of(images.hold_out(1.0)[0]) == []
    unread.forget(images)
    assert not path.exists()


@pytest.mark.parametrize(
    "transform", [Crop(32, resize=32), MultiCrop(16, 4), RandomResizedCrop(32)], ids=type
)
def test_unread_files_have_the_shape_of_others(tmp_path: Path, transform: Transform) -> None:
    root = write_data_set(tmp_path, train=4, val=1)
    (root / "gen_a/imagenet_ai_test/val/ai/000.png").write_bytes(b"")
    images = loader.from_catalog(catalog.scan(root).select(split="val"))
    (batch,) = Loader(images, transform).eval_batches(batch_size=6)  # 3 good, 1 unread, 2 padding
    assert batch["image"].shape == (6, *transform.shape)
    assert batch["valid"].sum() == 3
    assert batch["image"][batch["valid"]].any(axis=tuple(range(1, batch["image"].ndim))).all()


def test_oversized_files_are_not_read(
    train_images: loader.Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", 10)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"read {path}"))
    batch = next(Loader(train_images, CROP).eval_batches(batch_size=6))
    assert not batch["valid"].any()
    assert all("bytes are above 10" in error for error in batch["error"])


def test_impossible_batches_are_refused(train_images: loader.Images) -> None:
    with pytest.raises(ValueError, match="no step would be taken"):
        Order(10, 21, 2, 0)
    with pytest.raises(ValueError, match="not divisible by 3 hosts"):
        train_stream(train_images, host=Shard(0, 3))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    root = write_data_set(tmp_path, train=1, val=1)
    for path in root.rglob("*.png"):
        path.chmod(0)
    images = loader.from_catalog(catalog.scan(root))
    batch = next(Loader(images, CROP).eval_batches(batch_size=6))
    assert not batch["valid"].any()
    assert all("Permission denied" in e for e in batch["error"])
