from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from cinemae_jax.data import catalog, records
from cinemae_jax.data.catalog import CatalogError
from tests.helpers.trees import names, touch

ROWS = {
    "path": ["b/x.png", "./a//y, z.png", "c/../d/w.png", "../photos/v.jpg"],
    "label": ["fake", "0", "ai", "nature"],
    "generator": ["sd", "sd", "adm", "adm"],
    "split": ["train", "train", "test", "val"],
    "note": ["1", "", "x", "y"],
}


def write_list(file: Path, columns: dict[str, list], *, exist: bool = True) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if file.suffix.lower() == ".parquet":
        pq.write_table(table, file)
    else:
        pyarrow.csv.write_csv(table, file)
    if exist:
        for path in columns.get("path", []):
            (file.parent / path).parent.mkdir(parents=True, exist_ok=True)
            (file.parent / path).touch()
    return file


@pytest.mark.parametrize("name", ["my list.csv", "set.PARQUET"])
def test_a_list_is_read(tmp_path: Path, name: str) -> None:
    file = tmp_path / "lists" / name
    inside = str(tmp_path / "lists/e/u.png")
    outside = str(tmp_path / "far/t.png")
    rows = {k: [*v, *w] for (k, v), w in zip(
        ROWS.items(),
        ([inside, outside], ["1", "real"], ["adm", "adm"], ["train", "train"], ["", ""]),
        strict=True,
    )}  # fmt: skip
    (tmp_path / "lists/c").mkdir(parents=True)
    found = catalog.scan(write_list(file, rows))
    assert found.root == tmp_path / "lists"
    expected = ["../photos/v.jpg", outside, "a/y, z.png", "b/x.png", "d/w.png", "e/u.png"]
    assert names(found) == expected
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.describe() == (
        "adm/train 1 nature + 1 ai; adm/val 1 nature + 1 ai; sd/train 1 nature + 1 ai"
    )
    assert found.table["example_id"].to_pylist() == [records.example_id(p) for p in expected]
    assert f"sd/train ai: 1 image from {name}, label 1 or ai or fake" in found.explain()
    assert found.table.schema == records.SCHEMA


def test_a_list_may_name_the_held_out_images(tmp_path: Path) -> None:
    """They replace the share of the training images."""
    columns = {**ROWS, "split": ["train", "train", "held_out", "held_out"]}
    assert catalog.scan(write_list(tmp_path / "mine.csv", columns)).splits == {"train", "held_out"}


def test_generator_and_split_of_a_list_have_defaults(tmp_path: Path) -> None:
    file = write_list(tmp_path / "mine.csv", {"path": ["x.png", "y.png"], "label": [0, 1]})
    found = catalog.scan(file)
    assert found.describe() == "mine/val 1 nature + 1 ai"
    assert found.explain().splitlines()[1] == (
        "mine/val ai: 1 image from mine.csv, label 1; no generator column: name of the list; "
        "no split column: val"
    )


@pytest.mark.parametrize("labels", [pa.array([0, 1], pa.int64()), pa.array([0.0, 1.0]),
                                    pa.array(["real", "fake"]).dictionary_encode()])  # fmt: skip
def test_labels_of_a_parquet_list_may_have_any_type(tmp_path: Path, labels: pa.Array) -> None:
    file = write_list(tmp_path / "mine.parquet", {"path": ["x.png", "y.png"], "label": labels})
    assert catalog.scan(file).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, r"no column label \(its columns: path, generator, split, note\)"),
        ({"path": None, "label": None}, "no column path, label "),
        ({"label": ["1", "cat", "", "0"]}, r"row 3, column label: 'cat' .*nature.*\(2 such rows"),
        ({"split": ["train", "dev", "val", "val"]}, "row 3, column split: 'dev' .*train"),
        ({"generator": ["a", "a", "a", ""]}, "row 5, column generator: '' is empty"),
        ({"path": ["x", "", "y", "z"]}, "row 3, column path: '' is empty"),
        ({"path": ["x", "y", "b/../x", "z"]}, "row 4, column path: 'x' repeats row 2"),
    ],
)  # fmt: skip
def test_mistakes_in_a_list_name_row_and_column(
    tmp_path: Path, change: dict[str, list | None], message: str
) -> None:
    columns = {k: v for k, v in (ROWS | change).items() if v is not None}
    file = write_list(tmp_path / "some.csv", columns, exist=False)
    with pytest.raises(CatalogError, match=rf"some\.csv.*{message}"):
        catalog.scan(file)


def test_the_folder_of_a_list_adds_no_column(tmp_path: Path) -> None:
    """Arrow would read the folder ``split=train`` as a column, as Hive does."""
    columns = {"path": ["x.png"], "label": [1]}
    found = catalog.scan(write_list(tmp_path / "split=train" / "mine.parquet", columns))
    assert found.describe() == "mine/val 0 nature + 1 ai"


def test_rows_of_a_parquet_list_are_counted_without_a_header(tmp_path: Path) -> None:
    columns = {"path": ["x", "y"], "label": ["ai", None]}
    file = write_list(tmp_path / "some.parquet", columns, exist=False)
    with pytest.raises(CatalogError, match="row 2, column label: ''"):
        catalog.scan(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a list"),
        (b"path,label\n", "lists no images"),
        (b"path,label\nx.png,1,2\n", "cannot be read as a list.*Row #2"),
        (b"path,label\n\xff.png,1\n", "cannot be read as a list"),
        (b"path,path,label\nx,y,1\n", "has more than one column path"),
        (b"path,label\nx.png,1\n", r".*not found.*x\.png"),
    ],
)
def test_unusable_lists_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "some.csv"
    file.write_bytes(content)
    with pytest.raises(CatalogError, match=rf"(?s)some\.csv.*{message}"):
        catalog.scan(file)


def test_a_list_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    touch(tmp_path, 'a "b"\nc.png')
    file = tmp_path / "some.csv"
    file.write_bytes(b'\xef\xbb\xbfpath,label\r\n"a ""b""\nc.png",1\r\nNULL,0\r\n')
    assert names(catalog.scan(file)) == ["NULL", 'a "b"\nc.png']


def test_a_long_list_may_have_line_breaks_anywhere(tmp_path: Path) -> None:
    paths = [f"{'x' * 50}\n{i}.png" for i in range(40_000)]  # more than Arrow reads at a time
    file = write_list(tmp_path / "long.csv", {"path": paths, "label": ["ai"] * 40_000}, exist=False)
    touch(tmp_path, paths[0])
    assert names(catalog.scan(file)) == sorted(paths)
