"""Plots of the report, as SVG."""

import base64
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from cinemae_jax.model.config import STATISTICS

CLASS_COLOURS = {"nature": "#2a7fb8", "ai": "#d1603d"}


def plots(scores: pa.Table) -> list[tuple[str, str]]:
    """(title, base64 of an SVG) of every plot; none where no image could be read.

    Args:
      scores: as ``evaluate.score`` returns them.
    """
    valid = scores.filter(pc.is_null(scores["error"]))
    if not len(valid):
        return []
    names = ("label", "probability", *STATISTICS)
    columns = {name: valid[name].to_numpy() for name in names}
    of = np.array(valid["generator"].to_pylist())
    figures = {
        "ROC by generator": _roc(columns, of),
        "Probability of AI by generator": _strips(columns, of),
        "The three LCAS statistics by class, all generators": _statistics(columns),
    }
    return [(title, _svg(figure)) for title, figure in figures.items()]


def _roc(columns: dict[str, np.ndarray], of: np.ndarray) -> Figure:
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    for name in sorted(set(of)):
        y, p = columns["label"][of == name], columns["probability"][of == name]
        if len(set(y)) == 2:
            axes.plot(*roc_curve(y, p)[:2], label=name)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="photographs called AI", ylabel="AI images called AI", aspect="equal")
    _legend(axes)
    return figure


def _strips(columns: dict[str, np.ndarray], of: np.ndarray) -> Figure:
    generators = sorted(set(of))
    figure = Figure(figsize=(7, 0.6 * len(generators) + 1.2), layout="constrained")
    axes = figure.subplots()
    jitter = np.random.default_rng(0)
    for line, name in enumerate(generators):
        for label, (kind, colour) in enumerate(CLASS_COLOURS.items()):
            values = columns["probability"][(of == name) & (columns["label"] == label)]
            height = line + (0.2 if label else -0.2) + jitter.uniform(-0.12, 0.12, len(values))
            style: dict[str, Any] = {"s": 7, "alpha": 0.5, "color": colour, "linewidths": 0}
            axes.scatter(values, height, label=kind if line == 0 else None, **style)
    axes.axvline(0.5, color="grey", linestyle=":", linewidth=1)
    axes.set(xlim=(-0.02, 1.02), xlabel="probability of AI")
    axes.set(yticks=range(len(generators)), yticklabels=generators)
    axes.invert_yaxis()
    _legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def _statistics(columns: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(STATISTICS)), STATISTICS, strict=True):
        low, high = np.quantile(columns[name], [0.005, 0.995])
        bins = np.linspace(low, high if high > low else low + 1, 31)
        for label, (kind, colour) in enumerate(CLASS_COLOURS.items()):
            values = columns[name][columns["label"] == label]
            if len(values):
                axes.hist(values, bins, density=True, alpha=0.5, color=colour, label=kind)
        axes.set(title=name.replace("_", " "), yticks=[])
    _legend(figure.axes[0])
    return figure


def _legend(axes: Axes, **options: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", frameon=False, **options)


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return base64.b64encode(buffer.getvalue()).decode()
