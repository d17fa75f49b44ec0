"""Statistics under two draws of masks agree with those that the detector's head reads."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cinemae_jax import main
from cinemae_jax.audit import conditions, draws, sections
from cinemae_jax.audit.draws import NAMES, SOURCES, Draws
from cinemae_jax.audit.options import AuditOptions
from cinemae_jax.data import catalog
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import loading
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import scores, signal
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.signal import CONTROL, MEAN, NLL
from cinemae_jax.model.config import STATISTICS
from tests.helpers.small_detector import one_device, small_bundle
from tests.helpers.small_run import small_run

Measured = tuple[TrainedDetector, Catalog, Draws, draws.Found, BadImages]


@pytest.fixture(scope="module")
def measured(
    data_set: Path, backbone_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    """A detector with four crops, its images, and what the draws say of them."""
    detector = small_bundle(backbone_file, eval_crops=4, root=str(data_set)).detector
    other_seed = dataclasses.replace(detector.settings, seed=1)  # of the control's random weights
    detector = dataclasses.replace(detector, settings=other_seed)
    images = conditions.sample(catalog.scan(data_set).select(split="val"), 3)
    bad = BadImages(tmp_path_factory.mktemp("draws") / "bad.csv")
    measure = Draws(detector, one_device(), bad)
    return detector, images, measure, measure(images, {"raw": conditions.unchanged})["raw"], bad


def column(found: draws.Found, source: str, name: tuple[str, str]) -> np.ndarray:
    return found.drawn.values[source][:, :, NAMES.index(name)]


def test_the_first_draw_is_what_the_head_reads(measured: Measured) -> None:
    detector, images, _, found, bad = measured
    table = scores.score(detector, detector.online(images, one_device()), one_device(), bad)
    for statistic in STATISTICS:
        own = column(found, "MAE", (detector.settings.detector.score, statistic))
        np.testing.assert_allclose(own[:, 0], table[statistic].to_numpy(), rtol=1e-4, atol=1e-5)


def test_the_second_draw_has_other_masks(measured: Measured) -> None:
    found = measured[3]
    for name in ((NLL, MEAN), (NLL, "perturbation_sensitivity")):
        own = column(found, "MAE", name)
        assert (own[:, 0] != own[:, 1]).all()


def test_disjoint_draws_come_from_different_groups(measured: Measured) -> None:
    """The first is that of every score."""
    detector, images, measure, found, bad = measured
    other = measure.by_masking(images, found.drawn)
    assert list(other.values) == ["random", "disjoint", "stratified"]
    assert other.values["random"] is found.drawn.values["MAE"]
    config = dataclasses.replace(detector.settings.detector, masking="disjoint")
    features = dataclasses.replace(detector.settings.features, num_runs=4)
    settings = dataclasses.replace(detector.settings, detector=config, features=features)
    disjoint = dataclasses.replace(detector, settings=settings)
    table = scores.score(disjoint, disjoint.online(images, one_device()), one_device(), bad)
    column = NAMES.index((config.score, MEAN))
    first, second = other.values["disjoint"][:, :, column].T
    np.testing.assert_allclose(first, table[MEAN].to_numpy(), rtol=1e-4, atol=1e-5)
    shown = measure._extractor("MAE", config).masks
    assert (shown.num_draws, shown.group_size) == (2, 4)
    assert (first != second).all()


def test_sources_share_their_masks_and_differ_in_the_reconstruction(measured: Measured) -> None:
    found = measured[3]
    control, error = (
        [column(found, source, name) for source in SOURCES]
        for name in ((CONTROL, MEAN), ("mismatch", MEAN))
    )
    for other in control[1:]:
        np.testing.assert_allclose(other, control[0], rtol=1e-5, atol=1e-6)
    for i in range(3):
        assert not np.allclose(error[i], error[i - 1], rtol=1e-3)


def test_a_curve_ends_at_the_mean_of_all_masked_patches(measured: Measured) -> None:
    detector, images, _, found, _ = measured
    model = detector.backbone.config
    masked = model.num_patches - model.num_visible(0.75)
    own = column(found, "MAE", (NLL, MEAN))[:, 0]
    generators = np.array(images.table["generator"].to_pylist())
    assert len(found.curves) == 4
    for curve in found.curves:
        assert curve.patches[-1] == detector.settings.detector.num_runs * masked
        of = own[(generators == curve.generator) & (images.labels == (curve.label == "ai"))]
        assert curve.median[-1] == pytest.approx(np.median(of), rel=1e-4)


@pytest.mark.parametrize(("total", "counts"), [(1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_patch_counts_double_up_to_all_patches(total: int, counts: list[int]) -> None:
    assert draws.patch_counts(total) == counts


# --- the command --------------------------------------------------------------------------------


def test_the_command_prints_and_writes_the_section(
    data_set: Path, backbone_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "audit.json"
    workdir = small_run(data_set, backbone_file)
    capsys.readouterr()
    argv = ["audit", data_set, "--detector", workdir, "--signal", "--no-controls", "--json", file]
    argv += ["--images", 4, "--side", 40, "--bootstrap", 20]
    assert main.main(list(map(str, argv))) == 0
    printed = capsys.readouterr().out
    for part in ("what a statistic is worth, raw", "what a statistic is worth, equalised"):
        assert part in printed
    assert "- the paper says that AI images have the lower NLL" in printed
    record = json.loads(file.read_text())["signal"]
    found = signal.read(record)
    assert [one.name for one in found.conditions] == ["raw", "equalised"]
    assert len(found.conditions[0].rows) == len(SOURCES) * len(NAMES)
    assert found.masking == "random"
    assert [one.masking for one in found.repeats] == ["random", "disjoint", "stratified"]
    own = {row.statistic: row.mean.retest for row in found.conditions[0].of(found.score)}
    for statistic, value in found.repeats[0].retest.items():
        assert value == pytest.approx(own[statistic], nan_ok=True)
    assert "retest by kind of masks" in printed
    older = {k: v for k, v in record.items() if k not in ("masking", "repeats")}
    assert signal.read(older).repeats == ()
    assert found.score == loading.load(workdir).settings.detector.score
    assert set(found.sentences) <= set(json.loads(file.read_text())["verdict"])


def test_a_detector_without_masked_runs_has_no_signal(
    data_set: Path, backbone_file: Path, tmp_path: Path
) -> None:
    found = small_bundle(backbone_file, root=str(data_set))
    config = dataclasses.replace(found.detector.settings.detector, num_runs=0, fusion="global")
    settings = dataclasses.replace(found.detector.settings, detector=config)
    detector = dataclasses.replace(found.detector, settings=settings)
    options = AuditOptions(str(data_set), detector="small", signal=True, images=2, controls=False)
    audit = sections.DetectorAudit(
        options, detector, catalog.scan(data_set), Resampling(0), BadImages(tmp_path / "bad.csv")
    )
    section = audit._signal()
    assert "left_out" in section.found["signal"]
    assert "K = 0" in section.sentences[0]


def test_signal_needs_a_detector() -> None:
    with pytest.raises(ValueError, match="--detector"):
        AuditOptions("/nowhere", signal=True)
