"""Ablations: what is refused, what is shared, what is kept, and what may move."""

import dataclasses
import importlib
import json
import pkgutil
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow.csv
import pytest

import cinemae_jax.configs.ablation
from cinemae_jax import ablate, train, typed, weights
from cinemae_jax.ablation import effects, plan, running, table, timing
from cinemae_jax.ablation.effects import Finished, RowScores
from cinemae_jax.ablation.plan import Ablation
from cinemae_jax.detector import loading, trained
from cinemae_jax.evaluation import metrics
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.metrics import ScoredImages
from cinemae_jax.features import extraction, filling, splits
from cinemae_jax.features.run import Run
from cinemae_jax.model import masking
from cinemae_jax.model.cinemae import (
    Backbone,
    extract_features,
    num_params,
    random_backbone,
    unfrozen_features,
)
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.model.head import HeadState
from cinemae_jax.model.mae import normalize_images
from cinemae_jax.runtime import console
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.runtime.preemption import Preempted
from cinemae_jax.settings import Settings
from cinemae_jax.training import fitting, metrics_log, unfrozen
from tests.conftest import SMALL
from tests.helpers.command_line import called
from tests.helpers.small_detector import small_bundle
from tests.helpers.small_run import small_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]

ONE_DEVICE = Replicas((jax.devices()[0],))
SWIFT = {"train.epochs": 2, "features.num_runs": 3, "num_seeds": 2, "eval.bootstrap": 20}
WILD = {"name": "wild", "overrides": {"train.learning_rate": 1e38}}
BANDS = {"num_seeds": 1, "detector.anomaly": "bands"}
ROWS = (
    {"name": "K = 2", "overrides": {"detector.num_runs": 2}, "reported": 95.96},
    WILD,
    {"name": "K = 0", "overrides": {"detector.num_runs": 0, "detector.fusion": "global"}},
)


@pytest.fixture(scope="module")
def base(data_set: Path, backbone_file: Path) -> dict[str, Any]:
    config = small_config(data_set, backbone_file).to_dict()
    for field, value in SWIFT.items():
        config = plan.override(config, field, value)
    return config


def planned(base: dict[str, Any], *rows: dict[str, Any]) -> Ablation:
    optimizer = {"learning_rate": 1e-3, "weight_decay": 0.05}
    return plan.read({"title": "A", "base": base, "unfrozen": optimizer, "rows": rows})


@pytest.fixture(scope="module")
def done(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("frozen")
    assert running.ablate(planned(base, *ROWS), workdir, ONE_DEVICE) == ["wild"]
    return workdir


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"overrides": {"detector.num_run": 1}}, "unknown field 'detector.num_run'"),
        ({"overrides": {"detector.num_run": 1}}, "did you mean detector.num_runs"),
        ({"overrides": {"detector": {}}}, "unknown field 'detector'"),
        ({"overrides": {"detector.fusion": "added"}}, "additive"),
        ({"overrides": {"detector.num_runs": 0}}, "fusion"),
        ({"overrides": {"detector.num_runs": "1"}}, "config.base.detector.num_runs"),
        ({"overrides": {"features.num_runs": 1}}, "config.detector.num_runs"),
        ({"override": {}}, "unknown override"),
        ({"unfreeze": "head", "overrides": {"num_seeds": 1}}, "encoder, decoder, both"),
        ({"unfreeze": "both"}, "override num_seeds"),
        ({"unfreeze": "both", "overrides": BANDS}, "detector.anomaly"),
        ({"control": "noise"}, "random weights, shuffled scores"),
        ({"control": "random weights", "overrides": {"features.source": "online"}}, "bank"),
        ({"control": "shuffled scores", "overrides": {"detector.sensitivity": "patch"}}, "run"),
        ({"name": "k 2"}, "another row"),
    ],
)
def test_a_wrong_row_is_named_and_refused(
    base: dict[str, Any], row: dict[str, Any], message: str
) -> None:
    row = {"name": "odd"} | row
    with pytest.raises(ValueError, match=rf"row {row['name']!r}: .*{message}"):
        planned(base, ROWS[0], row)


def test_all_wrong_rows_are_named_at_once(base: dict[str, Any]) -> None:
    bad = [{"name": name, "overrides": {"trian.epochs": 1}} for name in ("one", "two")]
    with pytest.raises(ValueError, match=r"row 'one'.*row 'two'"):
        planned(base, *bad)


def test_an_override_changes_nothing_else(base: dict[str, Any]) -> None:
    changed = planned(base, {"name": "a", "overrides": {"data.augment.jpeg_quality": (30, 40)}})
    before = typed.read(base, Settings)
    augment = dataclasses.replace(before.data.augment, jpeg_quality=(30, 40))
    expected = dataclasses.replace(before, data=dataclasses.replace(before.data, augment=augment))
    assert changed.rows[0].config == expected


def test_every_config_file_is_an_ablation() -> None:
    names = [module.name for module in pkgutil.iter_modules(cinemae_jax.configs.ablation.__path__)]
    assert len(names) == 12
    for name in names:
        config = importlib.import_module(f"cinemae_jax.configs.ablation.{name}").get_config()
        config.base.data.root = "somewhere"
        found = plan.read(config.to_dict())
        assert len({repr((row.config, row.unfrozen, row.control)) for row in found.rows}) == len(
            found.rows
        )


def test_controls_change_the_backbone_or_the_scores_alone(
    base: dict[str, Any], backbone: Backbone, tmp_path: Path
) -> None:
    hybrid = {"detector.fusion": "hybrid", "detector.frequency": "radial", "num_seeds": 1}
    names = ("random weights", "shuffled scores")
    rows = [{"name": n, "overrides": hybrid, "control": n} for n in names]
    alike = {"name": "alone", "overrides": hybrid | {"detector.fusion": "frequency"}}
    made = planned(base, alike, *rows)
    assert running.ablate(made, tmp_path, ONE_DEVICE) == []
    with_random = loading.load(tmp_path / "random_weights").backbone
    assert with_random.config == backbone.config
    assert with_random.sha256 != weights.load(base["backbone"]).sha256
    assert loading.load(tmp_path / "shuffled_scores").backbone.sha256 != with_random.sha256
    config = made.rows[0].config
    data = splits.read_data(config.data)
    run = Run.start(tmp_path / "run", ONE_DEVICE)
    plain = filling.open_sets(made.rows[1].config, data, backbone, run)
    shuffled = running._shuffled(plain, 0)
    for name in ("train", "test"):
        before, after = (getattr(s, name).stored.columns for s in (plain, shuffled))
        np.testing.assert_array_equal(before["frequency"], after["frequency"])
        np.testing.assert_array_equal(before["f_global"], after["f_global"])
        assert not np.array_equal(before["mismatch"], after["mismatch"])
        rows_of = [
            np.sort(s["mismatch"].reshape(len(s["mismatch"]), -1).sum(1)) for s in (before, after)
        ]
        np.testing.assert_array_equal(*rows_of)


def test_a_typo_ends_the_command_before_anything_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.py"
    path.write_text(
        "from cinemae_jax.configs.ablation import ablation\n"
        "def get_config(base):\n"
        "    return ablation('Odd', [{'name': 'odd', 'overrides': {'trian.epochs': 1}}], base)\n"
    )
    command = (f"--config={path}:demo", f"--workdir={tmp_path / 'run'}")
    assert called(ablate.main, *command) == console.USAGE
    printed = capfd.readouterr().err
    assert "row 'odd': unknown field 'trian.epochs'" in printed
    assert len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


# --- rows ---------------------------------------------------------------------------------------


def table_of(workdir: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((workdir / "ablation.json").read_text())["rows"]
    return {row["row"]: row for row in rows}


def test_a_failing_row_has_a_reason_and_the_others_have_numbers(done: Path) -> None:
    rows = table_of(done)
    assert list(rows) == [row["name"] for row in ROWS]
    for name, row in rows.items():
        if name == "wild":
            assert "config.train.learning_rate" in row["failure"]
            assert row["accuracy"] is None
        else:
            assert row["failure"] is None
            assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
            assert row["seeds"] == 2
            assert row["training_seconds"] > 0
    assert rows["K = 2"]["auc_difference"] is None
    difference = rows["K = 0"]["auc"] - rows["K = 2"]["auc"]
    assert rows["K = 0"]["auc_difference"] == pytest.approx(difference)


def test_what_is_written_agrees(done: Path) -> None:
    assert {"ablation.md", "ablation.csv", "ablation.svg"} <= {p.name for p in done.iterdir()}
    page = (done / "ablation.md").read_text()
    table = pyarrow.csv.read_csv(done / "ablation.csv")
    assert table["row"].to_pylist() == [row["name"] for row in ROWS]
    for row in table_of(done).values():
        assert row["failure"] or f"{100 * row['accuracy']:.1f}" in page
    assert "Row 'wild' failed: " in page
    assert "| 96.0 |" in page  # reported


def test_rows_share_a_bank_if_their_features_are_the_same(
    base: dict[str, Any], done: Path, backbone_file: Path
) -> None:
    assert len(list((done / "banks").iterdir())) == 1
    rows = (
        ROWS[0],
        {"name": "gate", "overrides": {"detector.fusion": "gate", "train.epochs": 3}},
        {"name": "pooling", "overrides": {"detector.pooling": "mean"}},
        {"name": "crop", "overrides": {"data.resize": 40}},
        {"name": "held out", "overrides": {"data.holdout": 0.5}},
        {"name": "R", "overrides": {"features.num_runs": 4}},
    )
    bench, frozen = running.Bench(done / "banks", ONE_DEVICE), weights.load(backbone_file)
    folders = [
        running.shared_folder(
            filling.banks(config, bench.data(config.data), frozen, bench.banks), bench.banks
        )
        for config in (row.config for row in planned(base, *rows).rows)
    ]
    assert folders[0].is_dir()
    assert folders[0] == folders[1]
    assert len(set(folders[1:])) == len(folders) - 1


def test_a_row_is_what_train_makes_of_its_settings(
    base: dict[str, Any], done: Path, tmp_path: Path
) -> None:
    row = planned(base, *ROWS).rows[2]
    (bank,) = (done / "banks").iterdir()
    features = dataclasses.replace(row.config.features, bank=str(bank))
    train.train(dataclasses.replace(row.config, features=features), tmp_path, ONE_DEVICE)
    alone = json.loads((tmp_path / "eval.json").read_text())
    in_table = json.loads((done / row.folder / "eval.json").read_text())
    assert alone["results"] == in_table["results"]
    mean = alone["over_seeds"]["mean"]["accuracy"]
    found = table_of(done)[row.name]
    assert found["accuracy"] == pytest.approx(mean["mean"])
    assert found["accuracy_deviation"] == pytest.approx(mean["deviation"])


def test_finished_rows_are_not_computed_again(
    base: dict[str, Any], done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, ran = table_of(done), []

    def only_noted(config: Settings, *_: Any) -> None:
        ran.append(config.train.learning_rate)
        raise ValueError("the loss is nan")

    monkeypatch.setattr(fitting, "fit", only_noted)
    assert running.ablate(planned(base, *ROWS), done, ONE_DEVICE) == ["wild"]
    assert ran == [1e38]
    after = table_of(done)
    assert {n: r for n, r in after.items() if n != "wild"} == {
        n: r for n, r in before.items() if n != "wild"
    }


def test_an_unexpected_error_shows_where_it_arose_and_spares_the_other_rows(
    base: dict[str, Any],
    done: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("no such column")

    monkeypatch.setattr(fitting, "fit", broken)
    assert running.ablate(planned(base, *ROWS), done, ONE_DEVICE) == ["wild"]
    assert "in broken" in capsys.readouterr().err
    assert table_of(done)["K = 0"]["failure"] is None


def test_a_preempted_ablation_stops(
    base: dict[str, Any], done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told_to_stop(*_: Any) -> None:
        raise Preempted("at step 3")

    monkeypatch.setattr(fitting, "fit", told_to_stop)
    with pytest.raises(Preempted):
        running.ablate(planned(base, *ROWS), done, ONE_DEVICE)


def test_a_changed_row_is_not_taken_for_the_finished_one(base: dict[str, Any], done: Path) -> None:
    kept = (done / "k_0" / "checkpoints").stat().st_mtime_ns
    other = {"name": "K = 0", "overrides": ROWS[2]["overrides"] | {"detector.hidden": 9}}
    assert running.ablate(planned(base, other), done, ONE_DEVICE) == ["K = 0"]
    assert "detector.hidden" in table_of(done)["K = 0"]["failure"]
    assert (done / "k_0" / "checkpoints").stat().st_mtime_ns == kept


def test_no_frozen_row_writes_to_the_backbone(
    done: Path, backbone: Backbone, backbone_file: Path
) -> None:
    assert not list(done.rglob("*.safetensors"))
    kept = weights.load(backbone_file).params
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, jax.device_get(backbone.params)))


# --- unfrozen -----------------------------------------------------------------------------------


def test_an_unfrozen_row_leaves_a_detector_with_a_backbone_of_its_own(
    base: dict[str, Any], tmp_path: Path, backbone: Backbone, backbone_file: Path
) -> None:
    before = backbone_file.read_bytes()
    row = {"name": "decoder", "unfreeze": "decoder", "overrides": {"num_seeds": 1}}
    assert running.ablate(planned(base, row), tmp_path, ONE_DEVICE) == []
    detector = loading.load(tmp_path / "decoder")
    assert detector.backbone.sha256 != weights.load(backbone_file).sha256
    assert moved(backbone.params, detector.backbone.params)[0] == {"decoder"}
    _, decoder = unfrozen.split(backbone.params, "encoder")
    of_both = num_params(detector.heads.params) + num_params(decoder)
    assert table_of(tmp_path)["decoder"]["trained_parameters"] == of_both
    assert table_of(tmp_path)["decoder"]["seeds"] == 1
    assert backbone_file.read_bytes() == before


def moved(before: Any, now: Any) -> tuple[set[str], set[str]]:
    """Parts of a backbone in which anything has changed, and names of what has not."""
    parts, same = set(), set()
    leaves = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(now), strict=True)
    for (path, old), new in leaves:
        name = "/".join(entry.key for entry in path)
        if np.array_equal(old, new):
            same.add(name)
        else:
            in_decoder = name.startswith("decoder") or name == "mask_token"
            parts.add("decoder" if in_decoder else "encoder")
    return parts, same


@pytest.fixture(scope="module")
def thin() -> Backbone:
    return random_backbone(dataclasses.replace(SMALL, depth=1, decoder_depth=1))  # compiles faster


def fitted(base: dict[str, Any], thin: Backbone, workdir: Path) -> unfrozen.Tuned:
    """Trains both parts; the held-out images get better with every epoch."""
    config = planned(base, {"name": "x", "overrides": {"num_seeds": 1}}).rows[0].config
    heads = trained.head_template(config, thin)
    ones = jax.tree.map(np.ones_like, heads.normalizer)
    data = splits.read_data(config.data)
    epochs = iter((0.5, 0.4))
    held_out = trained.HeldOut.unknown(len(data.validation), 1)
    return unfrozen.fit(
        config,
        unfrozen.Unfrozen("both", 1e-3, 0.05),
        data,
        thin,
        HeadState(heads.params, ones),
        lambda backbone, heads: (held_out, {"validation_loss": next(epochs)}),
        Run.start(workdir, ONE_DEVICE),
    )


def test_both_parts_are_the_whole_backbone(backbone: Backbone) -> None:
    encoder, decoder = unfrozen.split(backbone.params, "encoder")
    assert set(encoder) | set(decoder) == set(backbone.params)
    swapped = unfrozen.split(backbone.params, "decoder")
    assert [set(part) for part in swapped] == [set(decoder), set(encoder)]
    whole, nothing = unfrozen.split(backbone.params, "both")
    assert (set(whole), nothing) == (set(backbone.params), {})
    assert {"cls_token", "pos_embed", "patch_embed"} <= encoder.keys()
    assert {"mask_token", "decoder_pos_embed", "decoder_pred"} <= decoder.keys()


def test_unfrozen_features_are_those_of_the_frozen_backbone(backbone: Backbone) -> None:
    config = DetectorConfig(num_runs=2, sensitivity="patch")
    images = jax.random.randint(jax.random.key(1), (3, 32, 32, 3), 0, 256).astype(jnp.uint8)
    keys = masking.example_keys(jax.random.key(0), jnp.arange(3, dtype=jnp.uint32))
    runs = jnp.broadcast_to(jnp.arange(2), (3, 2))

    @jax.jit
    def free(params: Any) -> Any:
        pixels = normalize_images(images)
        return unfrozen_features(params, SMALL, pixels, keys, runs, config)

    @jax.jit
    def frozen(params: Any) -> Any:
        given = Backbone(params, SMALL)
        return extract_features(given, images, keys, runs, config)

    # the same operations in the same order
    jax.tree.map(np.testing.assert_array_equal, free(backbone.params), frozen(backbone.params))


def test_one_device_and_eight_take_the_same_unfrozen_step(
    base: dict[str, Any], thin: Backbone
) -> None:
    config = planned(base, {"name": "x", "overrides": {"num_seeds": 1}}).rows[0].config
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 2, 32, 32, 3), dtype=np.uint8),  # two crops
        "example_id": np.arange(16, dtype=np.uint32),
        "epoch": np.zeros(16, np.int32),
        "label": (np.arange(16) % 2).astype(np.int32),
        "valid": np.arange(16) != 3,  # devices have different shares
    }
    sgd = {"head": optax.sgd(0.1), "backbone": optax.sgd(0.1)}
    heads = trained.head_template(config, thin)
    head = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f"), heads.params)
    ones = jax.tree.map(np.ones_like, heads.normalizer)
    params = {"head": head, "backbone": thin.params}
    state = unfrozen.State(params, {name: tx.init(params[name]) for name, tx in sgd.items()})
    results = []
    for count in (1, 8):
        replicas = Replicas(tuple(jax.devices()[:count]))
        step = unfrozen.make_step(config.detector, thin.config, sgd, extraction.first_runs(2))
        step_fn = replicas.pmap_step(step, replicated=4)
        given = replicas.replicate((state, {}, ones, jax.random.key(0)))
        new, loss = step_fn(*given, replicas.shard(batch, unfrozen.INPUTS))
        results.append(jax.device_get((new.params, loss)))
    assert moved(thin.params, results[0][0]["backbone"])[0] == {"encoder", "decoder"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *results)  # sums' order


def test_unfrozen_training_moves_all_kernels_and_goes_on_where_it_was_stopped(
    base: dict[str, Any], thin: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = fitted(base, thin, tmp_path / "undisturbed")
    _, same = moved(thin.params, undisturbed.params)
    assert same <= {"pos_embed", "decoder_pos_embed"}  # tables, which get no gradient
    count, write = 0, metrics_log.Metrics.write

    def full_disk(self: metrics_log.Metrics, step: int, **values: float) -> None:
        nonlocal count
        count += 1
        if count == 3:  # the last one of the first epoch
            raise OSError("no space left")
        write(self, step, **values)

    with monkeypatch.context() as patch:
        patch.setattr(metrics_log.Metrics, "write", full_disk)
        with pytest.raises(OSError, match="no space left"):
            fitted(base, thin, tmp_path / "stopped")
    resumed = fitted(base, thin, tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, undisturbed.params)
    jax.tree.map(np.testing.assert_array_equal, resumed.heads, undisturbed.heads)
    logs = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("undisturbed", "stopped")]
    assert logs[0] == logs[1]


# --- the table ----------------------------------------------------------------------------------


def scores(seed: int, heads: int = 1) -> RowScores:
    rng = np.random.default_rng(seed)
    label = np.arange(60) % 2
    logit = rng.normal(size=(60, heads)) + label[:, None]
    logit[7] = np.nan
    generator = np.where(np.arange(60) < 24, "a", "b")
    return RowScores(np.arange(60).astype(str), generator, label, logit)


def measured(found: RowScores) -> ScoredImages:
    return ScoredImages(found.label, found.logit[:, 0], found.generator, found.scored)


def test_values_and_differences_are_those_of_metrics() -> None:
    first, second = scores(0), scores(1)
    options = {"bootstrap": 50, "confidence": 0.9, "seed": 3}
    rows = {name: Finished(s, {}, False, 1) for name, s in (("x", first), ("y", second))}
    lines = effects.lines(rows, {"x": None, "y": None}, **options)
    resampling = Resampling(**options)
    expected = metrics.evaluate(measured(second), resampling)[-1]
    paired = metrics.compare(measured(first), second.logit[:, 0], resampling)[-1]
    for name in effects.METRICS:
        for found, wanted in (
            (lines[1].values[name], expected.metrics[name]),
            (lines[1].differences[name], paired.metrics[name]),
        ):
            assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(wanted))
    assert lines[0].differences == {}


def test_the_value_of_several_heads_is_their_mean() -> None:
    both = scores(0, heads=2)
    alone = [dataclasses.replace(both, logit=both.logit[:, i : i + 1]) for i in (0, 1)]
    found = effects.replicates(both, times=9, seed=0)
    for i, one in enumerate(alone):
        np.testing.assert_allclose(found[i], effects.replicates(one, times=9, seed=0)[0])
    rows = {"x": Finished(both, {}, False, 1)}
    (line,) = effects.lines(rows, {"x": None}, bootstrap=9, confidence=0.9, seed=0)
    accuracy = found[:, 0, 0]
    assert line.values["accuracy"].value == pytest.approx(accuracy.mean())
    assert line.deviations["accuracy"] == pytest.approx(accuracy.std(ddof=1))


def test_a_generator_that_nobody_could_read_does_not_leave_the_mean() -> None:
    found = scores(0)
    found.logit[found.generator == "a"] = np.nan
    options = {"bootstrap": 9, "confidence": 0.9, "seed": 0}
    nothing = dataclasses.replace(found, logit=np.full_like(found.logit, np.nan))
    rows = {name: Finished(s, {}, False, 1) for name, s in (("x", found), ("y", nothing))}
    for line in effects.lines(rows, dict.fromkeys(rows), **options):
        assert [np.isnan(e.value) for e in line.values.values()] == [True, True]
    of_all = metrics.evaluate(measured(found), Resampling(**options))[-1]
    assert np.isnan(of_all.metrics["auc"].value)


def test_other_images_are_not_compared() -> None:
    first, second = scores(0), scores(1)
    fewer = RowScores(*(getattr(second, f.name)[1:] for f in dataclasses.fields(RowScores)))
    rows = {name: Finished(s, {}, False, 1) for name, s in (("x", first), ("y", fewer))}
    reported = {"x": None, "y": None}
    lines = effects.lines(rows, reported, bootstrap=9, confidence=0.9, seed=0)
    assert lines[1].differences == {}
    assert lines[1].values["auc"].value > 0.5


def line(trained_on: tuple[str, ...], milliseconds: float | None = None) -> effects.Line:
    """Two thirds right on a, everything right on b and c, nothing right on d."""
    generator = np.repeat(["a", "b", "c", "d"], 6)
    label = np.arange(24) % 2
    right = np.where(label == 1, 1.0, -1.0)
    logit = np.where(generator == "d", -right, right)
    logit[:2] *= -1
    found = RowScores(np.arange(24).astype(str), generator, label, logit[:, None])
    row = Finished(found, dict.fromkeys(effects.PHASES, 1.0), False, 1, trained_on, milliseconds)
    (one,) = effects.lines({"x": row}, {"x": None}, bootstrap=9, confidence=0.9, seed=0)
    return one


def test_the_second_table_shows_training_generators_first_and_the_drop() -> None:
    one = line(("c",))
    header, cells = table.by_generator([one, effects.Line("failed", None, "no reason")])
    assert header[:5] == ["row", "c (trained on)", "a", "b", "d"]
    assert cells == ["x", "100.0", "66.7", "100.0", "0.0", "100.0", "55.6", "44.4", "0.0", "47.1"]
    mean = one.values["accuracy"].value
    assert np.mean(list(one.accuracy.values())) == pytest.approx(mean)
    (said,) = table.drops([one])
    assert "44.4 points" in said
    assert table.drops([line(("a",))]) == []
    page = table.as_markdown("A", [one], 0.9)
    assert "| c (trained on) |" in page
    assert said in page
    record = table.as_record(one)
    assert record["accuracy_drop"] == pytest.approx(4 / 9)
    assert record["worst_generator"] == "d"


def test_the_time_per_image_is_a_column_only_if_it_was_measured() -> None:
    timed, untimed = line(("a",), 12.345), line(("a",))
    assert "ms/image" not in table.as_text("A", [untimed], 0.9)
    page = table.as_markdown("A", [timed, untimed], 0.9)
    assert [row.split(" | ")[-1] for row in page.splitlines()[2:6]] == [
        "ms/image |",
        "--: |",
        "12.3 |",
        "– |",
    ]


def test_the_fastest_repetition_counts_and_the_warm_up_does_not(
    backbone_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = small_bundle(backbone_file).detector
    readings = iter([0, 100, 0, 6, 0, 4, 0, 5])
    clock = types.SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr(timing, "time", clock)
    found = timing.milliseconds_per_image(detector, ONE_DEVICE)
    images = timing.BATCHES * detector.settings.eval.batch_size
    assert found == pytest.approx(1000 * 4 / images)
    assert next(readings, None) is None


def test_a_timed_row_notes_its_milliseconds(
    base: dict[str, Any], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "milliseconds_per_image", lambda detector, replicas: 7.5)
    optimizer = {"learning_rate": 1e-3, "weight_decay": 0.05}
    (bank,) = (done / "banks").iterdir()
    base = plan.override(base, "features.bank", str(bank.parent))
    config = {"title": "A", "base": base, "unfrozen": optimizer, "rows": ROWS[2:], "timed": True}
    assert running.ablate(plan.read(config), tmp_path, ONE_DEVICE) == []
    assert table_of(tmp_path)["K = 0"]["milliseconds_per_image"] == 7.5
    assert "ms/image" in (tmp_path / "ablation.md").read_text()
    assert table_of(done)["K = 0"]["milliseconds_per_image"] is None
