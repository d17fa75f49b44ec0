"""The drop from training generators to unseen ones."""

import html
import json
import math
from pathlib import Path

import pytest

from cinemae_jax.evaluation import report
from cinemae_jax.evaluation.generalisation import Generalisation
from tests.evaluation.test_report import FACTS, rows_of, score_table

ACCURACY = {"a": 0.9, "b": 0.6, "c": 0.7, "d": 0.8}


def test_unseen_generators_are_all_but_the_training_ones() -> None:
    found = Generalisation.of(ACCURACY, ("a", "not tested"))
    assert found.training_generators == ("a",)
    assert found.in_domain == 0.9
    assert found.unseen == pytest.approx(0.7)
    assert found.drop == pytest.approx(0.2)
    assert (found.worst, found.worst_generator) == (0.6, "b")
    assert found.deviation == pytest.approx(math.sqrt(0.05 / 3))


@pytest.mark.parametrize(("trained", "warned"), [(("a",), True), (("a", "b"), False), ((), False)])
def test_a_drop_of_more_than_twenty_points_is_called_a_failure(
    trained: tuple[str, ...], warned: bool
) -> None:
    found = Generalisation.of(ACCURACY | {"a": 0.92}, trained)
    said = found.warnings()
    assert bool(said) == warned
    assert all("22.0 points" in one and "signature" in one for one in said)


def test_without_a_tested_training_generator_there_is_no_drop() -> None:
    found = Generalisation.of(ACCURACY, ("x",))
    assert math.isnan(found.drop)
    assert found.as_record()["in_domain"] is None
    (said,) = found.in_words()
    assert "75.0 on unseen" in said
    assert "no training generator" in said
    assert Generalisation.of({}, ("x",)).in_words() == []


def test_the_report_and_its_json_hold_the_drop(tmp_path: Path) -> None:
    table = score_table()
    rows = rows_of(table)
    report.write(tmp_path, rows, table, FACTS)
    found = report.generalisation(rows, FACTS)
    assert found.training_generators == ("glide",)
    assert not math.isnan(found.drop)
    (sentence,) = found.in_words()
    assert sentence in html.unescape((tmp_path / "report.html").read_text())
    assert "accuracy, unseen generators" in (tmp_path / "report.md").read_text()
    record = json.loads((tmp_path / "eval.json").read_text())
    assert record["generalisation"]["drop"] == pytest.approx(found.drop)
