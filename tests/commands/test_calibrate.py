"""cinemae calibrate: a detector's promise holds on the photographs it is given."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cinemae_jax import main
from cinemae_jax.commands import calibrate
from cinemae_jax.data.records import AI
from cinemae_jax.detector import bundle
from cinemae_jax.detector.trained import HeldOut
from tests.conftest import photo
from tests.helpers.small_detector import small_bundle

pytestmark = pytest.mark.slow

FPR = 0.2  # of the small detector: four photographs are enough to promise it


@pytest.fixture(scope="module")
def detector_file(backbone_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that calls every image AI, because its held-out photographs have low logits."""
    found = small_bundle(backbone_file)
    held_out = found.detector.held_out
    low = HeldOut(held_out.logit - 100, held_out.label)
    detector = dataclasses.replace(found.detector, held_out=low)
    path = tmp_path_factory.mktemp("detector") / "small.safetensors"
    bundle.save(path, dataclasses.replace(found, detector=detector, card="a card"))
    return path


def write_photographs(folder: Path, count: int, seed: int) -> list[Path]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(photo(rng, ai=bool(rng.integers(2)))).save(path)
    return paths


def run(detector_file: Path, backbone_file: Path, out: Path, *words: object) -> int:
    options = ["--out", out, "--backbone", backbone_file, *words]
    return main.main(["calibrate", str(detector_file), *map(str, options)])


def test_the_promise_holds_on_the_photographs_that_were_given(
    detector_file: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [*write_photographs(tmp_path / "a", 20, 0), *write_photographs(tmp_path / "b", 9, 1)]
    (tmp_path / "b" / "torn.png").write_bytes(paths[-1].read_bytes()[:60])
    out = tmp_path / "mine.safetensors"
    assert run(detector_file, backbone_file, out, tmp_path / "a", tmp_path / "b") == 1
    printed = capsys.readouterr().out
    assert f"unread    {tmp_path / 'b' / 'torn.png'}: " in printed
    assert re.search("29 photographs: 100.0% .* 17.2%", printed)  # 5 of 29
    before, after = (bundle.load(f, backbone=str(backbone_file)) for f in (detector_file, out))
    assert after.card == before.card
    assert bundle.identity(after.detector) == bundle.identity(before.detector)
    made, old = after.detector.calibration(), before.detector.calibration()
    assert (made.num_nature, made.num_ai, made.fpr) == (29, old.num_ai, FPR)
    assert made.nature_threshold == old.nature_threshold
    assert made.images != old.images
    photographs = np.asarray(after.detector.held_out.label) != AI
    logit = after.detector.held_out.logit[photographs, 0]
    assert np.isnan(logit).sum() == 1
    assert made.ai_threshold == np.sort(logit[np.isfinite(logit)])[-6]  # of 29: (29 + 1) · 0.2


def test_fpr_can_be_changed(detector_file: Path, backbone_file: Path, tmp_path: Path) -> None:
    write_photographs(tmp_path / "a", 20, 0)
    out = tmp_path / "mine.safetensors"
    assert run(detector_file, backbone_file, out, tmp_path / "a", "--fpr", 0.05) == 0
    made = bundle.load(out, backbone=str(backbone_file)).detector.calibration()
    assert made.fpr == 0.05
    logit = bundle.load(out, backbone=str(backbone_file)).detector.held_out.logit[:20, 0]
    assert made.ai_threshold == logit.max()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fpr", 0.01), "20 photographs are too few"),
        (("--fpr", 2), "fpr"),
        (("--out", "no/such/folder/x"), "no/such/folder/x"),
        (("--backbone", "lost.safetensors"), "lost.safetensors"),
        (("../a",), "/a"),
    ],
)
def test_usage_errors_come_before_any_work(
    detector_file: Path,
    backbone_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[object, ...],
    said: str,
) -> None:
    write_photographs(tmp_path / "a", 20, 0)
    out = tmp_path / "mine.safetensors"
    inner = [tmp_path / "a" / word for word in words if word == "../a"]
    words = tuple(word for word in words if word != "../a")
    assert run(detector_file, backbone_file, out, tmp_path / "a", *inner, *words) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_ctrl_c_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(argv: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "main", stop)
    assert main.main(["calibrate", "tiny"]) == 130
    assert capsys.readouterr().err == "stopped   by Ctrl-C\n"


def test_unread_photographs_do_not_count(
    detector_file: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_photographs(tmp_path / "a", 4, 0)
    paths[0].write_bytes(b"no picture")
    out = tmp_path / "mine.safetensors"
    assert run(detector_file, backbone_file, out, tmp_path / "a") == 2
    said = capsys.readouterr()
    assert "3 photographs are too few" in said.err
    assert str(paths[0]) in said.out
    assert not out.exists()
