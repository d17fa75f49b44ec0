"""The bundled demonstration images match their manifest and attribution.

File format and metadata must not tell the classes apart, nothing may leak from train to val, and
every licence must allow redistribution.
"""

import csv
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import JpegImagePlugin

DEMO = Path(__file__).parents[1] / "cinemae_jax" / "assets" / "demo"
LICENCES = {
    "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "MIT", "public domain",
}  # fmt: skip
CHROMA_420 = 2  # Pillow's code
Rows = list[dict[str, str]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    with (DEMO / "manifest.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def attribution() -> dict[str, list[str]]:
    """The cells of each image's line in ATTRIBUTION.md, by its shortened path."""
    text = (DEMO / "ATTRIBUTION.md").read_text(encoding="utf-8")
    lines = [line[2:-2] for line in text.splitlines() if line.startswith("| `")]
    tables = [[cell.replace("\\|", "|") for cell in line.split(" | ")] for line in lines]
    assert len({cells[0] for cells in tables}) == len(tables)
    return {cells[0].strip("`"): cells for cells in tables}


def short_path(row: dict[str, str]) -> str:
    generator, _, *rest = row["path"].split("/")
    return "/".join([generator, "...", *rest])


def repeated(values: Sequence[object]) -> list[object]:
    return [value for value, count in Counter(values).items() if count > 1]


def test_manifest_and_folder_list_the_same_files(rows: Rows) -> None:
    files = {path.relative_to(DEMO).as_posix() for path in DEMO.rglob("*") if path.is_file()}
    paths = [row["path"] for row in rows]
    assert not repeated(paths)
    assert files == {*paths, "manifest.csv", "ATTRIBUTION.md"}


def test_paths_give_generator_split_and_label(rows: Rows) -> None:
    for row in rows:
        folder = Path(row["path"]).parent.as_posix()
        assert folder == f"{row['generator']}/imagenet_ai_demo/{row['split']}/{row['label']}"


def test_every_image_has_the_hash_of_the_manifest(rows: Rows) -> None:
    digests = {
        row["path"]: hashlib.sha256((DEMO / row["path"]).read_bytes()).hexdigest() for row in rows
    }
    assert digests == {row["path"]: row["sha256"] for row in rows}
    assert not repeated(list(digests.values()))


def test_encoding_does_not_tell_the_classes_apart(rows: Rows) -> None:
    encodings = defaultdict(set)
    for row in rows:
        with JpegImagePlugin.JpegImageFile(DEMO / row["path"]) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (256, 256)), row
            assert JpegImagePlugin.get_sampling(image) == CHROMA_420, row
            tables = tuple((key, tuple(table)) for key, table in image.quantization.items())
            # The only segment besides the pixels is the JFIF header, which every encoder writes.
            assert [name for name, _ in image.applist] == ["APP0"], row
            encodings[row["label"]].add((tables, tuple(sorted(image.info.items()))))
        assert (DEMO / row["path"]).read_bytes().endswith(b"\xff\xd9"), row
    assert encodings.keys() == {"ai", "nature"}
    assert len(encodings["ai"]) == 1
    assert encodings["ai"] == encodings["nature"]


def test_classes_have_equal_counts(rows: Rows) -> None:
    counts = Counter((row["generator"], row["split"], row["label"]) for row in rows)
    for generator, split in {key[:2] for key in counts}:
        assert counts[generator, split, "ai"] == counts[generator, split, "nature"]
    assert {label for _, _, label in counts} == {"ai", "nature"}


def test_only_stable_diffusion_is_trained_on(rows: Rows) -> None:
    assert {row["generator"] for row in rows if row["split"] == "train"} == {"stable_diffusion"}
    evaluated = {row["generator"] for row in rows if row["split"] == "val"}
    assert evaluated == {row["generator"] for row in rows}
    assert {row["split"] for row in rows} == {"train", "val"}


def test_no_source_is_used_twice(rows: Rows) -> None:
    assert not repeated([(row["package"], row["member"]) for row in rows])


def test_no_photographer_is_in_both_splits(rows: Rows) -> None:
    splits = defaultdict(set)
    for row in rows:
        if row["label"] == "nature":
            assert row["author"], row
            splits[row["author"].casefold()].add(row["split"])
    assert [author for author, found in splits.items() if len(found) > 1] == []


def test_ai_images_name_model_and_condition(rows: Rows) -> None:
    edits = re.compile(r"i2i|image2image|(in|out)paint|_edit|kontext", re.IGNORECASE)
    for row in rows:
        assert bool(row["condition"]) == bool(row["model"]) == (row["label"] == "ai"), row
        assert not edits.search(row["member"].rpartition("/")[2]), row


def test_licences_allow_redistribution(rows: Rows) -> None:
    assert {row["licence"] for row in rows} <= LICENCES


def test_every_image_is_credited_with_its_licence(
    rows: Rows, attribution: dict[str, list[str]]
) -> None:
    assert attribution.keys() == {short_path(row) for row in rows}
    for row in rows:
        cells = attribution[short_path(row)]
        licence = re.sub(r"^\[(.*)\]\(https://creativecommons\.org/.*\)$", r"\1", cells[-2])
        assert licence == row["licence"], row
        assert row["author"] in cells, row
        assert cells[-1] == row["package"], row
        assert row["condition"] in cells or row["label"] == "nature", row


def test_the_set_is_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 10e6
