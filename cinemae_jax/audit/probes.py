"""How much of the task file facts or a coarse spectrum solve without any detector.

In: examined files.  Out: the same table of metrics that a detector gets.  Whatever a logistic
regression reaches with these few numbers, a detector may have learned instead of generation
(method.md 6).  ``data.inspect.shortcuts`` tests one fact at a time; these probes combine all facts,
and show whether the result carries over to other generators.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cinemae_jax.data.decode import decode, read_file
from cinemae_jax.data.inspect.examination import Examination
from cinemae_jax.data.refusal import DecodeError
from cinemae_jax.data.transforms import crop
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.metrics import Row, ScoredImages, evaluate

FOLDS = 5
NUM_FACTS = 6
CROP = 256  # pixels
SPECTRUM_BINS = 24
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG
# Variance of rounding to whole grey levels: power below it is not a property of the image.
QUANTISATION = 1 / 12
# Share of images below which formats, sizes or qualities are merged into one rare value.
RARE = 0.01

Learned = Literal["train split", "cross-validated"]


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a probe knows of N images besides their features.

    Attributes:
      labels: (N,) 0 nature, 1 AI.
      generators: (N,) names.
      valid: (N,) False for images that could not be read.
      is_train: (N,) images to learn from.
    """

    labels: Int[np.ndarray, " n"]
    generators: np.ndarray
    valid: Bool[np.ndarray, " n"]
    is_train: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What a probe reaches.

    Attributes:
      learned: from the ``train`` split and tested on the rest, or cross-validated within each
        generator (``FOLDS`` folds).
      num_nature, num_ai: images to learn from (all, if cross-validated).
      rows: of ``metrics.evaluate``.  Intervals cover the choice of tested images, not that of the
        images to learn from.
    """

    learned: Learned
    num_nature: int
    num_ai: int
    rows: list[Row]


# --- features -----------------------------------------------------------------------------------


def file_facts(files: pa.Table) -> np.ndarray:
    """Inputs of ``facts_model``: each fact as a category, then as a number.

    Args:
      files: readable ones, with the columns of ``data.inspect.facts.Facts``.

    Returns:
      (N, 6) objects.  Strings: format and mode, size, JPEG quality.  Floats: log2 of the shorter
      side, log2 of width / height, JPEG quality (0 for other formats).
    """
    width, height = (files[name].to_numpy().astype(np.float64) for name in ("width", "height"))
    sides = (pc.cast(files[name], pa.string()) for name in ("width", "height"))
    quality = pc.cast(pc.fill_null(files["quality"], 0), pa.float64())
    columns = (
        pc.binary_join_element_wise(files["format"], files["mode"], " ").to_pylist(),
        pc.binary_join_element_wise(*sides, "x").to_pylist(),
        pc.cast(quality, pa.string()).to_pylist(),
        np.log2(np.minimum(width, height)),
        np.log2(width / height),
        quality.to_numpy(),
    )
    return np.column_stack([np.asarray(column, object) for column in columns])


def spectrum(image: Image.Image) -> Float[np.ndarray, " 24"]:
    """Log power of the grey centre crop, in ``SPECTRUM_BINS`` rings of spatial frequency.

    The rings are equally wide, from 0 to 0.5 cycles per pixel (the corners beyond are left out).
    White noise of variance v has power v in every ring; ``QUANTISATION`` is added before the log.

    Args:
      image: RGB; its centre of ``CROP`` pixels is used, smaller images are reflected at the border.
    """
    grey = crop(image, CROP).astype(np.float64) @ LUMA
    window = np.outer(np.hanning(CROP), np.hanning(CROP))
    centred = (grey - np.average(grey, weights=window)) * window
    power = np.abs(np.fft.fft2(centred)) ** 2 / (window**2).sum()
    frequency = np.abs(np.fft.fftfreq(CROP))
    ring = (np.hypot(frequency[:, None], frequency) * 2 * SPECTRUM_BINS).astype(int).ravel()
    sums = np.bincount(ring, weights=power.ravel())[:SPECTRUM_BINS]
    return np.log(sums / np.bincount(ring)[:SPECTRUM_BINS] + QUANTISATION)


def spectra(read: Callable[[int], bytes], count: int) -> Float[np.ndarray, "n 24"]:
    """Spectra of ``count`` files, decoded in threads; NaN where a file cannot be read.

    Args:
      read: maps a row to the bytes of its file.
      count: number of rows.
    """

    def one(row: int) -> np.ndarray:
        try:
            return spectrum(decode(read(row)))
        except (DecodeError, OSError):  # ``solve`` counts it as unread
            return np.full(SPECTRUM_BINS, np.nan)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(one, range(count)))
    return np.array(rows).reshape(count, SPECTRUM_BINS)


# --- models -------------------------------------------------------------------------------------


def facts_model() -> Pipeline:
    """Logistic regression on ``file_facts``: frequent categories one-hot, numbers standardised."""
    values = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=RARE)
    columns = [("values", values, [0, 1, 2]), ("numbers", StandardScaler(), [3, 4, 5])]
    return make_pipeline(ColumnTransformer(columns), _regression())


def spectrum_model() -> Pipeline:
    """Logistic regression on ``spectra``."""
    return make_pipeline(StandardScaler(), _regression())


def _regression() -> LogisticRegression:
    # balanced: a larger class must not be easier to get right
    return LogisticRegression(class_weight="balanced", max_iter=1000)


# --- results ------------------------------------------------------------------------------------


def probe(
    examined: Examination, *, train_generators: Sequence[str], resampling: Resampling
) -> dict[str, ProbeResult]:
    """Both probes, ``file facts`` and ``spectrum``, on the files of a labelled folder.

    Args:
      examined: all files of the folder.
      train_generators: generators whose ``train`` split is learned from; other train splits are
        not used.
      resampling: of the intervals; its seed also draws the folds.

    Raises:
      ValueError: if the files are not labelled.
    """
    if examined.layout:
        raise ValueError(f"{examined.root} has no labels to probe: {examined.layout}")
    files = examined.files
    generators, split = (np.array(files[name].to_pylist()) for name in ("generator", "split"))
    is_train = (split == "train") & np.isin(generators, train_generators)
    used = is_train | (split != "train") if is_train.any() else np.ones(len(files), bool)
    files = files.filter(pa.array(used))
    valid = pc.equal(files["reason"], "").to_numpy()
    labels = pc.equal(files["label"], "ai").to_numpy().astype(np.int64)
    examples = Examples(labels, generators[used], valid, is_train[used])
    facts = np.full((len(files), NUM_FACTS), None, object)
    facts[valid] = file_facts(files.filter(pa.array(valid)))
    paths = files["path"].to_pylist()

    def read(row: int) -> bytes:
        return read_file(Path(examined.root, paths[row])) if valid[row] else b""

    return {
        "file facts": solve(facts_model(), facts, examples, resampling),
        "spectrum": solve(spectrum_model(), spectra(read, len(files)), examples, resampling),
    }


def solve(
    model: Pipeline, features: np.ndarray, examples: Examples, resampling: Resampling
) -> ProbeResult:
    """Learns from the train split and tests on the rest; cross-validates where it cannot.

    It cannot if the train split lacks a class, or if nothing is left to test on.  Then each
    generator is cross-validated on all of its images; a generator with fewer than ``FOLDS`` images
    of a class cannot be scored, and its images count as unread.

    Args:
      model: ``facts_model()`` or ``spectrum_model()``.
      features: (N, F), as the model takes them.
      examples: the N images.
      resampling: of the intervals; its seed also draws the folds.
    """
    labels, valid, is_train = examples.labels, examples.valid, examples.is_train
    split = len(np.unique(labels[is_train & valid])) == 2 and bool((~is_train).any())
    learned = is_train & valid if split else valid
    tested = ~is_train if split else np.ones(len(labels), bool)
    if split:
        logits = np.full(len(labels), np.nan)
        fitted = model.fit(features[learned], labels[learned])
        if (scored := tested & valid).any():
            logits[scored] = fitted.decision_function(features[scored])
    else:
        logits = _cross_validated(model, features, examples, resampling.seed)
    scored_images = ScoredImages(
        labels[tested], logits[tested], examples.generators[tested], valid[tested]
    )
    rows = evaluate(scored_images, resampling)
    num_ai = int((labels[learned] == 1).sum())
    how: Learned = "train split" if split else "cross-validated"
    return ProbeResult(how, int(learned.sum()) - num_ai, num_ai, rows)


def _cross_validated(
    model: Pipeline, features: np.ndarray, examples: Examples, seed: int
) -> Float[np.ndarray, " n"]:
    """Out-of-fold logits within each generator; NaN where there are too few images."""
    logits = np.full(len(examples.labels), np.nan)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for name in np.unique(examples.generators):
        own = np.flatnonzero((examples.generators == name) & examples.valid)
        y = examples.labels[own]
        if np.bincount(y, minlength=2).min() >= FOLDS:
            logits[own] = cross_val_predict(
                model, features[own], y, cv=folds, method="decision_function"
            )
    return logits
