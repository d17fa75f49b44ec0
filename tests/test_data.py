import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cinemae_jax.data import catalog, decode, loader
from cinemae_jax.data.bad import BadImages, count_by_class
from cinemae_jax.data.catalog import CatalogError

from .conftest import write_data_set


def encoded(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int = 40, width: int = 60) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 4, rows + columns], -1).astype(np.uint8)


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encoded(gradient()))
    return root


# --- catalog ------------------------------------------------------------------------------------


def test_genimage_layout_is_understood(data_set: Path) -> None:
    found = catalog.scan(data_set)
    assert found.generators == ["gen_a", "gen_b"]
    assert found.describe() == (
        "gen_a/train 24 nature + 24 ai; gen_a/val 7 nature + 7 ai; gen_b/val 7 nature + 7 ai"
    )


def test_plainer_layouts_are_understood(tmp_path: Path) -> None:
    make(tmp_path / "a", "biggan/1_fake/x.png", "biggan/0_real/y.png")
    found = catalog.scan(tmp_path / "a")
    assert found.describe() == "biggan/val 1 nature + 1 ai"
    make(tmp_path / "b", "train/ai/x.png", "train/nature/y.png")
    assert catalog.scan(tmp_path / "b").describe() == "b/train 1 nature + 1 ai"
    make(tmp_path / "c", "progan/train/cat/1_fake/x.png", "progan/train/cat/0_real/y.png")
    assert catalog.scan(tmp_path / "c").describe() == "progan/train 1 nature + 1 ai"


def test_names_of_every_kind_are_found(tmp_path: Path) -> None:
    names = ["A.PNG", "b.JPEG", "with spaces.jpg", "ünï写.webp", "a.b.c.v1.2.png", "-dash.jpg"]
    make(tmp_path, *(f"g/i/val/ai/{n}" for n in names), "g/i/val/ai/notes.txt", "g/i/val/.hid.png")
    found = catalog.scan(tmp_path)
    assert {Path(p).name for p in found.table["path"].to_pylist()} == set(names)
    assert found.skipped == {"extension .txt": 1, "hidden file or folder": 1}


def test_ids_depend_on_the_relative_path_alone(tmp_path: Path) -> None:
    make(tmp_path / "here", "g/i/val/ai/x.png")
    make(tmp_path / "there", "g/i/val/ai/x.png", "g/i/val/ai/a.png")
    one = catalog.scan(tmp_path / "here").table.to_pylist()
    two = catalog.scan(tmp_path / "there").table.to_pylist()
    assert one[0]["example_id"] == two[1]["example_id"] != two[0]["example_id"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "no images under"),
        (("g/i/val/ai/readme.txt",), "no images under"),
        (("g/i/val/real/x.png",), r"1 of 1 images .* in no class folder .*x.png"),
    ],
)
def test_unusable_roots_say_what_was_found(
    tmp_path: Path, paths: tuple[str, ...], message: str
) -> None:
    make(tmp_path, *paths)
    with pytest.raises(CatalogError, match=message):
        catalog.scan(tmp_path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="nowhere is not a folder"):
        catalog.scan(tmp_path / "nowhere")


def test_an_unknown_generator_lists_the_known_ones(data_set: Path) -> None:
    with pytest.raises(CatalogError, match=r"gen_c not found .* there are: gen_a, gen_b"):
        catalog.scan(data_set).select(generators=["gen_c"])
    with pytest.raises(CatalogError, match=r"no images .*gen_b/val 7 nature"):
        catalog.scan(data_set).select(generators=["gen_b"], split="train")


@given(st.floats(0, 1), st.integers(0, 2**32))
def test_hold_out_takes_its_share_of_each_class_and_loses_nothing(
    fraction: float, seed: int
) -> None:
    count = 40
    rows = {
        "path": [str(i) for i in range(count)],
        "label": [int(i % 4 == 0) for i in range(count)],
        "generator": ["g"] * count,
        "split": ["train"] * count,
        "example_id": [catalog.example_id(str(i)) for i in range(count)],
    }
    table = pa.table(rows, schema=catalog.SCHEMA)
    rest, held = catalog.Catalog(Path(), table, {}).hold_out(fraction)
    names = held.table["path"].to_pylist()
    assert sorted(rest.table["path"].to_pylist() + names) == sorted(rows["path"])
    assert (held.labels == 1).sum() == round(fraction * 10)
    assert (held.labels == 0).sum() == round(fraction * 30)
    order = np.random.default_rng(seed).permutation(count)
    shuffled = catalog.Catalog(Path(), table.take(pa.array(order)), {})
    assert sorted(shuffled.hold_out(fraction)[1].table["path"].to_pylist()) == sorted(names)


# --- decode -------------------------------------------------------------------------------------


def test_every_mode_becomes_rgb() -> None:
    grey = gradient()[..., 0]
    for data in (
        encoded(grey),
        encoded(grey, "JPEG"),
        encoded(np.dstack([gradient(), np.full((40, 60), 255, np.uint8)])),
    ):
        assert decode.decode(data).mode == "RGB"
    buffer = io.BytesIO()
    Image.fromarray(gradient()).convert("CMYK").save(buffer, "JPEG")
    assert decode.decode(buffer.getvalue()).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    array = np.asarray(decode.decode(encoded(deep)))
    np.testing.assert_array_equal(array[..., 0], np.round(deep / 257).astype(np.uint8))


def test_transparency_is_laid_over_white() -> None:
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[:10, :, 3] = 255
    array = np.asarray(decode.decode(encoded(pixels)))
    assert (array[:10] == 0).all()
    assert (array[10:] == 255).all()


def test_exif_orientation_is_applied() -> None:
    image, buffer = Image.fromarray(gradient()), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif)
    assert decode.decode(buffer.getvalue()).size == (40, 60)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, this is text", "not an image"),
        (encoded(noise())[:2000], "damaged image"),
        (encoded(gradient(200, 300), "JPEG")[:2000], "damaged image"),
        (encoded(gradient(8, 8)), "too small: 8 x 8"),
        (encoded(gradient(3, 500)), "too small: 500 x 3"),
        (encoded(gradient(16, 600)), "too narrow: 600 x 16"),
    ],
)
def test_bad_bytes_give_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(decode.DecodeError, match=reason):
        decode.decode(data)


def test_giant_images_are_refused_before_decoding() -> None:
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    with pytest.raises(decode.DecodeError, match="too large"):
        decode.decode(buffer.getvalue())


def test_the_standard_crop_is_resize_then_centre() -> None:
    data = encoded(gradient(100, 160))
    array = decode.Crop(28, resize=32)(data, np.random.default_rng(0))
    resized = np.asarray(Image.fromarray(gradient(100, 160)).resize((51, 32), 3))
    np.testing.assert_array_equal(array, resized[2:30, 12:40])


def test_native_crops_keep_pixels_and_reflect_small_images() -> None:
    rng = np.random.default_rng(0)
    pixels = gradient(40, 60)
    array = decode.Crop(20, resize=0)(encoded(pixels), rng)
    np.testing.assert_array_equal(array, pixels[10:30, 20:40])
    padded = decode.Crop(48, resize=0)(encoded(pixels), rng)
    np.testing.assert_array_equal(padded[4:44], pixels[:, 6:54])
    np.testing.assert_array_equal(padded[:4], pixels[3::-1, 6:54])


@given(
    st.integers(16, 90), st.integers(16, 90), st.sampled_from([0, 32, 50]), st.integers(0, 2**32)
)
def test_random_crops_have_the_size_asked_for_and_follow_their_seed(
    height: int, width: int, resize: int, seed: int
) -> None:
    data = encoded(gradient(height, width))
    for transform in (
        decode.Crop(28, resize=resize, random=True, flip=True),
        decode.RandomResizedCrop(28),
    ):
        one, two = (transform(data, np.random.default_rng(seed)) for _ in range(2))
        assert one.shape == (28, 28, 3)
        assert one.dtype == np.uint8
        np.testing.assert_array_equal(one, two)


def test_random_crops_cover_the_image() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[..., 0] = np.arange(40)
    crop = decode.Crop(30, resize=0, random=True)
    rng = np.random.default_rng(0)
    assert {int(crop(encoded(pixels), rng)[0, 0, 0]) for _ in range(200)} == set(range(11))


# --- loader -------------------------------------------------------------------------------------

CROP = decode.Crop(32, resize=32)


def train_stream(images: loader.Images, **options: object) -> list[loader.Batch]:
    settings = {"size": 32, "batch_size": 10, "epochs": 2, "seed": 3} | options
    return list(loader.train_batches(images, CROP, **settings))


@pytest.fixture(scope="module")
def train_images(data_set: Path) -> loader.Images:
    return loader.from_catalog(catalog.scan(data_set).select(split="train"))


def test_training_meets_every_image_once_an_epoch(train_images: loader.Images) -> None:
    batches = train_stream(train_images, batch_size=16)
    assert len(batches) == loader.num_steps(48, 2, 16) == 6
    for epoch in (0, 1):
        rows = np.concatenate([b["row"][b["epoch"] == epoch] for b in batches])
        assert sorted(rows) == list(range(48))
    assert (batches[0]["row"] != batches[3]["row"]).any()  # another order each epoch


def test_epochs_follow_without_a_gap(train_images: loader.Images) -> None:
    batches = train_stream(train_images)
    assert len(batches) == 9  # 96 images in tens
    assert set(batches[4]["epoch"]) == {0, 1}


def test_a_stream_started_later_is_its_own_tail(train_images: loader.Images) -> None:
    whole, tail = train_stream(train_images), train_stream(train_images, start_step=4)
    assert len(tail) == 5
    for one, two in zip(whole[4:], tail, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


def test_two_hosts_read_the_interleaved_halves_of_one(train_images: loader.Images) -> None:
    whole = train_stream(train_images)
    halves = [train_stream(train_images, host=loader.Host(i, 2)) for i in (0, 1)]
    for step, batch in enumerate(whole):
        for i in (0, 1):
            np.testing.assert_array_equal(batch["row"][i::2], halves[i][step]["row"])
            np.testing.assert_array_equal(batch["image"][i::2], halves[i][step]["image"])


@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_meets_every_image_once_and_pads(
    train_images: loader.Images, hosts: int
) -> None:
    rows = []
    for i in range(hosts):
        batches = list(
            loader.eval_batches(
                train_images, CROP, size=32, batch_size=10, host=loader.Host(i, hosts)
            )
        )
        assert len(batches) == 5  # as many on every host
        rows += [b["row"][b["valid"]] for b in batches]
        assert all(len(b["row"]) == 10 // hosts for b in batches)
    assert sorted(np.concatenate(rows)) == list(range(48))


def test_a_corrupt_file_becomes_an_example_that_says_why(tmp_path: Path) -> None:
    root = write_data_set(tmp_path, train=4, val=1)
    bad = root / "gen_a/imagenet_ai_test/train/ai/001.png"
    bad.write_bytes(bad.read_bytes()[:200])
    gone = root / "gen_a/imagenet_ai_test/train/nature/002.png"
    images = catalog.scan(root).select(split="train")
    gone.unlink()
    path = tmp_path / "bad_images.csv"
    noted = BadImages(path)
    for batch in train_stream(loader.from_catalog(images), batch_size=8):
        assert len(batch["row"]) == 8
        assert batch["valid"].sum() == 6
        assert not batch["image"][~batch["valid"]].any()
        noted.note(images, batch)
    listed = noted.listed
    assert [(b.path.split("/")[-2:], b.label) for b in listed] == [
        (["ai", "001.png"], "ai"),
        (["nature", "002.png"], "nature"),
    ]
    assert "damaged image" in listed[0].error
    assert "No such file" in listed[1].error
    assert count_by_class(listed) == {"nature": 1, "ai": 1}
    assert BadImages(path).listed == listed  # what another process would find
    assert noted.of(images) == listed
    assert noted.of(images.hold_out(1.0)[0]) == []
    noted.forget(images)
    assert not path.exists()


def test_batches_that_cannot_be_formed_are_refused(train_images: loader.Images) -> None:
    with pytest.raises(ValueError, match="no step would be taken"):
        loader.num_steps(10, 2, 21)
    with pytest.raises(ValueError, match="not divisible by 3 hosts"):
        train_stream(train_images, host=loader.Host(0, 3))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_files_are_reported(tmp_path: Path) -> None:
    root = write_data_set(tmp_path, train=1, val=1)
    for path in root.rglob("*.png"):
        path.chmod(0)
    images = loader.from_catalog(catalog.scan(root))
    batch = next(loader.eval_batches(images, CROP, size=32, batch_size=6))
    assert not batch["valid"].any()
    assert all("Permission denied" in e for e in batch["error"])
