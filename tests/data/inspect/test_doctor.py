import csv
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cinemae_jax.commands import doctor as command
from cinemae_jax.data import catalog, lists, loader
from cinemae_jax.data.inspect import diagnosis, examination, facts
from cinemae_jax.data.inspect.examiner import Examiner
from cinemae_jax.data.transforms import Crop
from tests.helpers.odd_images import JPEG, ODD, PNG, UNREADABLE, encoded, picture

NUM_PLAIN = 3  # sound files per class and split of the sick set
FOLDER = "gen/inner/train/ai"


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind in one class of one split, and some sound ones."""
    root = tmp_path_factory.mktemp("sick")
    for split in ("train", "val"):
        for label in ("nature", "ai"):
            folder = root / "gen/inner" / split / label
            folder.mkdir(parents=True)
            for i in range(NUM_PLAIN):
                seed = [ord(c) for c in split + label + str(i)]
                (folder / f"{i}.png").write_bytes(encoded(picture(seed)))
    for name, (data, _) in (UNREADABLE | ODD).items():
        (root / FOLDER / name).write_bytes(data)
    (root / FOLDER / "broken_link.png").symlink_to("nowhere.png")
    (root / FOLDER / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def examined(sick: Path) -> examination.Examination:
    return examination.examine(sick)


# --- a data set ---------------------------------------------------------------------------------


def test_every_file_is_in_exactly_one_count(examined: examination.Examination) -> None:
    counts = diagnosis.report(examined)["counts"]
    assert counts["scanned"] == 4 * NUM_PLAIN + len(UNREADABLE) + len(ODD) + 1
    assert counts["ok"] == 4 * NUM_PLAIN + len(ODD)
    assert counts["ok"] + sum(counts["unreadable_by_reason"].values()) == counts["scanned"]
    assert counts["unreadable"] == sum(counts["unreadable_by_reason"].values())
    assert set(counts["unreadable_by_reason"]) == set(facts.REASONS) - {facts.CRASH, facts.TOO_SLOW}
    assert counts["left_out_by_reason"] == {"extension .txt": 1}
    groups = diagnosis.groups(examined)
    assert sum(group["files"] for group in groups) == counts["scanned"]
    for group in groups:
        assert group["files"] == group["ok"] + sum(group["unreadable"].values())
        assert group["ok"] == sum(group["formats"].values()) == sum(group["modes"].values())


def test_doctor_and_loader_agree(sick: Path, examined: examination.Examination) -> None:
    found = catalog.scan(sick)
    images = loader.Loader(loader.from_catalog(found), Crop(8, resize=8))
    batches = images.eval_batches(batch_size=7)
    paths = found.table["path"].to_pylist()
    invalid = {paths[row] for b in batches for row in b["row"][(b["row"] >= 0) & ~b["valid"]]}
    assert invalid == set(examined.unreadable["path"].to_pylist())
    assert {f"{FOLDER}/{name}" for name in (*UNREADABLE, "broken_link.png")} == invalid


def test_exactly_the_oddities_are_found(examined: examination.Examination) -> None:
    found = diagnosis.findings(examined)
    expected = {kind for _, kinds in ODD.values() for kind in kinds}
    assert set(found) == expected == set(diagnosis.FINDINGS)
    for kind, finding in found.items():
        paths = {f"{FOLDER}/{name}" for name, (_, kinds) in ODD.items() if kind in kinds}
        assert set(finding["paths"]) == paths
        assert finding["count"] == len(paths)
        assert finding["by_label"] == {"ai": len(paths)}


def test_the_result_does_not_depend_on_the_number_of_workers(
    sick: Path, examined: examination.Examination
) -> None:
    assert examination.examine(sick, workers=1).files.equals(
        examination.examine(sick, workers=5).files
    )


def test_folders_without_classes_are_examined_as_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name, data in {"a.png": PNG, "folder.png/b.jpg": JPEG, "c.jpg": b"", "d.txt": b""}.items():
        (tmp_path / name).write_bytes(data)
    reported = diagnosis.report(examination.examine(tmp_path))
    assert reported["counts"] | {"left_out_by_reason": {}} == {
        "scanned": 3,
        "ok": 2,
        "unreadable": 1,
        "unreadable_by_reason": {"empty": 1},
        "left_out": 1,
        "left_out_by_reason": {},
    }
    assert [row["path"] for row in reported["unreadable"]] == ["c.jpg"]
    assert "class folder" in reported["layout"]
    assert reported["groups"][0]["label"] == "unlabelled"
    assert reported["shortcuts"] == []


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bytes twice: in train and val, in nature and ai, and within one class."""
    root = tmp_path_factory.mktemp("leaky")
    for path, seed in {
        "a/i/train/nature/t.png": 1,
        "b/i/val/nature/v.png": 1,
        "a/i/val/nature/n.png": 2,
        "a/i/val/ai/f.png": 2,
        "a/i/train/ai/x.png": 3,
        "a/i/train/ai/y.png": 3,
        "a/i/train/ai/alone.png": 4,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encoded(picture(seed)))
    for i in range(2):  # empty files are unreadable, not duplicates
        (root / f"a/i/{('train', 'val')[i]}/ai/empty{i}.png").touch()
    return root


def test_duplicates_are_grouped_by_kind_of_leak(leaky: Path) -> None:
    found = diagnosis.duplicates(examination.examine(leaky))

    def names(sets: list) -> list[set[str]]:
        return [{Path(copy["path"]).name for copy in copies} for copies in sets]

    assert names(found["across_splits"]) == [{"t.png", "v.png"}]
    assert names(found["across_classes"]) == [{"n.png", "f.png"}]
    assert names(found["within"]) == [{"x.png", "y.png"}]
    assert (found["sets"], found["files"], found["num_within"]) == (3, 6, 1)


def test_quarantine_lists_exactly_what_makes_a_set_sound(leaky: Path, tmp_path: Path) -> None:
    file = tmp_path / "quarantine.csv"
    assert command.main(["doctor", str(leaky), "--quarantine", str(file)]) == 1
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["path"]: row["reason"] for row in rows} == {
        "a/i/train/ai/empty0.png": "empty file",
        "a/i/train/nature/t.png": "same bytes as b/i/val/nature/v.png of split val",
        "a/i/val/ai/empty1.png": "empty file",
    }
    found = catalog.scan(leaky)
    kept = found.without(lists.read_quarantine(file))
    gone = set(found.table["path"].to_pylist()) - set(kept.table["path"].to_pylist())
    assert gone == {row["path"] for row in rows}


def test_shortcuts_within_a_generator_are_found(tmp_path: Path) -> None:
    """Formats are swapped between two generators, so over both they tell little."""
    for generator, swap in (("a", False), ("b", True)):
        for label in ("nature", "ai"):
            folder = tmp_path / generator / "i/val" / label
            folder.mkdir(parents=True)
            kind = "jpg" if (label == "ai") == swap else "png"
            for i in range(12):
                picture(i, width=32, height=32).save(folder / f"{i}.{kind}")
    reported = diagnosis.report(examination.examine(tmp_path))
    (sentence,) = (one for one in reported["verdict"] if "file format alone" in one)
    assert sentence.startswith("within 2 of 2 generators")
    assert "in a with AUC 1.00 (12 nature + 12 ai; fewer than 100 images" in sentence
    values = {
        one["scope"]: one["auc"] for one in reported["shortcuts"] if one["fact"] == "file format"
    }
    assert values["a"] == values["b"] == 1.0
    assert values["all"] < 0.75


# --- files that kill a process ------------------------------------------------------------------

FATAL = """
import os, signal, sys, time
from cinemae_jax.data import decode
from cinemae_jax.data.inspect import examiner

def open_header(data, really=decode.open_header):
    if data == b"exits":
        os._exit(3)
    if data == b"faults":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hangs":
        time.sleep(60)
    if data.startswith(b"once "):  # as when other programs take the memory
        note = data[5:].decode()
        if not os.path.exists(note):
            open(note, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    print("a codec that prints")
    return really(data)

decode.open_header = open_header
examiner.main(sys.argv)
"""


@pytest.fixture
def fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and a decoder that dies on files of certain contents."""
    module = tmp_path / "modules/fatal_decoder.py"
    module.parent.mkdir()
    module.write_text(FATAL)
    monkeypatch.setenv("PYTHONPATH", str(module.parent), prepend=os.pathsep)
    deadly = functools.partial(Examiner, module="fatal_decoder", file_seconds=2)
    monkeypatch.setattr(examination, "Examiner", deadly)
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.mark.parametrize("workers", [1, 3])
def test_files_that_kill_the_decoder_are_named_and_the_others_examined(
    fatal: Path, workers: int
) -> None:
    once = b"once " + os.fsencode(fatal.parent / "note")
    for name, data in {
        **{f"{i:02}.png": PNG for i in range(3 * examination.CHUNK)},
        **{"05.png": b"exits", "06.png": b"faults", "40.png": b"hangs", "70.png": once},
        **{"07.png": b"", "63.png": b"exits"},
    }.items():
        (fatal / name).write_bytes(data)
    examined = examination.examine(fatal, workers=workers)
    bad = {row["path"]: (row["reason"], row["error"]) for row in examined.unreadable.to_pylist()}
    expected = {
        "05.png": (facts.CRASH, "exit code 3"),
        "06.png": (facts.CRASH, "signal 11"),
        "07.png": (facts.EMPTY, "empty file"),
        "40.png": (facts.TOO_SLOW, "2 seconds"),
        "63.png": (facts.CRASH, "exit code 3"),
        "70.png": (facts.NO_IMAGE, "not an image"),
    }
    assert bad.keys() == expected.keys()
    for name, (reason, words) in expected.items():
        assert bad[name][0] == reason
        assert words in bad[name][1]
    assert len(examined.readable) == 3 * examination.CHUNK - 6


def test_a_process_that_does_not_start_is_an_error(
    fatal: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        examination, "Examiner", functools.partial(Examiner, module="no_such_module")
    )
    for i in range(4 * examination.CHUNK):
        (fatal / f"{i}.png").write_bytes(PNG)
    assert command.main(["doctor", str(fatal), "--workers", "2"]) == 2
    assert "does not start" in capfd.readouterr().err


# --- command ------------------------------------------------------------------------------------


def test_a_sound_set_exits_with_0(data_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["doctor", str(data_set)]) == 0
    assert "all 76 files can be read" in capsys.readouterr().out


def test_the_report_names_every_unreadable_file(
    sick: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["doctor", str(sick), "--json", f"{tmp_path}/r.json"]) == 1
    reported = json.loads((tmp_path / "r.json").read_text())
    named = {Path(row["path"]).name: row["reason"] for row in reported["unreadable"]}
    expected = {name: reason for name, (_, reason) in UNREADABLE.items()}
    assert named == expected | {"broken_link.png": facts.NO_ACCESS}
    assert reported["versions"].keys() >= {"cinemae_jax", "pillow", "python"}
    printed = capsys.readouterr().out
    assert "14 of 41 files" in printed
    assert "and 4 more" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("bad", ["--json", "--quarantine"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    bad: str, sick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "examine", lambda *a, **k: pytest.fail("examined"))
    assert command.main(["doctor", str(sick), bad, f"{tmp_path}/nowhere/r"]) == 2
    assert command.main(["doctor", str(sick), bad, str(tmp_path)]) == 2


@pytest.mark.parametrize("workers", ["0", "-1", "many"])
def test_an_invalid_number_of_workers_is_a_usage_error(workers: str, sick: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(["doctor", str(sick), "--workers", workers])
    assert stop.value.code == 2


def test_roots_without_images_are_usage_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["doctor", f"{tmp_path}/missing"]) == 2
    assert command.main(["doctor", str(tmp_path)]) == 2
    assert "no images" in capsys.readouterr().err


def test_names_cannot_send_commands_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("写真.png", "[red]a[bold].png", "a\nb.png", "\x1b[2Jc.png"):
        (tmp_path / name).touch()
    assert command.main(["doctor", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    for shown in ("写真.png", "[red]a[bold].png", r"a\nb.png", r"\x1b[2Jc.png"):
        assert f"    {shown}: empty file" in printed
    assert "\x1b" not in printed


def test_doctor_does_not_import_jax() -> None:
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from cinemae_jax.main import main; main(['doctor', '/nowhere'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "/nowhere" in done.stderr
