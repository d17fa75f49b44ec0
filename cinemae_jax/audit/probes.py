"""How much of the task is solved without any detector: by file facts, by a coarse spectrum.

In: facts of the files (``data.doctor``), or their bytes.  Out: the same table of metrics that a
detector gets.  What a logistic regression on these few numbers reaches, a detector may have learnt
instead of generation (METHOD 8).  ``data.shortcuts`` looks at one fact at a time; here is all that
they say together, and whether it carries over to other generators.
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
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cinemae_jax.data.decode import DecodeError, decode, read_file
from cinemae_jax.data.inspect.examination import Examination
from cinemae_jax.data.transforms import crop
from cinemae_jax.evaluation.bootstrap import Resampling
from cinemae_jax.evaluation.metrics import Row, ScoredImages, evaluate

FOLDS = 5
NUM_FACTS = 6
CROP = 256  # pixels
SPECTRUM_BINS = 24
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG
# Variance of rounding to whole grey levels: below it, power is no property of the picture.
QUANTISATION = 1 / 12
RARE = 0.01  # share of images below which a format, size or quality is lumped with the other rare

Learned = Literal["train split", "cross-validated"]


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """What a probe reaches.

    Attributes:
      learned: on the ``train`` split, to be tested on the rest, or cross-validated within each
        generator (``FOLDS`` folds).
      num_nature, num_ai: number of images to learn from (all, if cross-validated).
      rows: of ``metrics.evaluate``.  The intervals are those of the tested images; another set to
        learn from would add to them.
    """

    learned: Learned
    num_nature: int
    num_ai: int
    rows: list[Row]


# --- features -----------------------------------------------------------------------------------


def file_facts(files: pa.Table) -> np.ndarray:
    """Facts for ``facts_model``: format and mode, size, quality; then these sizes as numbers.

    Args:
      files: readable ones, with the columns of ``data.facts.Facts``.

    Returns:
      (N, 6) objects: three strings; log2 of the shorter side, log2 of width / height, and quality
      of a JPEG (0 of anything else) as float.
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
    """Log power of the grey centre by spatial frequency, in ``SPECTRUM_BINS`` rings.

    The rings are equally wide, from 0 to 0.5 cycles a pixel (the corners beyond are left out).
    White noise of variance v has power v in each; powers are raised by that of ``QUANTISATION``.

    Args:
      image: RGB; cropped to ``CROP`` at native pixels, a smaller one reflected at the border.
    """
    grey = crop(image, CROP).astype(np.float64) @ LUMA
    window = np.outer(np.hanning(CROP), np.hanning(CROP))
    centred = (grey - np.average(grey, weights=window)) * window
    power = np.abs(np.fft.fft2(centred)) ** 2 / (window**2).sum()
    frequency = np.abs(np.fft.fftfreq(CROP))
    ring = (np.hypot(frequency[:, None], frequency) * 2 * SPECTRUM_BINS).astype(int).ravel()
    sums = np.bincount(ring, weights=power.ravel())[:SPECTRUM_BINS]
    return np.log(sums / np.bincount(ring)[:SPECTRUM_BINS] + QUANTISATION)


def spectra(
    read: Callable[[int], bytes], count: int, *, workers: int | None = None
) -> Float[np.ndarray, "n 24"]:
    """Spectra of files, decoded in threads; NaN where a file cannot be read.

    Args:
      read: row to the bytes of its file (``loader.Images.read``).
      count: number of rows.
      workers: threads; by default one a core.
    """

    def one(row: int) -> np.ndarray:
        try:
            return spectrum(decode(read(row)))
        except (DecodeError, OSError):  # counted as unread by ``solve``
            return np.full(SPECTRUM_BINS, np.nan)

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        rows = list(pool.map(one, range(count)))
    return np.array(rows).reshape(count, SPECTRUM_BINS)


# --- models -------------------------------------------------------------------------------------


def facts_model() -> Pipeline:
    """Logistic regression on ``file_facts``: each frequent value, and the numbers as they are."""
    values = OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=RARE)
    columns = [("values", values, [0, 1, 2]), ("numbers", StandardScaler(), [3, 4, 5])]
    return make_pipeline(ColumnTransformer(columns), _regression())


def spectrum_model() -> Pipeline:
    """Logistic regression on ``spectra``."""
    return make_pipeline(StandardScaler(), _regression())


def _regression() -> LogisticRegression:
    # balanced: a set with more images of one class is no harder to be right on
    return LogisticRegression(class_weight="balanced", max_iter=1000)


# --- results ------------------------------------------------------------------------------------


def probe(
    examined: Examination,
    *,
    train_generators: Sequence[str],
    bootstrap: int,
    confidence: float,
    seed: int,
    groups: np.ndarray | None = None,
    workers: int | None = None,
) -> dict[str, ProbeResult]:
    """Both probes, ``file facts`` and ``spectrum``, on the files of a labelled folder.

    Args:
      examined: of ``data.doctor.examine``.
      train_generators: whose ``train`` split is learned from; of the others it is not used.
      bootstrap, confidence, seed, groups: as in ``solve``; groups of all files.
      workers: decoding threads.

    Raises:
      ValueError: if the files are not labelled.
    """
    if examined.layout:
        raise ValueError(f"{examined.root} has no labels to probe: {examined.layout}")
    files = examined.files
    generators, split = (np.array(files[name].to_pylist()) for name in ("generator", "split"))
    is_train = (split == "train") & np.isin(generators, train_generators)
    used = is_train | (split != "train") if is_train.any() else np.ones(len(files), bool)
    files, generators, is_train = files.filter(pa.array(used)), generators[used], is_train[used]
    groups = None if groups is None else groups[used]
    valid = pc.equal(files["reason"], "").to_numpy()
    facts = np.full((len(files), NUM_FACTS), None, object)
    facts[valid] = file_facts(files.filter(pa.array(valid)))
    paths = files["path"].to_pylist()

    def read(row: int) -> bytes:
        return read_file(Path(examined.root, paths[row])) if valid[row] else b""

    tasks = {
        "file facts": (facts_model(), facts),
        "spectrum": (spectrum_model(), spectra(read, len(files), workers=workers)),
    }
    return {
        name: solve(
            model,
            features,
            pc.equal(files["label"], "ai").to_numpy().astype(np.int64),
            generators,
            valid=valid,
            is_train=is_train,
            bootstrap=bootstrap,
            confidence=confidence,
            seed=seed,
            groups=groups,
        )
        for name, (model, features) in tasks.items()
    }


def solve(
    model: Pipeline,
    features: np.ndarray,
    labels: Int[np.ndarray, " n"],
    generators: np.ndarray,
    *,
    valid: Bool[np.ndarray, " n"],
    is_train: Bool[np.ndarray, " n"],
    bootstrap: int,
    confidence: float,
    seed: int,
    groups: np.ndarray | None = None,
) -> ProbeResult:
    """Learns from the train split and tests on the rest, or cross-validates where it cannot.

    It cannot if the train split lacks a class, or nothing is left to test on.  Then every
    generator is learned from and tested by itself, on all of its images; one with fewer than
    ``FOLDS`` images (or groups) of a class cannot be scored, and its images count as unread.

    Args:
      model: ``facts_model()`` or ``spectrum_model()``.
      features: (N, F), as the model takes them.
      labels: (N,) 0 nature, 1 AI.
      generators: (N,) names.
      valid: (N,) False for images that could not be read.
      is_train: (N,) images to learn from.
      bootstrap, confidence, seed, groups: as in ``metrics.evaluate``; images of one group are
        never in two folds.
    """
    split = len(np.unique(labels[is_train & valid])) == 2 and bool((~is_train).any())
    learned = is_train & valid if split else valid
    tested = ~is_train if split else np.ones(len(labels), bool)
    if split:
        logits = np.full(len(labels), np.nan)
        fitted = model.fit(features[learned], labels[learned])
        if (scored := tested & valid).any():
            logits[scored] = fitted.decision_function(features[scored])
    else:
        logits = _cross_validated(model, features, labels, generators, valid, groups, seed)
    group = None if groups is None else groups[tested]
    scored_images = ScoredImages(
        labels[tested], logits[tested], generators[tested], valid[tested], group
    )
    rows = evaluate(scored_images, Resampling(bootstrap, confidence, seed))
    num_ai = int((labels[learned] == 1).sum())
    how: Learned = "train split" if split else "cross-validated"
    return ProbeResult(how, int(learned.sum()) - num_ai, num_ai, rows)


def _cross_validated(
    model: Pipeline,
    features: np.ndarray,
    labels: np.ndarray,
    generators: np.ndarray,
    valid: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
) -> np.ndarray:
    """Out-of-fold logits, of each generator by itself; NaN where there are too few images."""
    logits = np.full(len(labels), np.nan)
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = kind(FOLDS, shuffle=True, random_state=seed)
    for name in np.unique(generators):
        own = np.flatnonzero((generators == name) & valid)
        y, group = labels[own], None if groups is None else groups[own]
        each = own if group is None else group
        if min(len(np.unique(each[y == label])) for label in (0, 1)) >= FOLDS:
            logits[own] = cross_val_predict(
                model, features[own], y, groups=group, cv=folds, method="decision_function"
            )
    return logits
