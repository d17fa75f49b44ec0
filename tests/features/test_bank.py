"""The feature bank: equal to the backbone itself, whole or absent, never mixed."""

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cinemae_jax import extract, train
from cinemae_jax.data.order import Order
from cinemae_jax.detector import loading
from cinemae_jax.features import bank, filling, splits
from cinemae_jax.features.bank import BankError
from cinemae_jax.features.run import UNREAD, Run
from cinemae_jax.features.sources import BankedSet, Sets
from cinemae_jax.runtime.devices import merge
from cinemae_jax.settings import Settings
from tests.conftest import write_data_set
from tests.helpers.small_run import small_settings, spoil

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]


@pytest.fixture
def config(data_set: Path, backbone_file: Path) -> Settings:
    return with_features(small_settings(data_set, backbone_file), num_views=2)


def open_sets(config: Settings, workdir: Path) -> Sets:
    data, backbone = (
        splits.read_data(config.data),
        loading.load_backbone(config),
    )
    return filling.open_sets(config, data, backbone, Run.start(workdir))


def with_features(config: Settings, **fields: object) -> Settings:
    return dataclasses.replace(config, features=dataclasses.replace(config.features, **fields))


def with_detector(config: Settings, **fields: object) -> Settings:
    return dataclasses.replace(config, detector=dataclasses.replace(config.detector, **fields))


def test_a_bank_opens_with_another_attention_and_layout(config: Settings, tmp_path: Path) -> None:
    """They change features by rounding only, so they are no part of the recipe."""
    data = splits.read_data(config.data)
    backbone = loading.load_backbone(config)
    other = with_detector(config, attention="xla", run_layout="fold")
    one, two = (filling.banks(c, data, backbone, tmp_path) for c in (config, other))
    assert {name: made.recipe for name, made in one.items()} == {
        name: made.recipe for name, made in two.items()
    }
    half = filling.banks(with_detector(other, dtype="bfloat16"), data, backbone, tmp_path)
    assert half["train"].recipe != one["train"].recipe


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"sensitivity": "patch"},
        {"score": "conditional_nll"},
        {"fusion": "lcas"},
        {"masking": "disjoint", "sensitivity": "patch"},
        {"masking": "stratified", "sensitivity": "patch", "score_share": 0.5},
    ],
)
def test_a_bank_gives_the_features_of_the_backbone(
    config: Settings, tmp_path: Path, choice: dict[str, Any]
) -> None:
    """Same images, crops, masks and order; the float32 backbone differs by its batch size only."""
    config = with_detector(with_features(config, num_runs=4), **choice)
    config = dataclasses.replace(
        config, num_seeds=2, data=dataclasses.replace(config.data, num_crops=4, eval_crops=9)
    )
    banked, online = (
        open_sets(with_features(config, source=source), tmp_path) for source in ("bank", "online")
    )
    order = Order(len(banked.train.images), 8, 3, seed=5)
    pairs = [
        *zip(banked.train.training(order, 2), online.train.training(order, 2), strict=True),
        *zip(banked.test.scoring(), online.test.scoring(), strict=True),
    ]
    assert len(pairs) == order.num_steps - 2 + 2
    crops = [merge(stored.f_global).shape[0] // len(batch["row"]) for (batch, stored), _ in pairs]
    assert crops == [4] * (order.num_steps - 2) + [9] * 2
    for (batch, stored), (expected_batch, computed) in pairs:
        for name in ("row", "label", "valid", "error"):
            np.testing.assert_array_equal(batch[name], expected_batch[name])
        one, two = merge(stored), merge(computed)
        valid = np.repeat(batch["valid"], len(one.f_global) // len(batch["row"]))
        for name in ("f_global", "uniform_share"):
            a, b = getattr(one, name)[valid], getattr(two, name)[valid]
            np.testing.assert_allclose(a, b, atol=2e-5)
        for field in dataclasses.fields(one.terms):
            a, b = getattr(one.terms, field.name), getattr(two.terms, field.name)
            if a is not None:
                np.testing.assert_allclose(a[valid], b[valid], atol=2e-5, rtol=1e-5)
        if choice.get("sensitivity"):
            np.testing.assert_array_equal(one.masked[valid], two.masked[valid])


def test_training_from_the_bank_is_training_online(config: Settings, tmp_path: Path) -> None:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=2))
    heads, tables = [], []
    for source in ("bank", "online"):
        workdir = tmp_path / source
        assert train.train(with_features(config, source=source), workdir) == []
        heads.append(loading.load(workdir, which="last", backbone=config.backbone).heads)
        tables.append(pa.csv.read_csv(workdir / "scores.csv"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *heads)
    logits = [table["logit"].to_numpy() for table in tables]
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_several_heads_from_one_bank(config: Settings, tmp_path: Path) -> None:
    """Each head scores every image; the first one is the head that it would be alone."""
    config = with_features(config, bank=str(tmp_path / "shared"))
    train.train(config, tmp_path / "one")
    train.train(dataclasses.replace(config, num_seeds=2), tmp_path / "two")
    one, two = (pa.csv.read_csv(tmp_path / name / "scores.csv") for name in ("one", "two"))
    np.testing.assert_allclose(one["logit"].to_numpy(), two["logit"].to_numpy(), atol=1e-4)
    assert np.abs(two["logit"].to_numpy() - two["logit_1"].to_numpy()).max() > 1e-3


def test_a_bank_that_does_not_fit_is_streamed(config: Settings, tmp_path: Path) -> None:
    held = open_sets(config, tmp_path).train
    streamed = open_sets(with_features(config, memory=0.0), tmp_path).train
    assert isinstance(held, BankedSet)
    assert isinstance(streamed, BankedSet)
    assert isinstance(streamed.stored.columns["f_global"], np.memmap)
    for name, column in held.stored.columns.items():
        np.testing.assert_array_equal(column, streamed.stored.columns[name])
    assert {path.suffix for path in (tmp_path / "bank/train").iterdir()} == {".parquet"}


def test_a_bank_opens_as_a_plain_table(config: Settings, tmp_path: Path) -> None:
    assert extract.extract(config, tmp_path) == []
    table = pq.read_table(tmp_path / "bank/test")
    images = splits.read_data(config.data).test
    assert table["path"].to_pylist() == images.table["path"].to_pylist()
    assert set(table["format"].to_pylist()) == {"PNG"}
    assert set(table["width"].to_pylist()) == {40}
    assert table["f_global"].type == pa.list_(pa.float32(), 24)
    assert table["mismatch"].type == pa.list_(pa.float32(), 3 * 12)


def test_a_bank_holds_the_ids_of_masks_that_depend_on_the_pixels(
    config: Settings, tmp_path: Path
) -> None:
    config = with_detector(config, masking="stratified")
    assert extract.extract(config, tmp_path) == []
    table = pq.read_table(tmp_path / "bank/test")
    assert table["masked"].type == pa.list_(pa.uint8(), 3 * 12)
    ids = np.stack(table["masked"].to_numpy()).reshape(-1, 12)
    assert (np.diff(ids.astype(int), axis=1) > 0).all()
    assert len(np.unique(ids, axis=0)) > len(ids) // 2
    assert bank.id_type(257) is np.uint16
    before = digests(tmp_path / "bank")
    first_part(tmp_path).unlink()
    assert extract.extract(config, tmp_path) == []
    assert digests(tmp_path / "bank") == before
    for other in ({"masking": "random"}, {"texture_temperature": 0.5}):
        with pytest.raises(BankError, match=next(iter(other))):
            open_sets(with_detector(config, **other), tmp_path)


def test_a_bank_from_before_masking_could_be_chosen_is_one_of_random_masks(
    config: Settings, tmp_path: Path
) -> None:
    made = filling.banks(
        config, splits.read_data(config.data), loading.load_backbone(config),
        tmp_path,
    )["train"].recipe  # fmt: skip
    older = dataclasses.asdict(made)
    del older["detector"]["masking"]
    bank.require_made_by(made, older, tmp_path)
    assert made.choices == older
    disjoint = dataclasses.replace(made, detector={**made.detector, "masking": "disjoint"})
    with pytest.raises(BankError, match=r"random.*disjoint"):
        bank.require_made_by(disjoint, older, tmp_path)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.parquet"))
    }


def test_killed_at_any_moment_the_bank_is_the_same(
    backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves the files of its moment: copied while a part is written, synced and named."""
    root = write_data_set(tmp_path / "data", train=8, val=5)
    spoil(root, "train/ai/003.png", "val/nature/001.png")
    config = with_features(small_settings(root, backbone_file), shard_images=5)
    whole, copies, write_table = tmp_path / "whole", list[Path](), pq.write_table

    def copy() -> None:
        copies.append(tmp_path / f"killed {len(copies)}")
        shutil.copytree(whole, copies[-1])

    def copying(call: Callable[..., None]) -> Callable[..., None]:
        def copy_and_call(*arguments: Any) -> None:
            copy()
            call(*arguments)

        return copy_and_call

    def write_twice(table: pa.Table, file: Any, **options: Any) -> None:
        file.write(b"the beginning of a file")
        file.flush()
        copy()
        file.seek(0)
        file.truncate()
        write_table(table, file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pq, "write_table", write_twice)
        for name in ("fsync", "replace"):
            patch.setattr(os, name, copying(getattr(os, name)))
        assert len(extract.extract(config, whole)) == 2
    for killed in copies[:5]:
        assert digests(killed / "bank") != digests(whole / "bank")
        assert len(extract.extract(config, killed)) == 2
        assert digests(killed / "bank") == digests(whole / "bank")
        assert not list(killed.rglob("*.partial"))
        assert len(pa.csv.read_csv(killed / UNREAD)) == 2


def first_part(workdir: Path) -> Path:
    return next(iter(sorted((workdir / "bank/train").iterdir())))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[len(data) // 3 : len(data) // 2] ^= 0xFF  # values only: head and index are sound
    path.write_bytes(data.tobytes())


def drop_column(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["mismatch"]), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "damaged or not a Parquet file"),
        (flip, "damaged or not a Parquet file"),
        (drop_column, "lacks the columns mismatch"),
    ],
)
def test_a_damaged_part_is_named_and_alone_extracted_anew(
    config: Settings, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    config = with_features(config, shard_images=16)
    extract.extract(config, tmp_path)
    before = digests(tmp_path / "bank")
    part = first_part(tmp_path)
    damage(part)
    with pytest.raises(BankError, match=f"{part}.*{message}.*delete it"):
        open_sets(config, tmp_path)
    part.unlink()
    others = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").rglob("*.parquet")}
    open_sets(config, tmp_path)
    assert digests(tmp_path / "bank") == before
    assert all(path.stat().st_mtime_ns == time for path, time in others.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: with_features(c, num_runs=4), "num_runs was 3, is 4"),
        (lambda c: with_features(c, seed=1), "seed was 0, is 1"),
        (lambda c: with_detector(c, pooling="mean"), "'pooling': 'cls'"),
        (
            lambda c: dataclasses.replace(c, data=dataclasses.replace(c.data, resize=40)),
            "transform was .*resize=36.*resize=40",
        ),
        (
            lambda c: dataclasses.replace(c, data=dataclasses.replace(c.data, holdout=0.5)),
            "other images|config.features.shard_images",
        ),
        (lambda c: with_features(c, shard_images=7), "shard_images has changed"),
    ],
)
def test_a_bank_made_otherwise_is_refused(
    config: Settings, tmp_path: Path, change: Callable[[Settings], Settings], message: str
) -> None:
    extract.extract(config, tmp_path)
    before = digests(tmp_path / "bank")
    with pytest.raises(BankError, match=message):
        extract.extract(change(config), tmp_path)
    assert digests(tmp_path / "bank") == before


def test_a_bank_of_files_that_have_changed_is_refused(backbone_file: Path, tmp_path: Path) -> None:
    root = write_data_set(tmp_path / "data")
    config = small_settings(root, backbone_file)
    extract.extract(config, tmp_path)
    for path in root.rglob("*.png"):
        Image.open(path).resize((41, 41)).save(path)
    with pytest.raises(BankError, match=r"had [\d,]+ bytes when the bank .* delete this one"):
        open_sets(config, tmp_path)


def test_an_image_that_can_be_read_by_now_is_extracted(backbone_file: Path, tmp_path: Path) -> None:
    root = write_data_set(tmp_path / "data")
    config = with_features(small_settings(root, backbone_file), shard_images=10)
    whole = tmp_path / "whole"
    extract.extract(config, whole)
    file = root / "gen_a/imagenet_ai_test/val/ai/000.png"
    content = file.read_bytes()
    spoil(root, "val/ai/000.png")
    assert len(extract.extract(config, tmp_path)) == 1
    assert digests(tmp_path / "bank") != digests(whole / "bank")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "bank").rglob("*.parquet")}
    open_sets(config, tmp_path)  # still broken: nothing is done
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    file.write_bytes(content)
    assert extract.extract(config, tmp_path) == []
    assert digests(tmp_path / "bank") == digests(whole / "bank")
    anew = [path.name for path, time in stamps.items() if path.stat().st_mtime_ns != time]
    assert anew == ["part-00000-of-00003.parquet"]


def test_views_of_an_image_may_lie_in_two_batches(config: Settings, tmp_path: Path) -> None:
    extract.extract(with_features(config, num_views=3, batch_size=24), tmp_path / "one")
    extract.extract(with_features(config, num_views=3, batch_size=16), tmp_path / "other")
    one, other = (pq.read_table(tmp_path / name / "bank/train") for name in ("one", "other"))
    for table in (one, other):
        sizes = [Path(config.data.root, name).stat().st_size for name in table["path"].to_pylist()]
        assert table["num_bytes"].to_pylist() == sizes
    values = [np.stack(table["f_global"].to_numpy()) for table in (one, other)]
    np.testing.assert_allclose(*values, atol=2e-5)


def test_a_full_disk_keeps_what_is_there(
    config: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_features(config, shard_images=16)
    calls = []

    def fsync(_: int) -> None:
        calls.append(1)
        if len(calls) == 3:  # the first part is there, and synced with its folder
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device.* parts of the bank are kept"):
        extract.extract(config, tmp_path)
    kept = digests(tmp_path / "bank")
    assert kept
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    extract.extract(config, tmp_path)
    assert kept.items() <= digests(tmp_path / "bank").items()
