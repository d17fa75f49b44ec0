"""Low-context images: which masks keep a detector's statistics useful when texture disappears?

    python -m benchmarks.dilution ROOT [--detector tiny] [--groups FILE] [--images 18]
        [--train-images 150] [--runs 2] [--doses 0 0.25 0.5 0.75] [--json out.json]

Both classes are brought to one size and codec and diluted alike: a contiguous band of patches gives
way to the image's own blurred background and noise resampled from its own flattest patches.  A
linear head on s1, s2 and s3 is fitted to undiluted images of the train split, once per kind of
masks, and scores the val split at every dose.  Out: AUC, its paired change with the dose, and its
paired difference to random masks, with intervals over groups; correlations of s1 … s3 between two
draws of masks.
"""

import argparse
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pyarrow.csv
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import measure
from cinemae_jax.audit import conditions, retraining
from cinemae_jax.audit.controls import Source
from cinemae_jax.audit.equalise import Equalise
from cinemae_jax.data import catalog
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.collection import open_images
from cinemae_jax.data.transforms import Crop
from cinemae_jax.detector import bundle
from cinemae_jax.evaluation import signal
from cinemae_jax.evaluation.bootstrap import resamples
from cinemae_jax.evaluation.metrics import Estimate, estimates
from cinemae_jax.features import extraction
from cinemae_jax.model import cinemae, masking
from cinemae_jax.model.cinemae import Backbone, Features
from cinemae_jax.model.config import STATISTICS, DetectorConfig, Masking

BLUR = 2.0  # of the background: standard deviation, in patches
GRAIN = 1.5  # what this blur removes is noise; standard deviation, in pixels
FLATTEST = 0.25  # share of the patches whose noise is resampled
RETESTED = (2, 4)  # K
CHUNK = 50  # images per call of the backbone


@dataclasses.dataclass(frozen=True)
class Kind:
    """A row of the table: how masks are drawn, and what is summarised.

    Attributes:
      name: of the row.
      source: of the features.
      choices: fields of ``DetectorConfig``.
    """

    name: str
    source: Source = "MAE"
    choices: Mapping[str, Any] = dataclasses.field(default_factory=dict)


# Rows of one family have the same features.
FAMILIES = (
    (
        Kind("random"),
        Kind("half of the patches, most textured", choices={"score_share": 0.5}),
        Kind("half of the patches, any", choices={"score_share": 0.5, "share_by": "random"}),
    ),
    (Kind("disjoint", choices={"masking": "disjoint"}),),
    (Kind("stratified", choices={"masking": "stratified"}),),
    (Kind("random, random weights", "random weights"),),
    (Kind("random, Gaussian in-painting", "Gaussian in-painting"),),
)
UNIFORM = "uniform share alone"


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Crops of N images.

    Attributes:
      crops: by dose.
      label: (N,) 1 for AI.
      ids: (N,) example ids, by which masks are drawn.
      group: (N,) names, for the bootstrap.
    """

    crops: Mapping[float, UInt8[np.ndarray, "n s s 3"]]
    label: np.ndarray
    ids: np.ndarray
    group: np.ndarray


# --- images -------------------------------------------------------------------------------------


def diluted(
    image: UInt8[np.ndarray, "s s 3"], dose: float, patch: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "s s 3"]:
    """Replaces ⌈dose · L⌉ patches that follow each other in raster order, from a random one on.

    They get the image blurred over ``BLUR`` patches, plus noise: what a blur over ``GRAIN`` pixels
    removes, at random pixels of the ``FLATTEST`` patches.
    """
    size = len(image)
    grid = size // patch
    count = int(np.ceil(dose * grid**2 - 1e-9))
    if not count:
        return image
    chosen = np.zeros(grid**2, bool)
    chosen[(rng.integers(grid**2) + np.arange(count)) % grid**2] = True

    def blurred(radius: float) -> np.ndarray:
        soft = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
        return np.asarray(soft, np.float32)

    grain = image.astype(np.float32) - blurred(GRAIN)
    tiles = grain.reshape(grid, patch, grid, patch, 3).transpose(0, 2, 1, 3, 4)
    tiles = tiles.reshape(grid**2, patch**2, 3)
    flattest = np.argsort(tiles.var(axis=(1, 2)), kind="stable")[: max(1, int(FLATTEST * grid**2))]
    pool = tiles[flattest].reshape(-1, 3)
    noise = pool[rng.integers(len(pool), size=(size, size))]
    background = np.clip(np.rint(blurred(BLUR * patch) + noise), 0, 255).astype(np.uint8)
    replaced = chosen.reshape(grid, grid).repeat(patch, 0).repeat(patch, 1)
    return np.where(replaced[..., None], background, image)


def read(images: Catalog, options: argparse.Namespace, backbone: Backbone, doses: Any) -> Sample:
    """Decodes and equalises images, crops their centre, and dilutes them by every dose."""
    size, patch = backbone.config.image_size, backbone.config.patch_size
    transform = Equalise(Crop(size, 0), side=max(options.side, size), quality=options.quality)
    files = open_images(images, source="folder")
    ids = images.table["example_id"].to_numpy()
    rng = np.random.default_rng(0)  # nothing here is random
    plain = [cast(np.ndarray, transform(files.read(i), rng)) for i in range(len(images))]
    crops = {
        dose: np.stack(
            [
                diluted(crop, dose, patch, np.random.default_rng(int(i)))
                for crop, i in zip(plain, ids, strict=True)
            ]
        )
        for dose in doses
    }
    return Sample(crops, images.labels, ids.astype(np.uint32), groups(images, options))


def groups(images: Catalog, options: argparse.Namespace) -> np.ndarray:
    """Group of every image: column ``group`` of the list, or of ``--groups``; else its path."""
    paths = images.table["path"].to_pylist()
    file = options.groups or (options.root if Path(options.root).is_file() else None)
    if file is None:
        return np.array(paths)
    table = pyarrow.csv.read_csv(file)
    if not {"path", "group"} <= set(table.column_names):
        if options.groups:
            raise SystemExit(f"{file} needs the columns path and group")
        return np.array(paths)
    rows = zip(table["path"].to_pylist(), table["group"].to_pylist(), strict=True)
    named = {path: str(group) for path, group in rows if group}
    return np.array([named.get(path, path) for path in paths])


# --- statistics ---------------------------------------------------------------------------------


class Measure:
    """Statistics of samples; the backbone sees every image once per source, masks and dose."""

    def __init__(self, config: DetectorConfig, backbone: Backbone) -> None:
        self.config, self._backbone = config, backbone
        self._extract = functools.cache(self._compiled)

    def own(self, kind: Kind, num_runs: int = 0) -> DetectorConfig:
        """The configuration of a row."""
        choices = {"num_runs": num_runs or self.config.num_runs, **kind.choices}
        return dataclasses.replace(self.config, **choices)

    def features(self, kind: Kind, crops: np.ndarray, ids: np.ndarray, num_runs: int) -> Features:
        """Runs 0 … num_runs-1 of every image, NumPy, without f_global."""
        masks = self.own(kind).masking
        frozen, extract = self._extract(kind.source, masks, num_runs)
        parts = []
        for start in range(0, len(ids), CHUNK):
            filled = np.resize(np.arange(start, min(start + CHUNK, len(ids))), CHUNK)
            batch = {  # one shape, one program
                "image": crops[filled],
                "example_id": ids[filled],
                "epoch": np.zeros(CHUNK, np.int32),
            }
            found = jax.tree.map(np.asarray, extract(frozen, jax.random.key(0), batch))
            count = min(CHUNK, len(ids) - start)
            parts.append(jax.tree.map(lambda leaf, n=count: leaf[:n], found))
        whole: Features = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return whole

    def _compiled(self, source: Source, masks: Masking, num_runs: int) -> tuple[Backbone, Any]:
        frozen, reconstruct, _ = retraining.frozen(source, self._backbone, 0)
        config = dataclasses.replace(self.config, masking=masks)
        runs = extraction.first_runs(num_runs)
        return frozen, jax.jit(extraction.make_extract(config, runs, reconstruct=reconstruct))

    def statistics(
        self, features: Features, kind: Kind, runs: Sequence[int]
    ) -> Float[np.ndarray, "n 3"]:
        """s1 … s3 over some of the runs."""
        config = self.own(kind, len(runs))
        terms, masked = jax.tree.map(lambda x: x[:, list(runs)], (features.terms, features.masked))
        drawn = dataclasses.replace(features, terms=terms, masked=masked)
        return np.asarray(cinemae.statistics(drawn, config, self._backbone.config.num_patches))


def scored(
    measured: Measure, train: Sample, test: Sample, doses: Sequence[float]
) -> tuple[dict[str, Float[np.ndarray, "d n"]], list[dict[str, Any]]]:
    """Logits of the test images at every dose, by row; and what repeats (``retest``)."""
    rows: dict[str, np.ndarray] = {}
    repeated = []
    runs = range(measured.config.num_runs)
    for kinds in FAMILIES:
        first = kinds[0]
        learned = measured.features(first, train.crops[0.0], train.ids, len(runs))
        stored = len(runs) if first.source != "MAE" else 2 * max(RETESTED)
        at = {
            dose: measured.features(
                first, test.crops[dose], test.ids, len(runs) if dose else stored
            )
            for dose in doses
        }
        for kind in kinds:
            stats = [measured.statistics(at[dose], kind, runs) for dose in doses]
            own = measured.statistics(learned, kind, runs)
            rows[kind.name] = _logits(own, train.label, stats)
        if first.source == "MAE":
            repeated += retest(measured, first, at[0.0], test.label)
        if UNIFORM not in rows:
            flat, *shares = (np.asarray(f.uniform_share) for f in (learned, *at.values()))
            rows[UNIFORM] = _logits(flat[:, None], train.label, [one[:, None] for one in shares])
        print(f"scored    {', '.join(kind.name for kind in kinds)}", flush=True)
    return rows, repeated


def _logits(learned: np.ndarray, label: np.ndarray, at: Sequence[np.ndarray]) -> np.ndarray:
    head = make_pipeline(StandardScaler(), LogisticRegression()).fit(learned, label)
    return np.stack([head.decision_function(stats) for stats in at])


def retest(
    measured: Measure, kind: Kind, features: Features, label: np.ndarray
) -> list[dict[str, Any]]:
    """Correlations between two draws, and AUC of each statistic, of undiluted images."""
    rows = []
    for num_runs in RETESTED:
        size = measured.own(kind).group_size
        draws = masking.first_runs(num_runs, num_draws=2, group_size=size).tolist()
        first, second = (measured.statistics(features, kind, runs) for runs in draws)
        row: dict[str, Any] = {"masks": kind.name, "K": num_runs}
        for i, name in enumerate(STATISTICS):
            auc = signal.weighted_auc(label == 1, first[:, i], np.ones((1, len(label))))
            row[f"retest {signal.SHORT[name]}"] = signal.retest(first[:, i], second[:, i])
            row[f"AUC {signal.SHORT[name]}"] = float(auc[0])
        rows.append(row)
    return rows


# --- tables -------------------------------------------------------------------------------------


def compared(
    rows: Mapping[str, np.ndarray], test: Sample, doses: Sequence[float], times: int
) -> list[dict[str, Any]]:
    """AUC of every row and dose, its change with the dose, its difference to random masks.

    All AUCs of a resample draw the same groups, so the differences are paired.
    """
    is_ai = test.label == 1
    drawn = [np.ones((1, len(is_ai)))]
    drawn += resamples(test.label.astype(np.int64), test.group, times=times, seed=0)

    def aucs(logits: np.ndarray) -> np.ndarray:
        found = [signal.weighted_auc(is_ai, logits, weights) for weights in drawn]
        return np.concatenate(found)

    by_row = {name: [aucs(logits) for logits in at] for name, at in rows.items()}
    reference = by_row["random"]
    found = []
    for name, at in by_row.items():
        for dose, own, random in zip(doses, at, reference, strict=True):
            values = np.stack([own, own - at[0], own - random])
            estimated = estimates(values, 0.95, ("auc", "change", "to_random"))
            found.append(
                {"row": name, "dose": dose}
                | {what: dataclasses.asdict(one) for what, one in estimated.items()}
            )
    return found


def show(found: Mapping[str, Any]) -> None:
    """Prints both tables."""
    console = Console(width=None if Console().is_terminal else 2 * measure.FILE_WIDTH)
    table = Table(title="two draws of masks, undiluted images")
    for head in found["retest"][0]:
        table.add_column(head)
    for row in found["retest"]:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    console.print(table)
    title = "AUC; change: to the same row undiluted; [95 % intervals over groups, paired]"
    table = Table(title=title)
    for head in ("", "dose", "AUC", "change", "minus random"):
        table.add_column(head)
    for row in found["dilution"]:
        cells = [_interval(row[what]) for what in ("auc", "change", "to_random")]
        table.add_row(row["row"], f"{row['dose']:.0%}", *cells)
    console.print(table)


def _interval(record: Mapping[str, float]) -> str:
    one = Estimate(**record)
    return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole experiment."""
    trained = bundle.load(options.detector).detector
    before = trained.settings.detector
    config = DetectorConfig(
        num_runs=options.runs or before.num_runs,
        mask_ratio=before.mask_ratio,
        score=before.score,
        mismatch_weight=before.mismatch_weight,
        dtype=before.dtype,
        fusion="lcas",
    )
    doses = sorted({0.0, *options.doses})
    images = catalog.scan(options.root)
    test = conditions.sample(images.select(split="val"), options.images)
    train = conditions.sample(images.select(split="train"), options.train_images)
    for part, name in ((train, "the train split"), (test, "the val split")):
        part.require_both_classes(name)
    print(f"reading   {len(train)} train and {len(test)} val images", flush=True)
    backbone = trained.backbone
    learned = read(train, options, backbone, (0.0,))
    judged = read(test, options, backbone, doses)
    rows, repeated = scored(Measure(config, backbone), learned, judged, doses)
    return {
        "detector": options.detector,
        "config": dataclasses.asdict(config),
        "side": options.side,
        "quality": options.quality,
        "train": {"images": len(train), "fingerprint": train.fingerprint},
        "test": {
            "images": len(test),
            "groups": len(set(judged.group.tolist())),
            "fingerprint": test.fingerprint,
        },
        "retest": repeated,
        "dilution": compared(rows, judged, doses, options.bootstrap),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("root", help="folder in a known layout, or a CSV list (docs/data.md); needs both splits")
    add("--detector", default="tiny", help="run, bundle or bundled name: backbone, K, score, λ")
    add("--groups", help="CSV with columns path and group, for example prompts")
    add("--images", type=int, default=18, help="val images per class and generator; 0: all")
    add("--train-images", type=int, default=150, help="train images per class and generator")
    add("--side", type=int, default=128, help="shorter side of all images, pixels")
    add("--quality", type=int, default=90, help="JPEG quality of all images")
    add("--runs", type=int, default=0, help="K; default: the detector's")
    add("--doses", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="diluted shares")
    add("--bootstrap", type=int, default=1000, help="resamples")
    add("--json", type=Path)
    options = parser.parse_args(argv)
    found = run(options)
    show(found)
    if options.json:
        measure.write(options.json, {"machine": measure.machine(), **json.loads(json.dumps(found))})


if __name__ == "__main__":
    main()
