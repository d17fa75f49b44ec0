import concurrent.futures
import importlib.util
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from cinemae_jax.data import catalog, genimage, loader, records, tfds_records
from cinemae_jax.data.catalog import CatalogError
from cinemae_jax.data.order import Order
from cinemae_jax.data.transforms import Crop

ADM, OTHER = "ADM", "my own v1.5"
INNER = {ADM: "imagenet_ai_0508_adm", OTHER: "inner"}
NAMES = {
    "a name with.several.dots v1.2.jpeg": "JPEG",
    "b.png": "PNG",
    "c.webp": "WEBP",
    "d.JPG": "PNG",
    **{f"{i:03d}.PNG": "PNG" for i in range(5)},
}
CUT = f"{ADM}/{INNER[ADM]}/train/ai/cut.png"
EMPTY = f"{ADM}/{INNER[ADM]}/train/nature/empty.jpg"
NO_IMAGE = f"{ADM}/{INNER[ADM]}/val/ai/text.png"
SIZE = 24


def picture(rng: np.random.Generator, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (30, 50, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two generators, files of every kind: 39 + 18 images, three of them unreadable."""
    root, rng = tmp_path_factory.mktemp("tree"), np.random.default_rng(0)
    files = {
        f"{generator}/{INNER[generator]}/{split}/{label}/{name}": picture(rng, kind)
        for generator, splits in ((ADM, ("train", "val")), (OTHER, ("val",)))
        for split in splits
        for label in ("ai", "nature")
        for name, kind in NAMES.items()
    }
    files |= {CUT: picture(rng, "PNG")[:700], EMPTY: b"", NO_IMAGE: b"none", "ADM/readme.txt": b"x"}
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def build_all(root: Path, data_dir: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genimage, "SHARD_BYTES", 20_000)  # several shards a split
        for generator in catalog.scan(root).generators:
            genimage.build(root, data_dir, generator)
    return data_dir


@pytest.fixture(scope="module")
def data_dir(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_all(root, tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def copy(data_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(data_dir, tmp_path / "copy")


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def shards(data_dir: Path, split: str = "train") -> list[Path]:
    return sorted(data_dir.glob(f"gen_image/{ADM}/*/*-{split}.array_record-*"))


# --- the same data set --------------------------------------------------------------------------


def test_the_catalog_equals_that_of_the_folder(root: Path, data_dir: Path) -> None:
    found, scanned = tfds_records.open_tfds(data_dir)[0], catalog.scan(root)
    assert found.table.equals(scanned.table)
    assert found.table.schema.equals(records.SCHEMA, check_metadata=True)
    assert found.fingerprint == scanned.fingerprint
    assert found.skipped == scanned.skipped == {"extension .txt": 1}
    assert f"ADM/train ai: 10 images from {data_dir}/gen_image/ADM/1.0.0" in found.explain()


@pytest.mark.parametrize("generators", [None, [ADM], [OTHER], [OTHER, ADM]])
@pytest.mark.parametrize("split", [None, "val"])
def test_a_selection_equals_that_of_the_folder(
    root: Path, data_dir: Path, generators: list[str] | None, split: str | None
) -> None:
    found, images = tfds_records.open_tfds(data_dir, generators=generators, split=split)
    expected = catalog.scan(root).select(generators=generators, split=split)
    assert found.table.to_pylist() == expected.table.to_pylist()
    assert [images.read(row) for row in range(len(images))] == [
        (root / path).read_bytes() for path in expected.table["path"].to_pylist()
    ]
    np.testing.assert_array_equal(images.example_ids, expected.table["example_id"].to_numpy())
    np.testing.assert_array_equal(images.labels, expected.labels)


def test_tensorflow_is_not_needed(data_dir: Path) -> None:
    tfds_records.open_tfds(data_dir)[1].read(0)
    assert "tensorflow" not in sys.modules


def test_several_shards_were_written(data_dir: Path) -> None:
    assert len(shards(data_dir, "train")) > 2
    assert len(shards(data_dir, "val")) > 2


def test_any_part_of_a_catalog_can_be_read(root: Path, data_dir: Path) -> None:
    found, _ = tfds_records.open_tfds(data_dir)
    for part in (*found.hold_out(0.3), *found.select(split="train").hold_out(0.0)):
        images = tfds_records.from_catalog(part)
        assert [images.read(row) for row in range(len(part))] == [
            (root / path).read_bytes() for path in part.table["path"].to_pylist()
        ]


def test_threads_and_other_processes_can_read(root: Path, data_dir: Path) -> None:
    _, images = tfds_records.open_tfds(data_dir)
    rows = np.random.default_rng(0).integers(len(images), size=2000).tolist()
    paths = catalog.scan(root).table["path"].to_pylist()
    for read in (images.read, pickle.loads(pickle.dumps(images.read))):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for row, data in zip(rows, pool.map(read, rows), strict=True):
                assert data == (root / paths[row]).read_bytes()


RANDOM_CROP = Crop(SIZE, resize=0, random=True)


def test_batches_equal_those_of_the_folder(root: Path, data_dir: Path) -> None:
    part = catalog.scan(root).select(generators=[ADM], split="train")
    sources = (
        loader.from_catalog(part),
        tfds_records.open_tfds(data_dir, generators=[ADM], split="train")[1],
    )

    def same(make: Callable[[loader.Loader], Iterable[loader.Batch]]) -> list[str]:
        errors: list[str] = []
        loaders = (loader.Loader(x, RANDOM_CROP, seed=3, num_threads=3) for x in sources)
        for one, two in zip(*map(make, loaders), strict=True):
            assert one.keys() == two.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], two[name])
            errors += [error for error in two["error"].tolist() if error]
        return errors

    errors = same(lambda images: images.eval_batches(batch_size=8))
    assert len(errors) == 2
    assert "empty file" in errors
    order = Order(len(part), 8, 4, seed=3)
    assert same(lambda images: images.train_batches(order))


def test_records_describe_their_files(root: Path, data_dir: Path) -> None:
    builder = tfds.builder_from_directory(data_dir / "gen_image" / ADM / "1.0.0")
    assert builder.info.features["label"].names == ["nature", "ai"]
    skip = {"image": tfds.decode.SkipDecoding()}
    records = [
        record
        for split in ("train", "val")
        for record in builder.as_data_source(split, decoders=skip)
    ]
    for record in records:
        path = record["file_name"].decode()
        assert record["image"] == (root / path).read_bytes()
        assert record["label"] == (Path(path).parent.name == "ai")
        assert record["generator"].decode() == ADM
        facts = (record["width"], record["height"], record["format"].decode())
        if path in (EMPTY, NO_IMAGE):
            assert facts == (0, 0, "")
        else:  # d.JPG holds a PNG, and the cut-off file still has its header
            assert facts == (50, 30, NAMES.get(Path(path).name, "PNG"))


# --- building -----------------------------------------------------------------------------------


def test_building_again_changes_nothing(root: Path, data_dir: Path, tmp_path: Path) -> None:
    before = files_of(data_dir)
    build_all(root, data_dir)
    assert files_of(data_dir) == before
    again = files_of(build_all(root, tmp_path))
    same = {name for name in before if "array_record" in name or name.endswith(".parquet")}
    assert same
    assert all(again[name][1] == before[name][1] for name in same)
    assert again.keys() == before.keys()


def test_changed_images_are_not_mistaken_for_the_built_ones(root: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(root, tmp_path / "tree")
    build_all(tree, tmp_path / "tfds")
    with open(tree / CUT, "ab") as file:
        file.write(b"mended")
    with pytest.raises(CatalogError, match=r"ADM/1\.0\.0 was built from files .*delete it"):
        build_all(tree, tmp_path / "tfds")
    (tree / CUT).unlink()
    with pytest.raises(CatalogError, match=r"ADM/1\.0\.0 was built from other images .*10 ai"):
        build_all(tree, tmp_path / "tfds")


def test_a_file_that_vanishes_stops_the_build(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = shutil.copytree(root, tmp_path / "tree")
    scanned = catalog.scan(tree)
    monkeypatch.setattr(genimage.catalog, "scan", lambda _: scanned)
    (tree / CUT).unlink()
    with pytest.raises(FileNotFoundError, match=r"cut\.png"):
        genimage.build(tree, tmp_path / "tfds", ADM)
    with pytest.raises(CatalogError, match=r"ADM in .* is unfinished"):
        tfds_records.open_tfds(tmp_path / "tfds")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="epath would use its file systems"
)
def test_object_stores_get_the_same_shards(
    root: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Store(MemoryFileSystem):
        protocol = "s3"
        store: dict = {}  # noqa: RUF012
        pseudo_dirs: list = [""]  # noqa: RUF012

    fsspec.register_implementation("s3", Store, clobber=True)
    monkeypatch.setattr(genimage, "SHARD_BYTES", 20_000)
    folder = genimage.build(root, "s3://bucket/tfds", ADM)
    for local in sorted((data_dir / "gen_image" / ADM / "1.0.0").glob("*array_record*")):
        assert (folder / local.name).read_bytes() == local.read_bytes()
    with pytest.raises(CatalogError, match=r"array_record .*s3://bucket/tfds"):
        tfds_records.open_tfds("s3://bucket/tfds")


def test_the_command_builds_what_it_finds(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--manual-dir", str(root), "--data-dir", str(tmp_path)]
    assert genimage.main([*args, "--generator", OTHER]) == 0
    assert tfds_records.open_tfds(tmp_path)[0].generators == [OTHER]
    assert genimage.main(args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == lines[2] == f"{OTHER}/val 9 nature + 9 ai: {tmp_path}/gen_image/{OTHER}/1.0.0"
    )
    assert lines[1].startswith("ADM/train 10 nature + 10 ai; ADM/val 9 nature + 10 ai: ")


def test_every_process_writes_the_same_shards(root: Path, tmp_path: Path) -> None:
    genimage.build(root, tmp_path / "here", OTHER)
    command = [sys.executable, "-m", "cinemae_jax.data.genimage", "--generator", OTHER]
    options = ["--manual-dir", str(root), "--data-dir", str(tmp_path / "there")]
    subprocess.run([*command, *options], check=True, capture_output=True)
    here, there = files_of(tmp_path / "here"), files_of(tmp_path / "there")
    assert here.keys() == there.keys()
    for name in here:
        assert here[name][1] == there[name][1]


@pytest.mark.parametrize(
    ("manual_dir", "generator", "message"),
    [
        ("", "Nobody", r"generator Nobody not found .*ADM, my own v1\.5"),
        ("nowhere", ADM, "nowhere is not a folder"),
    ],
)
def test_the_command_explains_mistakes(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    manual_dir: str,
    generator: str,
    message: str,
) -> None:
    args = ["--manual-dir", str(root / manual_dir), "--data-dir", str(tmp_path)]
    assert genimage.main([*args, "--generator", generator]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    with pytest.raises(CatalogError, match=message):
        genimage.build(root / manual_dir, tmp_path, generator)


# --- damage -------------------------------------------------------------------------------------


def remove_shard(data_dir: Path) -> None:
    shards(data_dir)[1].unlink()


def cut_shard(data_dir: Path) -> None:
    os.truncate(shards(data_dir)[1], shards(data_dir)[1].stat().st_size // 2)


def remove_index(data_dir: Path) -> None:
    next(data_dir.glob(f"gen_image/{ADM}/*/{tfds_records.INDEX}")).unlink()


def remove_info(data_dir: Path) -> None:
    next(data_dir.glob(f"gen_image/{ADM}/*/dataset_info.json")).unlink()


def exchange_index(data_dir: Path) -> None:
    one, two = (next(data_dir.glob(f"gen_image/{g}/*/{tfds_records.INDEX}")) for g in (ADM, OTHER))
    shutil.copy(two, one)


def shorten_index(data_dir: Path) -> None:
    path = next(data_dir.glob(f"gen_image/{ADM}/*/{tfds_records.INDEX}"))
    pq.write_table(pq.read_table(path)[:-1], path)


def empty(data_dir: Path) -> None:
    shutil.rmtree(data_dir / "gen_image")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            remove_shard,
            r"ADM/1.0.0 lacks 1 shards, for example gen_image-train\.array_record-00001",
        ),
        (cut_shard, r"shards of train .* bytes instead of"),
        (remove_index, r"ADM in .* is unfinished .*catalog\.parquet"),
        (remove_info, r"ADM/1\.0\.0 .*TFDS.*dataset_info\.json"),
        (exchange_index, r"ADM/1\.0\.0 holds the catalog\.parquet of \['my own v1\.5'\]"),
        (shorten_index, r"catalog\.parquet and dataset_info\.json .*different builds"),
        (empty, r"no folder gen_image: .*python -m cinemae_jax\.data\.genimage"),
    ],
)
def test_an_incomplete_data_set_is_refused(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(CatalogError, match=message):
        tfds_records.open_tfds(copy, generators=[ADM])
    if damage is not empty:
        assert len(tfds_records.open_tfds(copy, generators=[OTHER])[0]) == 18


def evil_class(features: dict) -> None:
    features["width"]["pythonClassName"] = "planted.Evil"


def evil_nesting(features: dict) -> None:
    dictionary = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    nested = {"x": {"type": "planted.Evil", "content": {}}}
    features["x"] = {"pythonClassName": dictionary, "jsonFeature": {"json": json.dumps(nested)}}


def evil_spelling(features: dict) -> None:
    del features["width"]["pythonClassName"]
    features["width"]["python_class_name"] = "planted.Evil"


@pytest.mark.parametrize("plant", [evil_class, evil_nesting, evil_spelling])
def test_a_data_set_cannot_name_code_to_import(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[dict], None]
) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    path = next(copy.glob(f"gen_image/{ADM}/*/features.json"))
    stored = json.loads(path.read_text())
    plant(stored["featuresDict"]["features"])
    path.write_text(json.dumps(stored))
    with pytest.raises(CatalogError, match=r"features\.json"):
        tfds_records.open_tfds(copy, generators=[ADM])
    assert not (tmp_path / "ran").exists()


def test_shards_outside_the_folder_are_refused(copy: Path) -> None:
    path = next(copy.glob(f"gen_image/{ADM}/*/dataset_info.json"))
    stored = json.loads(path.read_text())
    for split in stored["splits"]:
        split["filepathTemplate"] = "../" + split["filepathTemplate"]
    path.write_text(json.dumps(stored))
    with pytest.raises(CatalogError, match="outside"):
        tfds_records.open_tfds(copy, generators=[ADM])


def test_a_generator_that_is_not_built_is_named(data_dir: Path) -> None:
    with pytest.raises(CatalogError, match=r"VQDM is not built .*: ADM, my own v1\.5"):
        tfds_records.open_tfds(data_dir, generators=["VQDM"])
    with pytest.raises(CatalogError, match=r"no images .*split 'train'"):
        tfds_records.open_tfds(data_dir, generators=[OTHER], split="train")


def test_a_damaged_record_is_one_unread_image(root: Path, copy: Path) -> None:
    shard = shards(copy)[0]
    data = bytearray(shard.read_bytes())
    victim = (root / ADM / INNER[ADM] / "train/ai/001.PNG").read_bytes()
    data[data.index(victim[:64]) + 500] ^= 1
    shard.write_bytes(data)
    found, images = tfds_records.open_tfds(copy)
    for row, path in enumerate(found.table["path"].to_pylist()):
        if path.endswith("train/ai/001.PNG"):
            with pytest.raises(OSError, match="hash mismatch"):
                images.read(row)
        else:
            assert images.read(row) == (root / path).read_bytes()


def test_shards_in_the_wrong_place_are_not_read(copy: Path) -> None:
    one, two = shards(copy)[:2]
    one.rename(copy / "kept")
    two.rename(one)
    (copy / "kept").rename(two)
    found, images = tfds_records.open_tfds(copy)
    train = [s.as_py() == "train" for s in found.table["split"]].index(True)
    with pytest.raises(CatalogError, match=r"train/ai/000\.PNG .*catalog\.parquet"):
        images.read(train)


def test_generators_of_different_roots_are_not_mixed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        folder = tmp_path / name / "train" / "ai"
        folder.mkdir(parents=True)
        (folder / "x.png").write_bytes(picture(rng, "PNG"))
        build_all(tmp_path / name, tmp_path / "tfds")
    with pytest.raises(CatalogError, match=r"share paths.*one.*two"):
        tfds_records.open_tfds(tmp_path / "tfds")
    assert len(tfds_records.open_tfds(tmp_path / "tfds", generators=["two"])[0]) == 1


def test_a_catalog_of_other_images_is_refused(root: Path, data_dir: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(root, tmp_path / "tree")
    (tree / NO_IMAGE).rename((tree / NO_IMAGE).with_name("renamed.png"))
    other, _ = tfds_records.open_tfds(build_all(tree, tmp_path / "tfds"))
    shutil.copytree(data_dir, tmp_path / "tfds", dirs_exist_ok=True)
    with pytest.raises(CatalogError, match=r"val/ai/renamed\.png is not in .*tfds"):
        tfds_records.from_catalog(other)
