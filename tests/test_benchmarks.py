"""The benchmarks run at toy size, and compute what they claim to; nothing depends on speed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import bench_backbone, bench_extract, bench_sweep, measure
from benchmarks.__main__ import QUICK, sections
from cinemae_jax.detector.api import Detector
from cinemae_jax.model.cinemae import random_backbone
from tests.helpers.small_detector import one_device, small_bundle
from tests.helpers.small_run import ROOT

pytestmark = pytest.mark.slow

RUN = ("sweep", "extract")  # quick enough for a test; the others differ in what they time
# one device, and programs that compile fast
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("benchmarks") / "results.json"
    subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--json", file, "--only", *RUN],
        env=os.environ | {"XLA_FLAGS": FAST},
        cwd=ROOT,
        check=True,
    )
    return json.loads(file.read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_sections_are_in_the_json(results: Any) -> None:
    assert set(RUN) < set(sections(QUICK))
    assert set(results) == {"machine", *RUN}
    for name in RUN:
        assert len(results[name]["load_before"]) == 3
        assert results[name]["found"]


def test_logits_from_memory_are_those_of_predictions_from_files(
    backbone_file: Path, data_set: Path
) -> None:
    detector = Detector(small_bundle(backbone_file), batch_size=2, replicas=one_device())
    paths = sorted(data_set.rglob("val/ai/*.png"))[:3]
    runs = bench_extract.predictions(detector, paths)
    expected = [one.logit for one in runs["predict"]()]
    np.testing.assert_allclose(runs["logits"]().logit.mean(axis=1), expected, rtol=1e-6)


def test_a_loop_over_masks_computes_the_same() -> None:
    backbone = random_backbone(bench_backbone.TOY)
    together = bench_backbone.jax_run(backbone, 3, 2, "float32")()
    f_global, apart = bench_backbone.loop_run(backbone, 3, 2, "float32")()
    np.testing.assert_allclose(f_global, together.f_global, rtol=1e-4, atol=1e-5)
    for k, (terms, masked) in enumerate(apart):
        np.testing.assert_array_equal(masked[:, 0], together.masked[:, k])
        jax.tree.map(
            lambda one, all_, k=k: np.testing.assert_allclose(
                one[:, 0], all_[:, k], rtol=1e-4, atol=1e-5
            ),
            terms,
            together.terms,
        )


def test_the_slope_of_what_costs_its_flops_is_the_counted_one() -> None:
    config, runs = bench_backbone.PRESETS["vit_large"], [0, 1, 2, 3]
    rates = [1e12 / bench_backbone.image_flops(config, k) for k in runs]
    rows = [measure.row(f"K = {k}", [r], [1.0], [r]) for k, r in zip(runs, rates, strict=True)]
    found = bench_sweep.slope(config, runs, rows)
    assert found["measured"] == pytest.approx(found["counted"])
    assert found["measured_cpu"] == pytest.approx(41.2 / 122.8, rel=0.01)
    assert found["off_line"] < 1e-9


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that is half as fast in the second round changes no ratio."""
    slow, fast = (
        measure.row("slow", [4.0, 2.0], [8.0, 4.0]),
        measure.row("fast", [8.0, 4.0], [8.0, 4.0]),
    )
    assert (slow.ratio_lowest, slow.ratio, slow.ratio_highest) == (0.5, 0.5, 0.5)
    assert measure.ratio([slow, fast], "fast", "slow") == 2
