import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cinemae_jax.data import catalog, lists, records
from cinemae_jax.data.catalog import CatalogError
from tests.helpers.trees import names, touch

pytestmark = pytest.mark.usefixtures("cache")


# --- layouts --------------------------------------------------------------------------------------


def test_genimage_layout_is_understood(data_set: Path) -> None:
    found = catalog.scan(data_set)
    assert found.generators == ["gen_a", "gen_b"]
    assert found.describe() == (
        "gen_a/train 24 nature + 24 ai; gen_a/val 7 nature + 7 ai; gen_b/val 7 nature + 7 ai"
    )


@pytest.mark.parametrize(
    ("paths", "lines"),
    [
        (
            ("biggan/1_fake/x.png", "biggan/0_real/y.png"),
            (
                "biggan/val nature: 1 image from biggan/0_real (no split folder: val)",
                "biggan/val ai: 1 image from biggan/1_fake (no split folder: val)",
            ),
        ),
        (
            ("train/ai/x.png", "test/nature/y.png"),
            (
                "root/train ai: 1 image from train/ai (generator: name of the root)",
                "root/val nature: 1 image from test/nature (generator: name of the root)",
            ),
        ),
        (
            ("progan/train/cat/1_fake/x.png", "progan/train/dog/1_fake/a/b/y.png"),
            (
                "progan/train ai: 2 images from progan/train/*/1_fake (1 image), "
                "progan/train/*/1_fake/** (1 image)",
            ),
        ),
        (
            ("ADM/imagenet_ai_0508_adm/val/ai/x.PNG", "ADM/odd/inner/val/ai/x.PNG"),
            ("ADM/val ai: 2 images from ADM/*/*/val/ai (1 image), ADM/*/val/ai (1 image)",),
        ),
    ],
)
def test_explain_names_the_source_of_every_label(
    tmp_path: Path, paths: tuple[str, ...], lines: tuple[str, ...]
) -> None:
    found = catalog.scan(touch(tmp_path / "root", *paths))
    assert found.explain().splitlines() == list(lines)


def test_the_root_may_name_the_split(tmp_path: Path) -> None:
    found = catalog.scan(touch(tmp_path / "train", "gen/ai/x.png"))
    assert found.describe() == "gen/train 0 nature + 1 ai"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "no images .*left out: nothing.*expected <generator>"),
        (("g/i/val/ai/readme.txt",), r"no images .*left out: 1 extension \.txt"),
        (("g/i/val/photos/x.png",), r"1 of 1 .*class folder.*x\.png"),
        (("g/ai/x.png", "y.png"), r"1 of 2 .* y\.png; found: \. \(1 image\); expected"),
        (("g/ai/x.png", "g/nature/ai/y.png"), r"two class folders .*ai and nature"),
        (("train/train/0_real/x.png",), r"two split folders .*train and train"),
        (("g/ai/train/x.png",), r"split folder \(train\) below the class folder"),
        (
            ("g/a/val/ai/x.png", "g/b/val/0_real/y.png"),
            r"generator g .* two conventions .*0_real, ai.*g/\*/val/0_real .*g/\*/val/ai",
        ),
        (("g/val/ai/x.png", "g/test/ai/y.png"), "generator g .* both val and test"),
        (("g/val/ai/x.png", "g/nature/y.png"), "generator g .* inside and outside val"),
    ],
)
def test_an_unusable_root_says_what_was_found(
    tmp_path: Path, paths: tuple[str, ...], message: str
) -> None:
    touch(tmp_path, *paths)
    with pytest.raises(CatalogError, match=message):
        catalog.scan(tmp_path)


@pytest.mark.parametrize(
    ("nature", "ai"),
    [("real", "fake"), ("REAL", "FAKE"), ("Nature", "AI"), ("natural", "ai"), ("0", "1")],
)
def test_class_folders_of_public_benchmarks(nature: str, ai: str, tmp_path: Path) -> None:
    paths = [f"{split}/{folder}/a.png" for folder in (nature, ai) for split in ("train", "test")]
    touch(tmp_path / "set", *paths)
    found = catalog.scan(tmp_path / "set", cache=False)
    labels = dict(zip(found.table["path"].to_pylist(), found.labels.tolist(), strict=True))
    assert labels == {
        f"{split}/{folder}/a.png": int(folder == ai)
        for folder in (nature, ai)
        for split in ("train", "test")
    }


def test_folders_inside_a_class_folder_may_have_any_name(tmp_path: Path) -> None:
    paths = "nature/1/a.png", "nature/fake/b.png", "ai/0/c.png", "ai/real/d.png"
    touch(tmp_path / "set", *paths)
    found = catalog.scan(tmp_path / "set", cache=False)
    assert dict(zip(found.table["path"].to_pylist(), found.labels.tolist(), strict=True)) == {
        "ai/0/c.png": 1,
        "ai/real/d.png": 1,
        "nature/1/a.png": 0,
        "nature/fake/b.png": 0,
    }


def test_a_folder_of_array_records_says_how_to_read_it(tmp_path: Path) -> None:
    touch(tmp_path, "gen_image/ADM/1.0.0/gen_image-train.array_record-00000-of-00001")
    with pytest.raises(CatalogError, match=r"data\.source=tfds"):
        catalog.scan(tmp_path, cache=False)


def test_generators_may_follow_different_conventions(tmp_path: Path) -> None:
    found = catalog.scan(touch(tmp_path, "a/val/ai/x.png", "b/0_real/y.png"))
    assert found.describe() == "a/val 0 nature + 1 ai; b/val 1 nature + 0 ai"


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="nowhere is not a folder"):
        catalog.scan(tmp_path / "nowhere")


def test_one_folder_per_class_gives_the_labels(tmp_path: Path) -> None:
    touch(tmp_path, "my photos/a.jpg", "my photos/more/b.jpg", "x/sd3/a.jpg")
    found = catalog.class_folders(nature=tmp_path / "my photos", ai=tmp_path / "x/sd3")
    assert found.describe() == "sd3/val 2 nature + 1 ai"
    assert f"ai: 1 image from {tmp_path}/x/sd3/**" in found.explain()
    assert all((found.root / path).is_file() for path in names(found))
    layout = touch(tmp_path / "same", "nature/a.jpg", "nature/more/b.jpg", "ai/a.jpg")
    same = catalog.scan(layout).table["example_id"].to_pylist()
    assert sorted(found.table["example_id"].to_pylist()) == sorted(same)


@pytest.mark.parametrize(
    ("nature", "ai", "message"),
    [
        ("p", "p/q", "overlap"),
        ("p", "nowhere", "nowhere is not a folder"),
        ("p", "empty", "no images .*empty"),
        ("p", "g", r"contains class folders.*g/val/ai/x\.jpg"),
    ],
)
def test_unusable_class_folders_are_refused(
    tmp_path: Path, nature: str, ai: str, message: str
) -> None:
    touch(tmp_path, "p/a.jpg", "p/q/b.jpg", "g/val/ai/x.jpg", "empty/notes.txt")
    with pytest.raises(CatalogError, match=message):
        catalog.class_folders(nature=tmp_path / nature, ai=tmp_path / ai)


def test_a_root_may_be_two_folders_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(
        tmp_path, "a, b/train/1.jpg", "a, b/test/x/1.jpg", "fakes/train/1.jpg", "fakes/test/1.png"
    )
    monkeypatch.chdir(tmp_path)
    found = catalog.scan("nature=a, b,ai=fakes")
    assert found.describe() == "fakes/train 1 nature + 1 ai; fakes/val 1 nature + 1 ai"
    named = catalog.scan(f"generator=sd, 3,ai={tmp_path}/fakes/,nature=a, b/")
    assert named.generators == ["sd, 3"]
    assert named.fingerprint == found.fingerprint
    assert all((found.root / path).is_file() for path in names(found))


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("nature=p", "nature=DIR,ai=DIR"),
        ("ai=p,ai=q,nature=r", "one folder per class"),
        ("nature=p,ai=half", "half has images inside and outside train"),
        ("nature=p,ai=both", "both has both val and test"),
        ("nature=p,ai=", "one folder per class"),
        ("nature=p,ai=nowhere", "nowhere is not a folder"),
        ("nowhere", "nature=DIR,ai=DIR"),
    ],
)
def test_unusable_pairs_of_folders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str, message: str
) -> None:
    touch(tmp_path, "p/a.jpg", "q/a.jpg", "r/a.jpg", "half/a.jpg", "half/train/b.jpg")
    touch(tmp_path, "both/val/a.jpg", "both/test/b.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CatalogError, match=message):
        catalog.scan(root)


def test_photographs_of_several_folders_are_one_catalog(tmp_path: Path) -> None:
    touch(tmp_path, "p/b.jpg", "p/a/c.jpg", "q/d.jpg", "q/notes.txt")
    found = catalog.photographs([tmp_path / "q", tmp_path / "p"])
    assert names(found) == [f"{tmp_path}/{x}" for x in ("q/d.jpg", "p/a/c.jpg", "p/b.jpg")]
    assert found.table["example_id"].to_pylist() == [
        records.example_id(x) for x in ("q/d.jpg", "p/a/c.jpg", "p/b.jpg")
    ]
    assert found.describe() == "p/train 2 nature + 0 ai; q/train 1 nature + 0 ai"
    assert found.skipped == {"extension .txt": 1}
    with pytest.raises(CatalogError, match="no folder of photographs"):
        catalog.photographs([])


# --- catalog --------------------------------------------------------------------------------------


def test_example_ids_are_those_of_the_first_release() -> None:
    """Saved detectors and banks identify their images by them."""
    assert records.example_id("gen_a/imagenet_ai_test/val/ai/000.png") == 5279304865203090562
    paths = ["a", "é/写.png", "x" * 300]
    assert records.example_ids(paths).tolist() == [records.example_id(p) for p in paths]


def test_ids_depend_only_on_the_relative_path(tmp_path: Path) -> None:
    touch(tmp_path / "here", "g/i/val/ai/x.png")
    touch(tmp_path / "there", "g/i/val/ai/x.png", "g/i/val/ai/a.png")
    one = catalog.scan(tmp_path / "here").table.to_pylist()
    two = catalog.scan(tmp_path / "there").table.to_pylist()
    assert one[0]["example_id"] == two[1]["example_id"] != two[0]["example_id"]


def test_an_unknown_generator_lists_the_known_ones(data_set: Path) -> None:
    with pytest.raises(CatalogError, match=r"gen_c not found .*gen_a, gen_b"):
        catalog.scan(data_set).select(generators=["gen_c"])
    with pytest.raises(CatalogError, match=r"no images .*gen_b/val 7 nature"):
        catalog.scan(data_set).select(generators=["gen_b"], split="train")


def test_explain_covers_only_the_selection(tree: Path) -> None:
    found = catalog.scan(tree).select(generators=["b"], split="val")
    assert found.generators == ["b"]
    assert found.explain().splitlines() == [
        "b/val nature: 3 images from b/*/val/nature",
        "b/val ai: 3 images from b/*/val/ai",
    ]


def test_the_fingerprint_is_that_of_the_first_release(tree: Path) -> None:
    """A checkpoint uses it to check that a run resumes on the same images."""
    found = catalog.scan(tree)
    digest = hashlib.sha256()
    for row in found.table.to_pylist():
        digest.update(b"%d,%d;" % (row["example_id"], row["label"]))
    assert found.fingerprint == digest.hexdigest()
    assert found.select(split="val").fingerprint != found.fingerprint


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
        "example_id": [records.example_id(str(i)) for i in range(count)],
    }
    table = pa.table(rows, schema=records.SCHEMA)
    rest, held = catalog.Catalog(Path(), table, {}).hold_out(fraction)
    names = held.table["path"].to_pylist()
    assert sorted(rest.table["path"].to_pylist() + names) == sorted(rows["path"])
    assert (held.labels == 1).sum() == round(fraction * 10)
    assert (held.labels == 0).sum() == round(fraction * 30)
    order = np.random.default_rng(seed).permutation(count)
    shuffled = catalog.Catalog(Path(), table.take(pa.array(order)), {})
    assert sorted(shuffled.hold_out(fraction)[1].table["path"].to_pylist()) == sorted(names)


# --- quarantine -----------------------------------------------------------------------------------


def test_quarantined_images_are_left_out_and_counted(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "quarantine.csv"
    file.write_text("path,reason\na/i/val/ai/1.png,empty\nb/i/train/nature/0.png,torn\ngone.png,\n")
    whole = catalog.scan(tree)
    paths = lists.read_quarantine(file)
    found = whole.without(paths)
    assert sorted(set(names(whole)) - set(names(found))) == paths[:2]
    assert len(found) == len(whole) - 2
    assert found.skipped == {"extension .txt": 1, "quarantined": 2}
    again = found.without(paths).without(["b/i/val/ai/1.png"])
    assert again.skipped["quarantined"] == 3
    assert whole.without([]).skipped == whole.skipped


@pytest.mark.parametrize("content", [b"path\nx.png\n", b"file,reason\nx.png,empty\n"])
def test_a_quarantine_without_its_columns_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "quarantine.csv"
    file.write_bytes(content)
    with pytest.raises(CatalogError, match=r"quarantine\.csv has no column (path|reason)"):
        lists.read_quarantine(file)


def test_a_quarantine_that_leaves_nothing_out_is_refused(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "quarantine.csv"
    whole = catalog.scan(tree)
    file.write_text("path,reason\na/i/val/ai/0.png,gone\nb/i/val/ai/1.png,gone\n")
    assert whole.without_listed(file).table.equals(whole.without(lists.read_quarantine(file)).table)
    assert not caplog.text
    file.write_text("path,reason\na/i/val/ai/0.png,gone\nx/deleted.png,gone\n")
    assert whole.without_listed(file).skipped["quarantined"] == 1
    assert f"1 of 2 images in {file}" in caplog.text
    assert "x/deleted.png" in caplog.text
    part = catalog.scan(tree / "a")
    with pytest.raises(CatalogError, match=r"none of the 2 .*quarantine\.csv.*a/i/val/ai/0\.png"):
        part.without_listed(file)
    file.write_text("path,reason\n")
    assert whole.without_listed(file).table.equals(whole.table)
