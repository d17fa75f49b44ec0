"""The public detector: one image has one score, whatever its source or batch."""

import concurrent.futures
import dataclasses
import doctest
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.csv
import pytest
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from cinemae_jax import Detector, train, typed, weights
from cinemae_jax.commands import share
from cinemae_jax.data.catalog import scan
from cinemae_jax.detector import api, bundle, export, inputs
from cinemae_jax.detector.bundle import BundleError, TrainingView
from cinemae_jax.model.cinemae import random_backbone
from cinemae_jax.runtime.checkpoints import CheckpointError
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings
from tests.conftest import SMALL, photo
from tests.helpers.pictures import encoded
from tests.helpers.small_detector import one_device, small_bundle
from tests.helpers.small_run import small_config

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def workdir(data_set: Path, backbone_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(data_set, backbone_file)
    config.train.epochs = 1
    folder = tmp_path_factory.mktemp("runs") / "mine"
    assert train.train(typed.read(config.to_dict(), Settings), folder) == []
    return folder


@pytest.fixture(scope="module")
def trained(workdir: Path) -> Detector:
    return Detector.load(workdir, replicas=one_device())


@pytest.fixture(scope="module")
def detector(backbone_file: Path) -> Detector:
    return Detector(small_bundle(backbone_file), batch_size=3, replicas=one_device())


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [photo(rng, ai=bool(i % 2), side=36 + i) for i in range(20)]


def test_it_gives_the_scores_of_evaluation(
    trained: Detector, workdir: Path, data_set: Path
) -> None:
    test = scan(data_set).select(split="val").table.to_pylist()
    scores = pyarrow.csv.read_csv(workdir / "scores.csv").to_pylist()
    expected = {row["path"]: row["logit"] for row in scores}
    pictures = [inputs.read(data_set / row["path"]) for row in test]
    crops = np.stack([trained.transform.cut(one.image) for one in pictures])
    ids = np.array([row["example_id"] for row in test], np.uint64).astype(np.uint32)
    found = trained.score_crops(crops, ids).logit[:, 0]  # with the masks of evaluation
    np.testing.assert_allclose(found, [expected[row["path"]] for row in test], atol=1e-4)


def test_preprocessing_is_that_of_training(trained: Detector) -> None:
    for size in ((40, 60), (20, 33), (300, 41)):
        data = encoded(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
        expected = trained.transform(data, np.random.default_rng(0))
        np.testing.assert_array_equal(trained.transform.cut(inputs.read(data).image), expected)


def test_the_score_does_not_depend_on_the_source(
    detector: Detector, photos: list[np.ndarray], tmp_path: Path
) -> None:
    array = photos[0]
    path = tmp_path / "any.name"
    path.write_bytes(encoded(array))
    lossless = encoded(array, "WEBP", lossless=True)
    forms = [array, Image.fromarray(array), path, str(path), path.read_bytes(), lossless]
    forms.append(Image.open(io.BytesIO(lossless)))
    found = detector.predict(forms)
    assert len({one.logit for one in found}) == 1
    assert len({one.example_id for one in found}) == 1
    assert [one.path for one in found] == ["", "", str(path), str(path), "", "", ""]


def test_the_score_does_not_depend_on_the_batch(
    detector: Detector, photos: list[np.ndarray]
) -> None:
    together = [one.logit for one in detector.predict(photos)]
    assert len(set(together)) == len(photos)
    alone = [detector.predict(one)[0].logit for one in photos]
    assert alone == together
    with_bad = detector.predict([b"", *photos[:4], b"junk", *photos[4:]])
    assert [one.logit for one in with_bad if one.error is None] == together
    same_size = [photo(np.random.default_rng(i), ai=True) for i in (1, 2)]
    assert len({one.example_id for one in detector.predict(same_size)}) == 2
    assert [with_bad[0].error, with_bad[5].error] == [
        "empty file",
        "not an image, or of an unsupported format",
    ]


@pytest.mark.parametrize(("batch_size", "count"), [(1, 1), (8, 8)])
def test_batch_and_devices_do_not_matter(
    detector: Detector,
    backbone_file: Path,
    photos: list[np.ndarray],
    batch_size: int,
    count: int,
) -> None:
    replicas = Replicas(tuple(jax.devices()[:count]))
    other = Detector(small_bundle(backbone_file), batch_size=batch_size, replicas=replicas)
    expected = [one.logit for one in detector.predict(photos)]
    found = [one.logit for one in other.predict(photos)]
    np.testing.assert_allclose(found, expected, atol=1e-5)  # different programs round differently


def test_many_threads_get_their_own_scores(detector: Detector, photos: list[np.ndarray]) -> None:
    expected = [one.logit for one in detector.predict(photos)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda one: detector.predict(one)[0].logit, photos))
    assert found == expected


def test_a_folder_larger_than_memory_is_streamed(detector: Detector) -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield np.full((40, 40, 3), taken % 256, np.uint8)

    stream: Any = detector.stream(endless())
    assert [next(stream).error for _ in range(5)] == [None] * 5
    assert taken < 50
    stream.close()


def test_more_runs_form_more_groups(backbone_file: Path, photos: list[np.ndarray]) -> None:
    small = small_bundle(backbone_file)
    two, four = (Detector(small, runs=runs, replicas=one_device()) for runs in (2, 4))
    first, both = two.predict(photos[:3]), four.predict(photos[:3])
    crops = [two.transform.cut(Image.fromarray(one)) for one in photos[:3]]
    ids = np.array([one.example_id for one in first])
    groups = four.score_crops(np.stack(crops), ids).logit
    np.testing.assert_allclose(groups[:, 0], [one.logit for one in first], atol=1e-5)
    np.testing.assert_allclose(groups.mean(axis=1), [one.logit for one in both], atol=1e-6)
    spread = four.calibration.probability(groups).std(axis=1, ddof=1)
    np.testing.assert_allclose([one.uncertainty for one in both], spread)
    assert first[0].uncertainty is None
    assert "4 masking runs per image" in four.in_words()[-1]
    for runs in (1, 3, 0):
        with pytest.raises(ValueError, match="multiple of 2"):
            Detector(small, runs=runs, replicas=one_device())


def test_probability_and_verdict_are_the_calibrated_ones(
    backbone_file: Path, detector: Detector, photos: list[np.ndarray]
) -> None:
    small = small_bundle(backbone_file)
    strict = Detector(small, fpr=0.01, batch_size=3, replicas=one_device())
    assert strict.calibration.ai_threshold > detector.calibration.ai_threshold
    for judge in (detector, strict):
        for one in judge.predict(photos):
            assert one.probability == judge.calibration.probability(one.logit)
            assert one.verdict == judge.calibration.verdict(one.logit)
    with pytest.raises(ValueError, match=r"fpr is 1\.5"):
        Detector(small, fpr=1.5, replicas=one_device())


def names(flags: tuple[str, ...]) -> list[str]:
    return [flag.split(":")[0] for flag in flags]


def test_flags_say_what_is_known(backbone_file: Path) -> None:
    seen = TrainingView(("JPEG",), (30, 64))
    small = small_bundle(backbone_file, resize=0, seen=seen)
    detector = Detector(small, replicas=one_device())
    rng = np.random.default_rng(0)

    def noise(height: int, width: int) -> np.ndarray:
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)

    frames = [Image.fromarray(noise(40, 40)) for _ in range(2)]
    animation = io.BytesIO()
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    cases = {
        "nothing": (encoded(noise(40, 40), "JPEG"), []),
        "pixels": (noise(40, 40), []),
        "png": (encoded(noise(40, 40)), ["format"]),
        "small": (noise(20, 40), ["size", "small"]),
        "large": (noise(100, 100), ["size", "partial_view"]),
        "uniform": (np.full((40, 40, 3), 99, np.uint8), ["low_context"]),
        "animation": (animation.getvalue(), ["format", "animated"]),
        "clear": (
            encoded(np.dstack([noise(40, 40), noise(40, 40)[..., :1]])),
            ["format", "transparent"],
        ),
    }
    images: list[Any] = [data for data, _ in cases.values()]
    found = detector.predict(images)
    assert [names(one.flags) for one in found] == [flags for _, flags in cases.values()]
    uniform = found[list(cases).index("uniform")]
    assert uniform.verdict == "inconclusive"
    assert uniform.probability is not None
    unknown = Detector(small_bundle(backbone_file, resize=0), replicas=one_device())
    assert names(unknown.predict(cases["png"][0])[0].flags) == []


def test_stability_reports_a_changed_verdict(backbone_file: Path, photos: list[np.ndarray]) -> None:
    judge = Detector(small_bundle(backbone_file), batch_size=4, replicas=one_device())
    plain, tried = judge.predict(photos), judge.predict(photos, stability=True)
    assert [one.logit for one in plain] == [one.logit for one in tried]
    assert plain[0].stability is None
    for one in tried:
        turned = [
            judge.calibration.verdict(
                (np.log(p / (1 - p)) - judge.calibration.offset) / judge.calibration.scale
            )
            != one.verdict
            for p in one.stability.values()
        ]
        assert ("unstable" in names(one.flags)) == any(turned)
        assert list(one.stability) == ["JPEG 90", "JPEG 75", "resize 75 %"]


@pytest.mark.parametrize(
    "wrong", [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 3)), np.zeros((40, 40, 4), np.uint8)]
)
def test_objects_that_cannot_be_images_raise(detector: Detector, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="is not an image"):
        detector.predict([wrong])
    with pytest.raises(TypeError, match="int"):
        detector.predict(7)


# --- files --------------------------------------------------------------------------------------


def test_run_and_bundle_are_one_detector(
    trained: Detector, workdir: Path, backbone_file: Path, data_set: Path, tmp_path: Path
) -> None:
    card, path = tmp_path / "card.txt", tmp_path / "shared.safetensors"
    card.write_text("Trained on noise.\n")
    argv = ["bundle", str(workdir), "--out", str(path), "--card", str(card)]
    assert share.main(argv) == 0
    content = path.read_bytes()
    for private in (data_set, backbone_file.parent, workdir):
        assert os.fsencode(private) not in content
    shared = Detector.load(path, backbone=str(backbone_file), replicas=one_device())
    assert shared.card == "Trained on noise.\n"
    assert shared.seen == TrainingView(("PNG",), (40, 40)) == trained.seen
    assert shared.calibration == trained.calibration
    assert (shared.name.split()[1], shared.name.split()[0]) == (trained.name.split()[1], "shared")
    image = photo(np.random.default_rng(5), ai=True)
    assert shared.predict(image)[0].logit == trained.predict(image)[0].logit
    (tmp_path / backbone_file.name).write_bytes(backbone_file.read_bytes())
    assert Detector.load(path, replicas=one_device()).name == shared.name  # found next to it


def rewritten(path: Path, change: Callable[[dict[str, str], dict[str, np.ndarray]], None]) -> Path:
    """A detector file with another header or other arrays."""
    with safe_open(path, framework="numpy") as file:
        header, arrays = dict(file.metadata()), {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    change(header, arrays)
    made = path.with_name("rewritten.safetensors")
    save_file(arrays, made, metadata=header)
    return made


def settings_with(**fields: Any) -> Callable[[dict[str, str], dict[str, np.ndarray]], None]:
    """Sets fields of the settings in a header; ``data__resize`` is one of a section."""

    def change(header: dict[str, str], arrays: dict[str, np.ndarray]) -> None:
        settings = json.loads(header["settings"])
        for name, value in fields.items():
            section, _, field = name.rpartition("__")
            (settings[section] if section else settings)[field] = value
        header["settings"] = json.dumps(settings)

    return change


def test_a_detector_file_leads_to_no_other_folder(backbone_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine" / "small.safetensors"
    path.parent.mkdir()
    bundle.save(path, small_bundle(backbone_file))
    (tmp_path / "secret").mkdir()
    shutil.copy(backbone_file, tmp_path / "secret/other.safetensors")
    for name in ("../secret/other.safetensors", str(tmp_path / "secret/other.safetensors")):
        with pytest.raises(weights.BackboneError, match=r"needs the backbone other\.safetensors"):
            bundle.load(rewritten(path, settings_with(backbone=name)))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda header, _: header.update(num_held_out=str(10**12)), "num_held_out"),
        (settings_with(num_seeds=10**9), "num_seeds"),
        (settings_with(data__resize=10**6), "resize"),
        (settings_with(data__num_crops=10**8), "num_crops"),
        (settings_with(detector__hidden=10**9), "arrays do not fit"),
        (lambda _, arrays: arrays["held_out/logit"].fill(0), ""),
    ],
)
def test_sizes_in_a_detector_file_are_checked_before_they_are_used(
    backbone_file: Path, tmp_path: Path, change: Any, named: str
) -> None:
    bundle.save(tmp_path / "small.safetensors", small_bundle(backbone_file))
    path = rewritten(tmp_path / "small.safetensors", change)
    if not named:  # a harmless change is accepted
        bundle.load(path, backbone=str(backbone_file))
        return
    with pytest.raises(BundleError, match=named):
        bundle.load(path, backbone=str(backbone_file))


def test_a_full_disk_is_named(
    backbone_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle.save(tmp_path / "small.safetensors", small_bundle(backbone_file))

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    out = tmp_path / "out.safetensors"
    source = ["bundle", str(tmp_path / "small.safetensors"), "--backbone", str(backbone_file)]
    assert share.main([*source, "--out", str(out)]) == 2
    printed = capsys.readouterr().err
    assert str(out) in printed
    assert "No space left" in printed
    assert not list(tmp_path.glob("out*"))


def test_unusable_detectors_raise_and_name_the_problem(backbone_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    bundle.save(path, small_bundle(backbone_file))
    moved = tmp_path / "elsewhere" / "moved.safetensors"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    with pytest.raises(weights.BackboneError, match=r"needs the backbone small\.safetensors"):
        Detector.load(moved)
    other = tmp_path / "other.safetensors"
    weights.save(other, SMALL, random_backbone(SMALL, seed=1).params)
    with pytest.raises(CheckpointError, match="backbone"):
        Detector.load(path, backbone=str(other))
    with pytest.raises(weights.BackboneError, match="absent does not exist"):
        Detector.load(path, backbone="absent")
    with pytest.raises(BundleError, match="is not a detector"):
        Detector.load(backbone_file)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match="not a readable safetensors file"):
        Detector.load(path, backbone=str(backbone_file))
    with pytest.raises(BundleError, match="no detector nowhere"):
        Detector.load("nowhere")
    with pytest.raises(CheckpointError, match="checkpoints"):
        Detector.load(tmp_path)


def test_a_missing_bundled_detector_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bundle, "ASSETS", tmp_path)
    with pytest.raises(BundleError, match="'tiny'"):
        Detector.load("tiny")


def test_altered_heads_or_crops_are_another_detector(backbone_file: Path) -> None:
    one = small_bundle(backbone_file).detector
    params = jax.tree.map(lambda leaf: leaf * np.float32(1.001), one.heads.params)
    other = dataclasses.replace(one, heads=dataclasses.replace(one.heads, params=params))
    assert bundle.identity(one) == bundle.identity(small_bundle(backbone_file).detector)
    assert bundle.identity(one) != bundle.identity(other)
    data = dataclasses.replace(one.settings.data, eval_crops=9)
    nine = dataclasses.replace(one, settings=dataclasses.replace(one.settings, data=data))
    assert bundle.identity(one) != bundle.identity(nine)


def test_export_gives_the_same_logits(
    detector: Detector, photos: list[np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "small.stablehlo"
    record = export.save(path, detector, platforms=["cpu"])
    again = export.load(path)
    assert again.record == record
    assert record["preprocessing"]["resize"] == detector.transform.resize
    predicted = detector.predict(photos)
    crops = [detector.transform.cut(Image.fromarray(one)) for one in photos]
    ids = np.array([one.example_id for one in predicted], np.uint32)
    for count in (1, 5):  # any number of images
        found = again(np.stack(crops[:count]), ids[:count])
        expected = [one.logit for one in predicted[:count]]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(export.ExportError, match="do not match"):
        export.load(path)
    path.unlink()
    with pytest.raises(export.ExportError, match="is missing"):
        export.load(path)


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, cinemae_jax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_page_of_the_interface_is_true(
    backbone_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not (bundle.ASSETS / bundle.BUNDLED["tiny"]).is_file():
        bundle.save(tmp_path / bundle.BUNDLED["tiny"], small_bundle(backbone_file))
        (tmp_path / backbone_file.name).write_bytes(backbone_file.read_bytes())
        monkeypatch.setattr(bundle, "ASSETS", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "Replicas", one_device)  # eight would score eight images for one
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=options)
    assert found.attempted > 10
    assert found.failed == 0
