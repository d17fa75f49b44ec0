"""A receipt replays to the last bit, and verify names what has changed."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from cinemae_jax import main, weights
from cinemae_jax.data import catalog
from cinemae_jax.detector import loading, trained
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import receipt, replay
from cinemae_jax.evaluation.receipt import Image, Receipt, ReceiptError
from cinemae_jax.model.cinemae import random_backbone
from cinemae_jax.runtime import differences
from tests.conftest import SMALL, write_data_set
from tests.helpers.small_run import evaluated, small_run, small_settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(
    data_set: Path, backbone_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run with an online evaluation: its folder, and its own copy of the images."""
    root = tmp_path_factory.mktemp("images")
    shutil.copytree(data_set, root, dirs_exist_ok=True)
    workdir = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(small_run(data_set, backbone_file), workdir)
    config = small_settings(root, backbone_file)
    assert evaluated(config, workdir) == []
    return workdir, root


@pytest.fixture
def old(run: tuple[Path, Path]) -> Receipt:
    return receipt.read(run[0] / receipt.FILE)


@pytest.fixture
def detector(run: tuple[Path, Path], backbone_file: Path) -> TrainedDetector:
    return loading.load(run[0], backbone=str(backbone_file))


def path_of(run: tuple[Path, Path]) -> str:
    return str(run[0] / receipt.FILE)


def test_an_online_evaluation_replays_to_the_last_bit(
    run: tuple[Path, Path], old: Receipt, capsys: pytest.CaptureFixture
) -> None:
    assert old.is_exact
    assert len(old.images) == 28
    assert main.main(["verify", path_of(run)]) == 0
    said = capsys.readouterr().out.splitlines()
    (result,) = said[1:]
    assert result.startswith("equal     28 images")


def test_scores_of_a_bank_replay_within_rounding(
    data_set: Path, backbone_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """Batches of the bank have another shape, so scores differ by rounding."""
    path = small_run(data_set, backbone_file) / receipt.FILE
    from_bank = receipt.read(path)
    assert from_bank.source == receipt.BANK
    assert not from_bank.is_exact
    assert main.main(["verify", str(path)]) == 0
    assert "28 images within 0.0001" in capsys.readouterr().out


def test_changed_damaged_and_lost_images_are_named(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "moved"
    shutil.copytree(run[1], root)
    folder = root / "gen_b/imagenet_ai_test/val"
    shutil.copy(folder / "nature/001.png", folder / "ai/002.png")
    (folder / "ai/003.png").write_bytes(b"")
    (folder / "ai/004.png").unlink()
    assert main.main(["verify", path_of(run), "--root", str(root)]) == 1
    _, verdict, changed, damaged, lost, *changes = capsys.readouterr().out.splitlines()
    assert verdict.startswith("differs   3 of 28 images")
    assert "gen_b/imagenet_ai_test/val/ai/002.png: was" in changed
    assert "003.png: was" in damaged
    assert "is empty file (inf)" in damaged
    assert "004.png: was" in lost
    assert "missing" in lost
    (change,) = changes
    assert change.startswith("changed   images was")


def test_another_head_and_another_backbone_are_named(
    run: tuple[Path, Path], old: Receipt, detector: TrainedDetector
) -> None:
    """On a sample of one whole batch: 16 of 28 images."""
    params = detector.heads.params
    kernel = np.array(params["classifier"]["kernel"])
    kernel[0, 0, 0] += 0.5
    changed = params | {"classifier": params["classifier"] | {"kernel": kernel}}
    heads = dataclasses.replace(detector.heads, params=changed)
    backbone = dataclasses.replace(random_backbone(SMALL, seed=1), sha256="another")
    other = dataclasses.replace(detector, heads=heads, backbone=backbone)
    done = replay.replay(old, other, catalog.scan(run[1]), sample=3)
    assert (len(done.found), done.num_images) == (16, 16)
    of_backbone, of_head = done.changes
    assert of_backbone.startswith("backbone_sha256 was")
    assert of_head.startswith("head_sha256 was")
    assert trained.head_sha256(other.heads) in of_head


def test_another_backbone_is_refused(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "other.safetensors"
    weights.save(path, SMALL, random_backbone(SMALL, seed=1).params)
    assert main.main(["verify", path_of(run), "--backbone", str(path)]) == 2
    assert "backbone" in capsys.readouterr().err


def test_a_sample_keeps_whole_batches(old: Receipt) -> None:
    """A sample consists of whole batches of 16, in order."""
    assert tuple(replay.sampled(old, 3)) == old.images[:16]
    assert tuple(replay.sampled(old, 17)) == old.images


def test_another_data_set_is_refused(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "inner").mkdir()
    root = write_data_set(tmp_path / "inner", train=1, val=1)
    (root / "gen_a").rename(root / "gen_x")
    (root / "gen_b").rename(root / "gen_y")
    assert main.main(["verify", path_of(run), "--root", str(root)]) == 2
    said = capsys.readouterr().err
    assert str(root) in said
    assert "28 images" in said


def test_other_files_are_not_accepted_as_receipts(
    tmp_path: Path, run: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    assert main.main(["verify", str(tmp_path / "none.json")]) == 2
    assert main.main(["verify", str(run[0] / "eval.json")]) == 2
    assert "eval.json is not a receipt" in capsys.readouterr().err
    cut = tmp_path / "cut.json"
    cut.write_text(Path(path_of(run)).read_text()[:-30])
    with pytest.raises(ReceiptError, match=r"cut\.json is not a receipt"):
        receipt.read(cut)
    record = json.loads(Path(path_of(run)).read_text())
    for lacking in ("devices", "calibration"):
        facts = {name: value for name, value in record["facts"].items() if name != lacking}
        cut.write_text(json.dumps(record | {"facts": facts}))
        with pytest.raises(ReceiptError, match=lacking):
            receipt.read(cut)


def test_every_bit_survives_the_file(tmp_path: Path, old: Receipt) -> None:
    awkward = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45, 0.1, 3e38], np.float32)
    images = tuple(
        Image(2**64 - 1 - i, f'{i} "ü"\n.png', (x,), None) for i, x in enumerate(awkward.tolist())
    )
    receipt.write(tmp_path / "r.json", dataclasses.replace(old, images=images))
    back = receipt.read(tmp_path / "r.json")
    values = np.array([image.logits[0] for image in back.images], np.float32)
    assert values.tobytes() == awkward.tobytes()
    assert [dataclasses.replace(i, logits=()) for i in back.images] == [
        dataclasses.replace(i, logits=()) for i in images
    ]
    assert dataclasses.replace(back, images=()) == dataclasses.replace(old, images=())
    ids = [row["example_id"] for row in json.loads((tmp_path / "r.json").read_text())["images"]]
    assert ids[0] == "18446744073709551615"


def test_differences_of_one_bit_are_found() -> None:
    one = np.float32(0.1)
    next_one = float(np.nextafter(one, np.float32(1)))
    before = [Image(1, "a.png", (float(one),), None), Image(2, "b.png", (float("nan"),), "damaged")]
    after = {1: Image(1, "a.png", (next_one,), None), 2: before[1]}
    (found,), largest = receipt.differences(before, after, 0.0)
    assert found.path == "a.png"
    assert largest == found.by == pytest.approx(7.5e-9, rel=0.1)
    assert receipt.differences(before, after, 1e-4) == ([], largest)


def test_changes_name_every_fact(old: Receipt) -> None:
    other = json.loads(json.dumps(old.facts))
    other["versions"]["jax"] = "9"
    del other["preprocessing"]["decoders"]["zlib"]
    before = old.facts["preprocessing"]["decoders"]["zlib"]
    assert differences.changes(old.facts, other) == {
        "preprocessing.decoders.zlib": f"was {before!r}, is None",
        "versions.jax": f"was {old.facts['versions']['jax']!r}, is '9'",
    }
