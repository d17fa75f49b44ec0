"""Report pages are complete and self-contained, and say what is missing."""

import dataclasses
import html
import html.parser
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cinemae_jax.audit import conditions, findings, robustness
from cinemae_jax.audit.conditions import Scored
from cinemae_jax.audit.robustness import NamedChange
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.records import SCHEMA
from cinemae_jax.evaluation import (
    audited,
    hardest,
    metrics,
    plots,
    report,
    reported,
    scores,
    summary,
)
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.metrics import Row
from cinemae_jax.model.config import STATISTICS
from tests.helpers.small_detector import CALIBRATION
from tests.helpers.small_run import evaluated, small_run, small_settings

pytestmark = pytest.mark.slow

NAMES = ("Midjourney", "glide", "_a$b$ <script>|x")
FACTS = {
    "backbone": "MAE",
    "backbone_sha256": "abc",
    "head_sha256": "def",
    "test_images": "ghi",
    "checkpoint_step": 3,
    "data_root": "data",
    "bad_images": {"nature": 0, "ai": 1},
    "low_context_images": 2,
    "left_out": {"extension .txt": 2},
    "calibration": CALIBRATION.to_dict(),
    "settings": {
        "eval": {"confidence": 0.95, "bootstrap": 20, "detector": ""},
        "data": {
            "root": "my data",
            "source": "folder",
            "quarantine": "",
            "train_generators": ["glide"],
        },
    },
}


def score_table(shift: float = 1.0, count: int = 30) -> pa.Table:
    """``count`` images per class and generator; AI logits are ``shift`` higher."""
    rng = np.random.default_rng(0)
    label = np.tile(np.repeat([0, 1], count), len(NAMES)).astype(np.int8)
    logit = (rng.normal(size=len(label)) + shift * (label - 0.5)).astype(np.float32)
    generator = np.repeat(NAMES, 2 * count)
    columns = {
        "path": pa.array([f"{i}.png" for i in range(len(label))]),
        "label": pa.array(label),
        "generator": pa.array(generator).dictionary_encode(),
        "split": pa.array(["val"] * len(label)).dictionary_encode(),
        "example_id": pa.array(np.arange(len(label), dtype=np.uint64)),
        "logit": pa.array(logit),
        "raw_probability": pa.array(1 / (1 + np.exp(-logit.astype(np.float64)))),
        **{name: pa.array(np.abs(logit)) for name in STATISTICS},
        "low_context": pa.array(np.zeros(len(label), bool)),
        "error": pa.array([None] * len(label), pa.string()),
    }
    return scores.with_verdicts(pa.table(columns), CALIBRATION)


def rows_of(table: pa.Table, bootstrap: int = 20) -> list[Row]:
    images = scores.scored_images(table)
    return metrics.evaluate(images, Resampling(bootstrap), calibration=CALIBRATION)


def pages(folder: Path, table: pa.Table, **facts: object) -> dict[str, str]:
    return report.pages(
        folder, rows_of(table), table, FACTS | {"command": "c", "versions": {}} | facts
    )


def write_audit(folder: Path, table: pa.Table, **other: object) -> None:
    """Writes what ``cinemae audit --robustness --json`` writes; changes halve the separation."""
    images = Catalog(folder, table.select(SCHEMA.names), {})
    logit = table["logit"].to_numpy().astype(np.float64)
    clean = Scored(logit, np.zeros(len(logit), bool))
    worse = Scored(logit - table["label"].to_numpy() * 0.8, clean.low_context)
    resampling = Resampling(bootstrap=20)
    found = conditions.compared(images, clean, worse, resampling, CALIBRATION)
    changed = {NamedChange(f"Jpeg({q})", "JPEG quality", q): worse for q in (90.0, 50.0)}
    changed[NamedChange("SocialNetwork()", "social network", 1.0)] = worse
    effects = robustness.measure(images, clean, changed, CALIBRATION, resampling).effects
    record = {
        "root": "other data",
        "detector": {n: other.get(n, FACTS[n]) for n in audited.DETECTOR} | {"step": 3},
        "test_images": other.get("test_images", FACTS["test_images"]),
        "num_scored": len(logit),
        "verdict": ["nothing good"],
        "equalised": {"side": 256, "quality": 90, "comparison": found},
        "corruptions": effects,
        "attacks": {"effects": []},
    }
    (folder / audited.FILE).write_text(json.dumps(findings.as_json(record), allow_nan=False))


class Page(html.parser.HTMLParser):
    """Parsed HTML: links, tags and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_a_page_fetches_and_runs_nothing(tmp_path: Path) -> None:
    page = Page(pages(tmp_path, score_table())["report.html"])
    assert all(one.startswith(("data:", "#")) for one in page.fetched)
    assert "script" not in page.tags  # a generator's name is not markup
    assert page.tags.count("svg") == 7
    assert len(page.ids) == len(set(page.ids))  # figures do not share ids
    inside = {one[1:] for one in page.fetched if one.startswith("#")}
    assert inside <= set(page.ids)


def test_figures_take_the_colour_of_the_page(tmp_path: Path) -> None:
    page = pages(tmp_path, score_table())["report.html"]
    assert "currentColor" in page
    assert plots.INK not in page
    assert "#000000" not in page  # black text or axes would vanish in the dark


def test_doubts_come_before_the_tables(tmp_path: Path) -> None:
    for page in map(html.unescape, pages(tmp_path, score_table()).values()):
        first_table = page.index("Accuracy at probability 0.5, and ranking")
        assert page.index("raw numbers") < first_table
        assert page.index("cinemae audit 'my data' --detector") < first_table


def test_doubts_name_the_problems_of_an_evaluation(tmp_path: Path) -> None:
    table = score_table(shift=0.0)
    said = " ".join(summary.doubts(rows_of(table), FACTS, None, "no audit"))
    assert "not measurably better than chance" in said
    assert "(Midjourney: 30 ai)" in said
    assert "The mean includes glide" in said
    assert "leans" not in said
    leaning = table.set_column(
        table.schema.get_field_index("logit"), "logit", pa.array(table["logit"].to_numpy() - 2)
    )
    said = " ".join(summary.doubts(rows_of(leaning), FACTS, None, "no audit"))
    assert re.search(r"leans .* 9\d % of photographs .* \d % of AI images", said)


def test_the_report_includes_an_audit_of_the_same_detector(tmp_path: Path) -> None:
    table = score_table()
    write_audit(tmp_path, table)
    found, _ = audited.read(tmp_path / audited.FILE, FACTS)
    after = report.format_value(found.equalised.after[-1].metrics["accuracy"])
    for page in pages(tmp_path, table).values():
        assert "Raw against equalised" in page
        assert "nothing good" in page
        assert after in page
        assert "SocialNetwork" in page
        assert "raw numbers" not in page
    page = pages(tmp_path, table)["report.html"]
    assert 'aria-label="accuracy by JPEG quality"' in page
    assert "accuracy by social network" not in page  # a single strength has no curve


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.unlink(), "not been audited"),
        (lambda path: path.write_text("{"), "cannot be read"),
        (lambda path: path.write_text('{"verdict": []}'), "without a detector"),
        (
            lambda path: write_audit(path.parent, score_table(), head_sha256="x"),
            "another detector",
        ),
        (
            lambda path: write_audit(path.parent, score_table(), backbone_sha256="x"),
            "another detector",
        ),
        (
            lambda path: write_audit(path.parent, score_table(), test_images="x"),
            "other images",
        ),
    ],
)
def test_an_audit_of_another_detector_is_left_out(
    tmp_path: Path, spoil: Callable[[Path], None], why: str
) -> None:
    write_audit(tmp_path, score_table())
    spoil(tmp_path / audited.FILE)
    page = pages(tmp_path, score_table())["report.html"]
    assert why in page
    assert "Raw against equalised" not in page


def test_reported_numbers_are_matched_by_generator_name(tmp_path: Path) -> None:
    rows = rows_of(score_table(), bootstrap=0)
    lines = reported.beside(rows)
    assert [line.name for line in lines] == [
        "Midjourney",
        "glide",
    ]  # no mean: not the eight generators
    by_name = {s.name: v for s, v in zip(reported.SOURCES, lines[1].theirs, strict=True)}
    assert (by_name["Effort"], by_name["DRCT"], by_name["CINEMAE"]) == (93.3, 89.2, None)
    page = pages(tmp_path, score_table())["report.md"]
    assert page.count("(reported)") >= len(reported.SOURCES)
    row = rows[0]
    eight = [dataclasses.replace(row, name=name.upper()) for name in reported.GENERATORS]
    assert [line.name for line in reported.beside([*eight, rows[-1]])][-1] == "mean"
    assert reported.beside([dataclasses.replace(row, name="glide2"), rows[-1]]) == []


def test_reported_means_are_those_of_their_generators_or_say_otherwise() -> None:
    for source in reported.SOURCES:
        if len(source.by_generator) == len(reported.GENERATORS):
            mean = np.mean(list(source.by_generator.values()))
            agrees = abs(mean - source.mean) < 0.06  # all are rounded to a tenth
            assert agrees or f"average {mean:.1f}" in source.note


def test_reports_work_with_one_statistic_or_none(tmp_path: Path) -> None:
    table = score_table()
    alone = table.drop_columns(["variability", "perturbation_sensitivity"])
    assert [len(s.figures) for s in plots.sections(table)] == [3, 4]
    assert [len(s.figures) for s in plots.sections(alone)] == [3, 1]
    assert [len(s.figures) for s in plots.sections(alone.drop_columns(["mean_anomaly"]))] == [3]


def test_one_image_one_class_and_scores_that_are_all_alike_are_drawn() -> None:
    table = score_table(count=1)
    assert plots.sections(table.slice(0, 1))
    same = pa.array(np.zeros(len(table), np.float32))
    assert plots.sections(table.set_column(table.schema.get_field_index("logit"), "logit", same))


def test_names_are_escaped_in_markdown(tmp_path: Path) -> None:
    page = pages(tmp_path, score_table())["report.md"]
    assert r"| \_a$b$ \<script\>\|x | 30 | 30 | 0 |" in page
    assert "<script>" not in page
    header = next(line for line in page.splitlines() if line.startswith("| generator"))
    ruler = page.splitlines()[page.splitlines().index(header) + 1]
    assert header.count("|") == ruler.count("|")


def test_an_evaluation_shows_its_hardest_images_and_its_receipt(
    data_set: Path, backbone_file: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(small_run(data_set, backbone_file), workdir)
    evaluated(small_settings(data_set, backbone_file), workdir)
    page = (workdir / "report.html").read_text()
    pictures = [one for one in Page(page).fetched if one.startswith("data:image/jpeg")]
    assert len(pictures) == 2 * 2 * hardest.COUNT  # of two classes, each with its heat map
    assert f"cinemae verify {workdir / 'receipt.json'}" in page
    assert report.command() in html.unescape(page)


def test_the_hardest_images_are_those_most_on_the_wrong_side(tmp_path: Path) -> None:
    table = score_table()
    logit, label = table["logit"].to_numpy(), table["label"].to_numpy()
    rows = list(hardest._rows(table, 3))
    assert label[rows].tolist() == [0, 0, 0, 1, 1, 1]
    assert logit[rows[0]] == logit[label == 0].max()
    assert logit[rows[3]] == logit[label == 1].min()
