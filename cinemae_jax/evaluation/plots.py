"""Figures of the report as inline SVG; text and axes take the colour of the page.

Every figure fits a phone screen; the page puts them side by side if there is room.
"""

import dataclasses
import io
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int, Shaped
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve

from cinemae_jax.data.records import CLASS_NAMES
from cinemae_jax.evaluation.audited import Change
from cinemae_jax.evaluation.bootstrap import ECE_BINS, ece_bin
from cinemae_jax.evaluation.signal import Condition
from cinemae_jax.model.config import STATISTICS

CLASS_COLOURS = ("#2a7fb8", "#d1603d")  # nature, ai: distinct for colour-blind readers
INK = "#010203"  # placeholder for the text colour of the page
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: smaller files, font of the page
    "svg.hashsalt": "cinemae",  # reproducible ids: equal pages are equal files
    "savefig.transparent": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    **{f"{what}.color": INK for what in ("text", "xtick", "ytick")},
    **{f"axes.{what}": INK for what in ("edgecolor", "labelcolor", "titlecolor")},
}
WIDTH = 4.2  # inches
NUM_BINS = 36  # of a histogram
QUANTILES = (0.002, 0.998)  # ends of its axis: one extreme image does not flatten the others
SCATTERED = 1500  # images per class in a scatter plot
STATISTIC_TITLES = {
    "variability": "s1, variability",
    "mean_anomaly": "s2, mean anomaly",
    "perturbation_sensitivity": "s3, perturbation sensitivity",
}


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of figures.

    Attributes:
      title: heading.
      words: what the figures show.
      figures: (description, SVG element) pairs.
    """

    title: str
    words: str
    figures: list[tuple[str, str]]


def sections(scores: pa.Table, changes: Sequence[Change] = ()) -> list[Section]:
    """All figures; none if every image is unread, and none of LCAS if the head does not use it.

    Args:
      scores: of ``scores.score``, with or without calibrated probabilities.
      changes: of an audit.
    """
    valid = scores.filter(pc.is_null(scores["error"]))
    if not len(valid):
        return []
    with matplotlib.rc_context(STYLE):
        return [
            Section(
                title,
                words,
                [(alt, _svg(figure, f"f{i}{j}-")) for j, (alt, figure) in enumerate(figures)],
            )
            for i, (title, words, figures) in enumerate(_drawn(_Scores.of(valid), changes))
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Scores:
    """Columns of the scored images.

    Attributes:
      probability: of AI; ``kind`` says whether it is calibrated.
      statistics: inputs of the head, by name.
    """

    label: Int[np.ndarray, " n"]
    generator: Shaped[np.ndarray, " n"]
    logit: Float[np.ndarray, " n"]
    probability: Float[np.ndarray, " n"]
    kind: str
    statistics: dict[str, Float[np.ndarray, " n"]]

    @classmethod
    def of(cls, table: pa.Table) -> "_Scores":
        name = "probability" if "probability" in table.column_names else "raw_probability"
        statistics = [name for name in STATISTICS if name in table.column_names]
        return cls(
            label=table["label"].to_numpy(),
            generator=np.array(table["generator"].to_pylist()),
            logit=table["logit"].to_numpy().astype(np.float64),
            probability=table[name].to_numpy(),
            kind="calibrated probability" if name == "probability" else "raw probability",
            statistics={name: table[name].to_numpy().astype(np.float64) for name in statistics},
        )

    @property
    def generators(self) -> list[str]:
        return sorted(set(self.generator))


_Drawn = tuple[str, str, list[tuple[str, Figure]]]


def _drawn(scores: _Scores, changes: Sequence[Change]) -> Iterator[_Drawn]:
    yield (
        "Separation of the classes",
        "ROC curve of each generator. Reliability of the "
        f"{scores.kind}, all generators together: exact on the dotted line; vertical bars are 95 % "
        "intervals, grey bars count images. Logits of the head, positive for AI: photographs above "
        "the line of their generator, AI images below.",
        [
            ("ROC curve of each generator", _roc(scores)),
            ("reliability of the probability", _reliability(scores)),
            ("logits by generator", _lanes(scores.logit, scores, "logit")),
        ],
    )
    if scores.statistics:
        yield (
            "LCAS by class and generator",
            "Statistics of the local conditional anomaly scores, the inputs of the head: "
            "histograms, photographs above the line of their generator, AI images below. If both "
            "halves have the same shape, the statistic does not separate the classes.",
            [
                (STATISTIC_TITLES[name], _lanes(values, scores, STATISTIC_TITLES[name]))
                for name, values in scores.statistics.items()
            ]
            + list(_scatter(scores)),
        )
    curves = list(_curves(changes))
    if curves:
        yield (
            "Robustness",
            "Accuracy at probability 0.5 after a change of the images, mean over generators, with "
            "its interval; dotted: unchanged images.",
            curves,
        )


def nll_curves(conditions: Sequence[Condition]) -> list[tuple[str, str]]:
    """The NLL against the number of masked patches: (description, SVG element) pairs."""
    with matplotlib.rc_context(STYLE):
        return [
            (
                f"NLL against the number of masked patches, {condition.name} images",
                _svg(_nll_curves(condition), f"n{i}-"),
            )
            for i, condition in enumerate(conditions)
        ]


# --- the figures --------------------------------------------------------------------------------


def _roc(scores: _Scores) -> Figure:
    figure, axes = _figure(0.85 * WIDTH + 0.17 * len(scores.generators))
    styles = itertools.product(("-", "--", ":", "-."), matplotlib.color_sequences["tab10"])
    for name, (style, colour) in zip(scores.generators, itertools.cycle(styles), strict=False):
        own = scores.generator == name
        y, z = scores.label[own], scores.logit[own]
        if len(set(y)) == 2 and np.isfinite(z).all():
            label = f"{_text(name)}, AUC {roc_auc_score(y, z):.3f}"
            axes.plot(*roc_curve(y, z)[:2], style, color=colour, label=label, linewidth=1.4)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="photographs called AI", ylabel="AI images called AI")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center")
    return figure


def _reliability(scores: _Scores) -> Figure:
    figure = Figure(figsize=(WIDTH, WIDTH + 0.4), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    bins = ece_bin(scores.probability)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    for i in np.unique(bins):
        own = bins == i
        num_ai, total = int(scores.label[own].sum()), int(own.sum())
        share, interval = num_ai / total, binomtest(num_ai, total).proportion_ci(method="wilson")
        mean = scores.probability[own].mean()
        axes.vlines(mean, interval.low, interval.high, color="#7a6bb0", linewidth=1.4)
        axes.plot(mean, share, "o", color="#7a6bb0", markersize=4)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), ylabel="share that is AI")
    counts.bar(
        edges[:-1], np.bincount(bins, minlength=ECE_BINS), 1 / ECE_BINS, align="edge", color="grey"
    )
    counts.set(xlabel=f"{scores.kind} of AI", ylabel="images")
    return figure


def _lanes(values: np.ndarray, scores: _Scores, title: str) -> Figure:
    """One lane per generator: histogram of photographs above its line, of AI images below."""
    figure, axes = _figure(0.68 * len(scores.generators) + 0.9)
    values, known = np.where(np.isfinite(values), values, 0), np.isfinite(values)
    low, high = np.quantile(values[known], QUANTILES) if known.any() else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)
    for lane, name in enumerate(scores.generators):
        for label, colour in enumerate(CLASS_COLOURS):
            own = known & (scores.generator == name) & (scores.label == label)
            share = np.histogram(np.clip(values[own], edges[0], edges[-1]), edges)[0]
            height = 0.32 * share / max(1, share.max())
            side = -1 if label == 0 else 1  # the axis points down
            axes.stairs(lane + side * height, edges, baseline=lane, fill=True, color=colour)
        axes.text(0.0, lane - 0.37, _text(name), transform=axes.get_yaxis_transform(), fontsize=8)
    axes.set(xlabel=title, yticks=[], ylim=(len(scores.generators) - 0.5, -0.65))
    axes.spines["left"].set_visible(False)
    _class_legend(figure)
    return figure


def _scatter(scores: _Scores) -> Iterator[tuple[str, Figure]]:
    """s1 against s3 if the head uses both; at most ``SCATTERED`` images per class."""
    found = scores.statistics
    if not {"variability", "perturbation_sensitivity"} <= found.keys():
        return
    figure, axes = _figure(WIDTH)
    pick = np.random.default_rng(0)
    for label, colour in enumerate(CLASS_COLOURS):
        rows = np.flatnonzero(scores.label == label)
        rows = pick.permutation(rows)[:SCATTERED]
        style: dict[str, Any] = {"s": 8, "alpha": 0.45, "color": colour, "linewidths": 0}
        x, y = found["variability"][rows], found["perturbation_sensitivity"][rows]
        axes.scatter(x, y, **style)
    axes.set(xlabel=STATISTIC_TITLES["variability"])
    axes.set(ylabel=STATISTIC_TITLES["perturbation_sensitivity"])
    _class_legend(figure)
    yield f"s1 and s3, at most {SCATTERED} images per class", figure


def _curves(changes: Sequence[Change]) -> Iterator[tuple[str, Figure]]:
    """One figure per family of changes with more than one strength."""
    for family in dict.fromkeys(change.family for change in changes):
        own = sorted((c for c in changes if c.family == family), key=lambda c: c.strength)
        if len(own) < 2:
            continue
        figure, axes = _figure(2.9)
        x = [change.strength for change in own]
        of_all = [change.changed.metrics["accuracy"] for change in own]
        axes.fill_between(
            x, [e.low for e in of_all], [e.high for e in of_all], color="grey", alpha=0.3, lw=0
        )
        axes.plot(x, [e.value for e in of_all], "o-", color="grey", markersize=4, label="accuracy")
        for name, colour in zip(CLASS_NAMES, CLASS_COLOURS, strict=True):
            right = [change.changed.metrics[f"{name}_accuracy"].value for change in own]
            axes.plot(x, right, "o-", color=colour, markersize=3, lw=1, label=f"{name} right")
        clean = own[0].clean.metrics["accuracy"].value
        axes.axhline(clean, color="grey", linestyle=":", linewidth=1)
        axes.set(xlabel=_text(family), ylim=(-0.02, 1.02))
        figure.legend(loc="outside upper center", ncols=3)
        yield f"accuracy by {family}", figure


def _nll_curves(condition: Condition) -> Figure:
    """A panel per generator: median and quartiles of both classes."""
    names = sorted({curve.generator for curve in condition.curves})
    num_rows = max(1, (len(names) + 1) // 2)
    figure = Figure(figsize=(WIDTH, 1.5 * num_rows + 0.8), layout="constrained")
    panels = figure.subplots(num_rows, 2, sharex=True, squeeze=False).ravel()
    for name, axes in itertools.zip_longest(names, panels):
        if name is None:
            axes.set_axis_off()
            continue
        for curve in (curve for curve in condition.curves if curve.generator == name):
            colour = CLASS_COLOURS[CLASS_NAMES.index(curve.label)]
            axes.fill_between(
                curve.patches, curve.low, curve.high, color=colour, alpha=0.25, linewidth=0
            )
            axes.plot(curve.patches, curve.median, color=colour, linewidth=1.4)
        axes.set_title(_text(name), fontsize=8)
        axes.set_xscale("log", base=2)
    figure.supxlabel(f"masked patches used, {condition.name} images", fontsize=8)
    figure.supylabel("NLL", fontsize=8)
    _class_legend(figure)
    return figure


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _class_legend(figure: Figure) -> None:
    patches: list[Artist] = [
        Patch(color=colour, label=name)
        for name, colour in zip(CLASS_NAMES, CLASS_COLOURS, strict=True)
    ]
    figure.legend(handles=patches, loc="outside upper center", ncols=2)


def _text(name: str) -> str:
    """A name escaped for Matplotlib: no formula (``$``), no hidden label (leading ``_``)."""
    escaped = name.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


# --- SVG ----------------------------------------------------------------------------------------

_ID = re.compile(r'(id="|href="#|url\(#)')


def _svg(figure: Figure, prefix: str) -> str:
    """The <svg> element in the colour of the page; ``prefix`` makes its ids unique."""
    buffer = io.StringIO()
    with warnings.catch_warnings():  # browsers have fonts for glyphs that Matplotlib's font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return _ID.sub(rf"\g<1>{prefix}", text)
