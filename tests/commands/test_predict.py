"""cinemae predict: one row per file, in order, in every format, and the right exit code."""

import csv
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from cinemae_jax import main
from cinemae_jax.commands import predict
from cinemae_jax.data.inspect import facts
from cinemae_jax.detector import bundle
from cinemae_jax.detector.api import OPINION, Detector
from cinemae_jax.detector.heatmap import LcasMap
from tests.conftest import photo
from tests.helpers.odd_images import ODD, UNREADABLE
from tests.helpers.pictures import encoded, saved
from tests.helpers.small_detector import one_device, small_bundle

pytestmark = pytest.mark.slow

FIRST = ["path", "probability", "verdict", "flags", "error", "detector", "seconds"]


@pytest.fixture(scope="module")
def small(backbone_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector file with its backbone next to it."""
    path = tmp_path_factory.mktemp("detector") / "noise.safetensors"
    bundle.save(path, small_bundle(backbone_file))
    (path.parent / backbone_file.name).write_bytes(backbone_file.read_bytes())
    return path


@pytest.fixture(scope="module")
def loaded(small: Path) -> Detector:
    return Detector.load(small, replicas=one_device())


@pytest.fixture(autouse=True)
def once_compiled(monkeypatch: pytest.MonkeyPatch, loaded: Detector, small: Path) -> None:
    """The command uses the detector of this module, unless its options require another."""
    load = Detector.load

    def given(source: str, **options: object) -> Detector:
        if source == str(small) and set(options.values()) <= {"", None}:
            return loaded
        return load(source, replicas=one_device(), **options)

    monkeypatch.setattr(predict.Detector, "load", given)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png b.jpg c.txt .hidden.png deep/d.png"""
    rng = np.random.default_rng(0)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, kind in (
        ("a.png", "PNG"),
        ("b.jpg", "JPEG"),
        (".h.png", "PNG"),
        ("deep/d.PNG", "PNG"),
    ):
        data = encoded(photo(rng, ai=kind == "PNG"), kind)
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / "c.txt").write_text("no picture")
    return tmp_path / "in"


def run(small: Path, *arguments: object) -> int:
    return main.main(["predict", "--detector", str(small), *map(str, arguments)])


def rows_of(capsys: pytest.CaptureFixture[str], kind: str = "json") -> list[dict]:
    printed = capsys.readouterr().out
    if kind == "jsonl":
        return [json.loads(line) for line in printed.splitlines()]
    return json.loads(printed) if kind == "json" else list(csv.DictReader(io.StringIO(printed)))


def names_of(capsys: pytest.CaptureFixture[str], folder: Path) -> list[str]:
    return [os.path.relpath(row["path"], folder) for row in rows_of(capsys)]


def test_formats_hold_the_same_rows(
    small: Path, folder: Path, loaded: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [folder / "b.jpg", folder / "c.txt", folder / "a.png"]
    by_format = {}
    for kind in ("json", "jsonl", "csv"):
        assert run(small, *paths, "--format", kind) == 1
        by_format[kind] = rows_of(capsys, kind)
    for row in by_format["json"]:
        row.pop("seconds")
    for row in by_format["jsonl"]:
        assert list(row)[:7] == FIRST
        row.pop("seconds")
    assert by_format["json"] == by_format["jsonl"]
    predictions = loaded.predict(paths)
    for row, flat, one in zip(by_format["json"], by_format["csv"], predictions, strict=True):
        assert row["path"] == flat["path"] == one.path
        assert row["probability"] == one.probability
        assert flat["probability"] == ("" if one.probability is None else str(one.probability))
        assert (row["verdict"], row["error"]) == (one.verdict, one.error)
        assert row["flags"] == list(one.flags)
        assert row["detector"] == loaded.name
        assert OPINION in row["note"]
    assert "not an image" in by_format["json"][1]["error"]


def test_rows_of_the_table_come_one_by_one_and_stay(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Words:
        def in_words(self) -> list[str]:
            return ["a sentence"]

    row: dict[str, Any] = {"uncertainty": None, "probability": 0.5, "flags": [], "error": None}
    row |= {"seconds": 0.1, "verdict": "ai", "path": "a\r\x1b[2J.png"}
    table = predict.WRITERS["table"](Words())
    write = table.__enter__()
    write(row)
    first = capsys.readouterr().out
    assert r"a\r\x1b[2J.png" in first
    assert "\x1b" not in first
    write(row | {"probability": None, "verdict": None, "error": "damaged " * 30})
    second = capsys.readouterr().out
    assert first.splitlines()[-1].index("ai") == second.splitlines()[0].index("not scored")
    table.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert "a sentence" not in capsys.readouterr().out


def test_csv_rows_are_neither_formulas_nor_split(capsys: pytest.CaptureFixture[str]) -> None:
    with predict.WRITERS["csv"](None) as write:
        for path in ("=1+1", "@x", "a\rb\nc", "plain.png"):
            write({"path": path, "flags": ["+a"], "probability": -0.5})
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["path"] for row in rows] == ["'=1+1", "'@x", r"a\rb\nc", "plain.png"]
    assert (rows[0]["flags"], rows[0]["probability"]) == ("'+a", "-0.5")


def test_the_table_names_the_detector_and_its_limits(
    small: Path, folder: Path, loaded: Detector, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(small, folder / "a.png", folder / "gone.png") == 1
    printed = capsys.readouterr()
    for sentence in loaded.in_words():
        assert sentence in printed.out
    assert "No such file or directory" in printed.out
    assert "not scored" in printed.out
    assert printed.err == ""  # no progress bar in a pipe


def test_folders_and_patterns(
    small: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, expected in (
        ((folder,), ["a.png", "b.jpg"]),
        ((folder, "--recursive"), ["a.png", "b.jpg", "deep/d.PNG"]),
        ((f"{folder}/*.png",), ["a.png"]),
        ((f"{folder}/**/*.[pP][nN][gG]",), ["a.png", "deep/d.PNG"]),
        ((folder / "b.jpg", folder / "a.png", folder / "b.jpg"), ["b.jpg", "a.png", "b.jpg"]),
    ):
        assert run(small, *arguments, "--format", "json") == 0
        assert names_of(capsys, folder) == expected
    (folder / "a[1].png").write_bytes((folder / "a.png").read_bytes())
    assert run(small, folder / "a[1].png", "--format", "json") == 0
    assert names_of(capsys, folder) == ["a[1].png"]


def test_stdin_is_an_image_or_a_list_of_paths(
    small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    give((folder / "b.jpg").read_bytes())
    assert run(small, "-", folder / "b.jpg", "--format", "json") == 0
    piped, named = rows_of(capsys)
    assert (piped["path"], piped["probability"]) == ("-", named["probability"])
    give(f"{folder}/a.png\n\n{folder}/b.jpg\r\n".encode())
    assert run(small, "-", "--format", "json") == 0
    assert names_of(capsys, folder) == ["a.png", "b.jpg"]
    give((folder / "a.png").read_bytes()[:200])
    assert run(small, "-", "--format", "json") == 1
    assert rows_of(capsys)[0]["error"]
    give(b"\n")
    assert run(small, "-") == 2


def test_one_file_never_ends_the_command(
    small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    palette = encoded(photo(np.random.default_rng(0), ai=True)[..., 0])
    no_palette = palette[:25] + b"\3" + palette[26:29]  # colour type 3 without a PLTE chunk
    no_palette += struct.pack(">I", zlib.crc32(no_palette[12:29])) + palette[33:]
    (folder / "b.png").write_bytes(no_palette)
    long = str(folder / ("n" * 300))
    given = [folder / "a.png", folder / "b.png", long, folder / "gone[1].png", folder / "b.jpg"]
    assert run(small, *given[:3], given[4], "--format", "json") == 1
    assert [bool(row["error"]) for row in rows_of(capsys)] == [False, True, True, False]
    names = list(map(str, given))
    for data in (
        "\n".join(names).encode(),
        "\0".join([*names, ""]).encode(),
        "\r\n".join(names).encode("utf-16"),
        "\n".join(names).encode("utf-8-sig"),
    ):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert run(small, "-", "--format", "json") == 1
        rows = rows_of(capsys)
        assert [row["path"] for row in rows] == names
        assert [bool(row["error"]) for row in rows] == [False, True, True, True, False]


def test_damaged_files_of_every_format_are_rows(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(5)
    picture = Image.fromarray(photo(rng, ai=False))
    heic = io.BytesIO()
    pillow_heif.from_pillow(picture).save(heic)
    seeds = {"heic": heic.getvalue()} | {
        kind.lower(): saved(picture, kind)
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
    }
    for number in range(5):
        for kind, data in seeds.items():
            damaged = bytearray(data)
            for at in rng.integers(0, len(data), 1 + number):
                damaged[at if number % 2 else at % 200] = rng.integers(256)
            end = rng.integers(1, len(data)) if number > 2 else len(data)
            (tmp_path / f"{number}.{kind}").write_bytes(damaged[:end])
    assert run(small, tmp_path, "--format", "jsonl") in (0, 1)
    rows = rows_of(capsys, "jsonl")
    assert len(rows) == 5 * len(seeds)
    for row in rows:
        found = facts.examine(Path(row["path"]))
        assert bool(row["error"]) == bool(found.reason) == (row["probability"] is None)
        assert row["probability"] is None or 0 <= row["probability"] <= 1


def test_odd_files_are_rows(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {name: data for name, (data, _) in ODD.items() if len(data) < 100_000}
    for name, data in good.items():
        (tmp_path / name).write_bytes(data)
    assert run(small, tmp_path, "--format", "jsonl") == 0
    rows = rows_of(capsys, "jsonl")
    assert {Path(row["path"]).name for row in rows} == good.keys()
    assert all(0 <= row["probability"] <= 1 for row in rows)
    bad = tmp_path / "bad"
    bad.mkdir()
    for name, (data, _) in UNREADABLE.items():
        (bad / name).write_bytes(data)
    (bad / "broken.png").symlink_to("nowhere")
    (bad / "line\nbreak.png").write_bytes(b"")
    assert run(small, bad, "--format", "jsonl") == 1
    rows = rows_of(capsys, "jsonl")
    assert len(rows) == len(UNREADABLE) + 2
    assert all(row["probability"] is None and row["verdict"] is None for row in rows)
    assert all(row["error"] and "\n" not in row["error"] for row in rows)


def test_a_score_does_not_depend_on_the_other_images(
    small: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def probability(*arguments: object) -> float:
        assert run(small, *arguments, "--format", "json") == 0
        return next(r["probability"] for r in rows_of(capsys) if r["path"].endswith("a.png"))

    alone = probability(folder / "a.png")
    assert probability(folder, "--recursive") == alone
    assert abs(probability(folder, "--batch", 3) - alone) < 1e-6  # a different program


def test_options_reach_the_detector(
    small: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "new" / "maps"
    options = "--runs", 4, "--stability", "--heatmaps", maps, "--threshold-fpr", 0.02
    assert run(small, folder / "a.png", folder / "c.txt", *options, "--format", "json") == 1
    row, refused = rows_of(capsys)
    assert row["uncertainty"] >= 0
    assert len(row["stability"]) == 3
    assert Path(row["heatmap"]).read_bytes()[1:4] == b"PNG"
    assert list(maps.iterdir()) == [Path(row["heatmap"])]
    assert refused["heatmap"] is None
    assert run(small, folder / "a.png", "--threshold-fpr", 0.02) == 0
    assert " 2 % of nature" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PATH"),
        (["a.png", "--format", "xml"], "'xml'"),
        (["a.png", "--runs", "3"], "runs"),
        (["a.png", "--runs", "x"], "'x'"),
        (["a.png", "--threshold-fpr", "2"], "between 0 and 1"),
        (["a.png", "--batch", "0"], "1 or more"),
        (["a.png", "--detector", "nowhere"], "nowhere"),
        (["a.png", "--backbone", "nowhere"], "nowhere"),
        (["*.absent"], "*.absent"),
        (["empty"], "folder empty"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: list[str],
    message: str,
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    code: object
    try:
        code = run(small, *arguments)
    except SystemExit as stop:
        code = stop.code
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_predict_does_not_import_fitting_or_plotting_libraries() -> None:
    script = "import sys, cinemae_jax.commands.predict; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    loaded = set(found.stdout.split())
    assert "cinemae_jax.detector.api" in loaded
    assert not {"sklearn", "scipy.stats", "matplotlib"} & loaded


def test_importing_the_library_defines_no_flags() -> None:
    script = "import cinemae_jax; cinemae_jax.Detector; from absl import flags; print(*flags.FLAGS)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not {"config", "workdir", "coordinator"} & set(done.stdout.split()), done.stderr


def test_a_heat_map_that_cannot_be_written_fails_only_its_row(
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("a.png", "b" * 240 + ".png"):
        (tmp_path / name).write_bytes(encoded(photo(np.random.default_rng(len(name)), ai=True)))
    maps = tmp_path / "maps"
    assert run(small, str(tmp_path), "--heatmaps", str(maps), "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [len(list(maps.iterdir())), len(rows)] == [2, 2]
    save = LcasMap.save

    def full_disk(self: LcasMap, path: Path) -> None:
        if path.name.startswith("a"):
            raise OSError(28, "No space left on device")
        save(self, path)

    monkeypatch.setattr(LcasMap, "save", full_disk)
    assert run(small, str(tmp_path), "--heatmaps", str(maps), "--format", "json") == 1
    one, other = json.loads(capsys.readouterr().out)
    assert "No space left on device" in one["error"]
    assert (one["probability"], other["error"]) == (rows[0]["probability"], None)


def test_a_closed_pipe_is_not_an_error(small: Path, folder: Path) -> None:
    script = "import sys; from cinemae_jax.main import main; sys.exit(main(sys.argv[1:]))"
    argv = ["predict", str(folder), "--detector", str(small), "--format", "jsonl"]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
    assert process.wait() == 1
    assert said == f"left out  1 file of {folder}: 1 extension .txt\n".encode()
