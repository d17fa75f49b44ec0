from pathlib import Path

import pytest

from cinemae_jax.data import catalog, collection, genimage
from cinemae_jax.data.catalog import CatalogError
from tests.helpers.trees import names


@pytest.fixture(scope="module")
def built(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set as a TFDS data set."""
    data_dir = tmp_path_factory.mktemp("tfds")
    for generator in catalog.scan(data_set).generators:
        genimage.build(data_set, data_dir, generator)
    return data_dir


def test_a_folder_and_its_tfds_build_are_the_same_collection(data_set: Path, built: Path) -> None:
    folder = collection.scan(data_set, source="folder")
    tfds = collection.scan(built, source="tfds")
    assert folder.fingerprint == tfds.fingerprint == catalog.scan(data_set).fingerprint
    part = folder.select(split="val"), tfds.select(split="val")
    files, records = (
        collection.open_images(some, source=source)
        for some, source in zip(part, ("folder", "tfds"), strict=True)
    )
    assert len(files) == len(records) == 28
    for row, path in enumerate(names(part[0])):
        assert files.read(row) == records.read(row) == (data_set / path).read_bytes()


@pytest.mark.parametrize("source", ["folder", "tfds"])
def test_quarantined_images_are_left_out(
    data_set: Path, built: Path, tmp_path: Path, source: collection.Source
) -> None:
    root = built if source == "tfds" else data_set
    whole = collection.scan(root, source=source)
    file = tmp_path / "quarantine.csv"
    file.write_text(f"path,reason\n{names(whole)[3]},empty file\n")
    kept = collection.scan(root, source=source, quarantine=file)
    assert names(kept) == [path for path in names(whole) if path != names(whole)[3]]
    assert kept.skipped["quarantined"] == 1
    file.write_text("path,reason\nelsewhere.png,empty file\n")
    with pytest.raises(CatalogError, match=r"elsewhere\.png"):
        collection.scan(root, source=source, quarantine=file)


def test_a_folder_is_not_mistaken_for_a_tfds_build(data_set: Path) -> None:
    with pytest.raises(CatalogError, match="gen_image"):
        collection.scan(data_set, source="tfds")
