"""The main job end to end on a small data set, through its command line."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pyarrow.csv
import pytest

from cinemae_jax import ablate, evaluate, extract, pretrain, train, weights
from cinemae_jax.data import genimage
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import bundle, loading, scoring
from cinemae_jax.evaluation import scores
from cinemae_jax.features import splits
from cinemae_jax.model.cinemae import Backbone, random_backbone
from cinemae_jax.runtime import console
from cinemae_jax.runtime.checkpoints import CheckpointError, Checkpoints
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.settings import Settings
from cinemae_jax.training import metrics_log
from tests.conftest import SMALL, write_data_set
from tests.helpers.command_line import called
from tests.helpers.small_detector import small_bundle
from tests.helpers.small_run import (
    as_flags,
    evaluated,
    logged,
    results,
    small_config,
    small_run,
    small_settings,
    spoil,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]


@pytest.fixture(scope="module")
def config(data_set: Path, backbone_file: Path) -> Settings:
    return small_settings(data_set, backbone_file)


@pytest.fixture(scope="module")
def finished(data_set: Path, backbone_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the session's run, which tests here may evaluate and resume."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(small_run(data_set, backbone_file), workdir)
    return workdir


def test_a_run_learns_and_leaves_everything_it_promises(finished: Path) -> None:
    written = {path.name for path in finished.iterdir()}
    assert written == {
        "bank",
        "checkpoints",
        "metrics.jsonl",
        "eval.json",
        "eval.csv",
        "scores.csv",
        "report.html",
        "report.md",
        "receipt.json",
    }
    history = logged(finished)
    assert history[-1]["loss"] < history[0]["loss"]
    rows = results(finished)
    assert [row["name"] for row in rows] == ["gen_a", "gen_b", "mean"]
    assert rows[-1]["metrics"]["auc"]["value"] > 0.9  # noise against smoothness is easy


def test_every_image_has_a_score(finished: Path) -> None:
    table = pyarrow.csv.read_csv(finished / "scores.csv")
    assert len(table) == len(set(table["path"].to_pylist())) == 28
    assert table["logit"].null_count == 0


def test_scores_do_not_depend_on_batch_or_devices(
    config: Settings, finished: Path, tmp_path: Path
) -> None:
    detector = loading.load(finished, backbone=config.backbone)
    images = splits.read_data(config.data).test
    tables = []
    for batch_size, count in ((16, 8), (28, 1), (3, 1)):
        sized = dataclasses.replace(
            detector.settings,
            eval=dataclasses.replace(detector.settings.eval, batch_size=batch_size),
        )
        bad = BadImages(tmp_path / "bad_images.csv")
        replicas = Replicas(tuple(jax.devices()[:count]))
        resized = dataclasses.replace(detector, settings=sized)
        table = scores.score(resized, resized.online(images, replicas), replicas, bad)
        assert not bad.listed
        tables.append(table["logit"].to_numpy())
    np.testing.assert_allclose(tables[0], tables[1], atol=1e-4)
    np.testing.assert_allclose(tables[0], tables[2], atol=1e-4)


def test_the_best_checkpoint_is_the_one_with_the_least_validation_loss(
    config: Settings, finished: Path
) -> None:
    validated = [line for line in logged(finished) if "validation_loss" in line]
    assert len(validated) == 5
    best = min(validated, key=lambda line: line["validation_loss"])
    assert loading.load(finished, backbone=config.backbone).step == best["step"]
    last = loading.load(finished, which="last", backbone=config.backbone)
    assert last.step == logged(finished)[-1]["step"]


def test_a_run_resumes_from_whatever_a_kill_leaves(
    backbone_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves the files of its moment: a copy, taken before a line of the log is written."""
    root = write_data_set(tmp_path / "data")
    spoil(root, "train/ai/003.png", "train/nature/010.png", "val/ai/002.png")
    config = small_settings(root, backbone_file)
    write = metrics_log.Metrics.write

    def trained(name: str, *, copy: str = "", before_line: int = 0) -> Path:
        count = itertools.count(1)

        def copy_and_write(log: metrics_log.Metrics, step: int, **values: float) -> None:
            if next(count) == before_line:
                shutil.copytree(tmp_path / name, tmp_path / copy)
            write(log, step, **values)

        with monkeypatch.context() as patch:
            patch.setattr(metrics_log.Metrics, "write", copy_and_write)
            assert len(train.train(config, tmp_path / name)) == 3
        return tmp_path / name

    undisturbed = trained("undisturbed", copy="killed", before_line=3)
    killed = trained("killed", copy="killed again", before_line=2)
    for workdir in (killed, trained("killed again")):
        assert logged(workdir) == logged(undisturbed)
        assert results(workdir) == results(undisturbed)
        for name in ("bad_images.csv", "scores.csv"):
            assert (workdir / name).read_text() == (undisturbed / name).read_text()
    trained("killed again")  # a finished run is only evaluated again
    assert results(tmp_path / "killed again") == results(undisturbed)


def test_resuming_under_other_settings_is_refused(config: Settings, finished: Path) -> None:
    other = dataclasses.replace(config, seed=7)
    message = r"belongs to another run: settings.seed was 0, is 7\. Use"
    with pytest.raises(CheckpointError, match=message):
        train.train(other, finished)


def test_what_does_not_change_the_head_may_change(config: Settings, finished: Path) -> None:
    before = results(finished)
    threads = dataclasses.replace(config.data, num_threads=1)
    computed = dataclasses.replace(config.detector, attention="xla", run_layout="fold")
    config = dataclasses.replace(config, data=threads, detector=computed)
    train.train(config, finished)
    assert results(finished) == before
    stricter = dataclasses.replace(config.eval, fpr=0.3, bootstrap=7)
    train.train(dataclasses.replace(config, eval=stricter), finished)
    evaluated = json.loads((finished / "eval.json").read_text())
    assert (evaluated["calibration"]["fpr"], evaluated["settings"]["eval"]["bootstrap"]) == (0.3, 7)
    train.train(config, finished)


def test_a_run_that_was_never_validated_has_no_best_checkpoint(
    config: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "score_held_out", stop)  # at the end of the first epoch
    with pytest.raises(KeyboardInterrupt):
        train.train(config, tmp_path)
    assert loading.load(tmp_path, which="last", backbone=config.backbone).step == 4
    with pytest.raises(CheckpointError, match="no validated checkpoint yet"):
        loading.load(tmp_path, backbone=config.backbone)


def test_other_training_images_do_not_resume(
    config: Settings, finished: Path, tmp_path: Path
) -> None:
    root = write_data_set(tmp_path, train=23)
    data = dataclasses.replace(config.data, root=str(root))
    with pytest.raises(CheckpointError, match=r"another run: held_out_images .*train_images was"):
        train.train(dataclasses.replace(config, data=data), finished)


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(
    config: Settings, tmp_path: Path
) -> None:
    wild = dataclasses.replace(config.train, learning_rate=1e38)
    with pytest.raises(ValueError, match=r"loss is nan at step \d+: lower config.train.learning"):
        train.train(dataclasses.replace(config, train=wild), tmp_path)


def test_an_encoder_alone_needs_runs_without_masks(
    config: Settings, backbone: Backbone, tmp_path: Path
) -> None:
    encoder = dataclasses.replace(SMALL, decoder_depth=0)
    params = {n: v for n, v in backbone.params.items() if "decoder" not in n and n != "mask_token"}
    weights.save(tmp_path / "encoder.safetensors", encoder, params)
    config = dataclasses.replace(config, backbone=str(tmp_path / "encoder.safetensors"))
    with pytest.raises(weights.BackboneError, match=r"encoder.safetensors has no decoder"):
        train.train(config, tmp_path / "run")
    without = dataclasses.replace(config.detector, num_runs=0, fusion="global")
    config = dataclasses.replace(config, detector=without)
    with pytest.raises(weights.BackboneError, match=r"config.features.num_runs is 3"):
        train.train(config, tmp_path / "run")
    none = dataclasses.replace(config.features, num_runs=0)
    train.train(dataclasses.replace(config, features=none), tmp_path / "run")
    assert len(results(tmp_path / "run")) == 3


def test_checkpoints_of_another_job_are_refused(config: Settings, tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, {"train_state": np.ones(3)}, {"kind": "pretraining"})
    for job in (loading.load, lambda folder: train.train(config, folder)):
        with pytest.raises(CheckpointError, match="of 'pretraining', not of a detector"):
            job(tmp_path)


def test_a_checkpoint_of_another_backbone_is_refused(
    config: Settings, finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    weights.save(path, SMALL, random_backbone(SMALL, seed=1).params)
    with pytest.raises(CheckpointError, match=r"another backbone"):
        loading.load(finished, backbone=str(path))
    with pytest.raises(CheckpointError, match=r"another backbone"):
        train.train(dataclasses.replace(config, backbone=str(path)), finished)


def test_a_named_detector_finds_its_backbone_by_the_config(
    config: Settings, tmp_path: Path
) -> None:
    made = small_bundle(Path(config.backbone))
    detector = dataclasses.replace(
        made.detector, settings=dataclasses.replace(made.detector.settings, backbone="gone.st")
    )
    bundle.save(tmp_path / "it.safetensors", dataclasses.replace(made, detector=detector))
    named = dataclasses.replace(config.eval, detector=str(tmp_path / "it.safetensors"), fpr=0.4)
    config = dataclasses.replace(config, eval=named)
    assert evaluated(config, tmp_path / "run") == []
    promised = json.loads((tmp_path / "run/eval.json").read_text())["calibration"]["fpr"]
    assert promised == detector.settings.eval.fpr != 0.4
    with pytest.raises(weights.BackboneError, match=r"gone\.st"):
        evaluated(dataclasses.replace(config, backbone="nowhere"), tmp_path / "run")


def test_corrupt_images_are_named_and_counted_and_the_run_goes_on(
    config: Settings, tmp_path: Path
) -> None:
    root = write_data_set(tmp_path / "data")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    data = splits.read_data(config.data)
    learned, held_out = (
        part.table["path"][0].as_py().split("imagenet_ai_test/")[1]
        for part in (data.train, data.validation)
    )
    spoiled = [learned, held_out, "val/nature/001.png"]
    spoil(root, *spoiled)
    bad = train.train(config, tmp_path / "run")
    assert [image.path.split("imagenet_ai_test/")[1] for image in bad] == sorted(spoiled)
    listed = pyarrow.csv.read_csv(tmp_path / "run/bad_images.csv").to_pylist()
    assert [row["path"] for row in listed] == [image.path for image in bad]
    assert all("damaged image" in row["error"] for row in listed)
    again = evaluated(config, tmp_path / "run")
    assert [Path(image.path).name for image in again] == ["001.png"]
    assert len(pyarrow.csv.read_csv(tmp_path / "run/bad_images.csv")) == 3
    other = write_data_set(tmp_path / "other")
    spoil(other, "val/nature/002.png")
    elsewhere = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(other)))
    assert len(evaluated(elsewhere, tmp_path / "run")) == 1
    assert len(train.train(config, tmp_path / "run")) == 3  # the other set's is not its own
    row = results(tmp_path / "run")[0]
    assert (row["nature"], row["ai"], row["bad"]) == (6, 7, 1)
    table = pyarrow.csv.read_csv(tmp_path / "run/scores.csv")
    assert len(table) == 28
    assert table["probability"].null_count == 1


def test_evaluate_repeats_the_table_of_training(
    config: Settings, finished: Path, data_set: Path
) -> None:
    """From the images themselves, where training had scored them from its bank."""
    before = results(finished)
    assert evaluated(config, finished) == []
    for one, two in zip(results(finished), before, strict=True):
        assert one["name"] == two["name"]
        for name, estimate in one["metrics"].items():
            assert estimate == pytest.approx(two["metrics"][name], abs=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.data.root=/nowhere"], "/nowhere is not a folder"),
        (["config.train.epochs=3"], "did you mean --config.train.epochs=3?"),
        (["--config.data.train_generators=('gen_x',)"], "gen_a, gen_b"),
        (["--config.train.batch_size=12"], "config.train.batch_size 12 is not divisible by the 8"),
        (["--config.trian.epochs=3"], "trian"),
        (["--config.train.epochs=many"], "many"),
        (["--config.backbone=/nowhere.safetensors"], "/nowhere.safetensors does not exist"),
        (["--config.detector.score=best"], "use one of context_nll"),
        (["--config=/nowhere.py"], "nowhere.py"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_two(
    data_set: Path,
    backbone_file: Path,
    tmp_path: Path,
    overrides: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fields = as_flags(small_config(data_set, backbone_file).to_dict())
    command = ["--config=configs/sd14.py", f"--workdir={tmp_path}", *fields, *overrides]
    assert called(train.main, *command) == console.USAGE
    printed = capfd.readouterr()
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_an_empty_workdir_cannot_be_evaluated(config: Settings, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="train first"):
        evaluated(config, tmp_path)


@pytest.mark.parametrize("job", [ablate, evaluate, extract, pretrain, train])
def test_help_says_what_a_job_does(job: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(job.main, "--help") == console.OK
    assert f"python -m {job.__name__}" in capsys.readouterr().out


def test_a_torn_last_line_of_the_log_is_dropped(tmp_path: Path) -> None:
    log = metrics_log.Metrics(tmp_path, 0)
    log.write(1, loss=0.5)
    log.write(2, loss=float("nan"))
    with open(log.path, "a") as file:
        file.write('{"step": 3, "lo')
    metrics_log.Metrics(tmp_path, 2)
    assert logged(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]


def test_tfds_gives_the_same_numbers_as_the_folder(config: Settings, tmp_path: Path) -> None:
    root = write_data_set(tmp_path / "data", train=8, val=3)
    spoil(root, "train/ai/003.png", "val/nature/001.png")
    data = dataclasses.replace(config.data, root=str(root))
    bad = train.train(dataclasses.replace(config, data=data), tmp_path / "folder")
    command = ["--manual-dir", str(root), "--data-dir", str(tmp_path / "tfds")]
    assert genimage.main(command) == 0
    data = dataclasses.replace(data, root=str(tmp_path / "tfds"), source="tfds")
    from_tfds = train.train(dataclasses.replace(config, data=data), tmp_path / "records")
    assert logged(tmp_path / "records") == logged(tmp_path / "folder")
    assert results(tmp_path / "records") == results(tmp_path / "folder")
    assert [image.error for image in from_tfds] == [image.error for image in bad]


def test_quarantined_images_are_left_out_and_counted(config: Settings, tmp_path: Path) -> None:
    root = write_data_set(tmp_path / "data", train=8, val=3)
    spoil(root, "train/ai/003.png")
    listed = tmp_path / "quarantine.csv"
    listed.write_text("path,reason\ngen_a/imagenet_ai_test/train/ai/003.png,damaged\n")
    data = dataclasses.replace(config.data, root=str(root), quarantine=str(listed))
    assert splits.scan(data).skipped == {"quarantined": 1}
    assert train.train(dataclasses.replace(config, data=data), tmp_path / "run") == []
    saved = json.loads((tmp_path / "run/eval.json").read_text())
    assert saved["left_out"] == {"quarantined": 1}
