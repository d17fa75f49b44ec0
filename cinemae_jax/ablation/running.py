"""Runs the rows of an ablation, each in a folder of its own, on shared banks."""

import contextlib
import dataclasses
import hashlib
import json
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax

from cinemae_jax import __version__, weights
from cinemae_jax.ablation import effects, table, timing
from cinemae_jax.ablation.effects import PHASES, Finished
from cinemae_jax.ablation.plan import Ablation, Variant
from cinemae_jax.data.order import Order
from cinemae_jax.data.unread import BadImage, BadImages
from cinemae_jax.detector import loading, resuming, trained
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.evaluation import report, results
from cinemae_jax.features import filling, splits
from cinemae_jax.features.extraction import Extractor
from cinemae_jax.features.filling import Bank
from cinemae_jax.features.run import UNREAD, Run
from cinemae_jax.features.sources import BankedSet, FeatureSet, OnlineSet, Sets
from cinemae_jax.features.splits import Data
from cinemae_jax.model.cinemae import Backbone, num_params, random_backbone
from cinemae_jax.model.head import HeadState
from cinemae_jax.runtime import progress
from cinemae_jax.runtime.checkpoints import Checkpoints
from cinemae_jax.runtime.console import versions
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.runtime.files import replacing
from cinemae_jax.runtime.preemption import Preempted
from cinemae_jax.settings import DataSettings, Settings
from cinemae_jax.training import fitting, unfrozen
from cinemae_jax.training.unfrozen import Tuned, Unfrozen

# In the folder of a row: what it was made of and what it cost; absent until the row is done.
FINISHED = "row.json"
# What a row may end in: divergence, files, memory. Other errors show where they arose.
EXPECTED = (ValueError, OSError, jax.errors.JaxRuntimeError)


def ablate(plan: Ablation, workdir: Path, replicas: Replicas | None = None) -> list[Any]:
    """Runs the rows that are not finished, and writes the table.

    Args:
      plan: what to run.
      workdir: of the ablation; every row has a folder in it, and banks lie in ``banks``.
      replicas: devices to share every batch; None means all.

    Returns:
      Names of the rows that failed, and the images that could not be read.
    """
    replicas = replicas or Replicas()
    if replicas.host.count > 1:
        raise ValueError("an ablation runs on one host: use train on several, row by row")
    for row in plan.rows:
        for section in ("train", "eval", "features"):
            size = getattr(row.config, section).batch_size
            replicas.check_batch_size(size, f"row {row.name!r}: config.base.{section}.batch_size")
    bench = Bench(workdir / "banks", replicas)
    rows: dict[str, Finished | str] = {}
    bad: dict[str, BadImage] = {}
    for row in plan.rows:
        folder = workdir / row.folder
        progress.say(f"--- {plan.title}: {row.name}")
        try:
            rows[row.name] = run_row(row, folder, bench)
        except Preempted:
            raise
        except Exception as error:  # the rows that worked are not lost with it
            if not isinstance(error, EXPECTED):
                traceback.print_exception(error)
            rows[row.name] = " ".join(str(error).split()) or type(error).__name__
            progress.say(f"failed    {rows[row.name]}")
        bad |= {image.path: image for image in BadImages(folder / UNREAD).listed}
    first = plan.rows[0].config
    compared = effects.lines(
        rows,
        {row.name: row.reported for row in plan.rows},
        bootstrap=first.eval.bootstrap,
        confidence=first.eval.confidence,
        seed=first.seed,
    )
    facts = {
        "command": " ".join(sys.argv),
        "versions": versions(report.PACKAGES),
        "folders": {row.name: row.folder for row in plan.rows},
    }
    table.write(workdir, plan.title, compared, first.eval.confidence, facts)
    progress.say(table.as_text(plan.title, compared, first.eval.confidence))
    progress.say(f"table     {workdir / 'ablation.md'}")
    return [*(line.name for line in compared if line.failure), *bad.values()]


class Bench:
    """What the rows share: devices, folder of the banks, the scanned data, the loaded backbone."""

    def __init__(self, banks: Path, replicas: Replicas) -> None:
        self.banks, self.replicas = banks, replicas
        self._data: dict[DataSettings, Data] = {}
        self._backbone: tuple[Any, Backbone] | None = None  # what it was made of, and itself

    def data(self, config: DataSettings) -> Data:
        """The images of a run, scanned once."""
        if config not in self._data:
            self._data[config] = splits.read_data(config)
        return self._data[config]

    def backbone(self, config: Settings) -> Backbone:
        """The backbone of a run; only that of the last row stays in memory."""
        key = config.backbone, config.global_backbone, any(config.runs.values())
        if self._backbone is None or self._backbone[0] != key:
            self._backbone = None
            self._backbone = key, loading.load_backbone(config)
        return self._backbone[1]


@dataclasses.dataclass(frozen=True)
class RowInProgress:
    """One row under way.

    Attributes:
      variant: what the plan says.
      data: its images.
      backbone: that it starts from.
      run: its folder, and the images that it could not read.
      seconds: spent on each of ``PHASES`` so far.
    """

    variant: Variant
    data: Data
    backbone: Backbone
    run: Run
    seconds: dict[str, float]

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds the seconds of a block to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


# --- one row ------------------------------------------------------------------------------------


def run_row(variant: Variant, folder: Path, bench: Bench) -> Finished:
    """Trains and evaluates a row, unless it was finished with the same settings before."""
    config = variant.config
    data, backbone = bench.data(config.data), bench.backbone(config)
    made_of = _made_of(variant, data, backbone)
    note = folder / FINISHED
    if note.is_file() and json.loads(note.read_text())["made_of"] == made_of:
        progress.say(f"finished  in {folder}")
        return _finished(folder)
    note.unlink(missing_ok=True)
    run = Run.start(folder, bench.replicas)
    row = RowInProgress(variant, data, backbone, run, dict.fromkeys(PHASES, 0.0))
    resumed = (folder / "checkpoints").is_dir() or (folder / unfrozen.FOLDER).is_dir()
    if not resumed:
        run.unread.forget()
    if variant.unfrozen:
        detector, test, trained_too = _unfrozen(row, variant.unfrozen)
    else:
        detector, test, trained_too = *_frozen(row, bench.banks), 0
    with row.timed("evaluation"):
        results.evaluate(detector, test, run)
    splits.report_unread(folder, run.unread.listed)
    of_head = num_params(detector.heads.params) // config.num_seeds
    trained_parameters = of_head + trained_too
    cost = {
        "seconds": row.seconds,
        "resumed": resumed,
        "trained_parameters": trained_parameters,
        "milliseconds": timing.milliseconds_per_image(detector, bench.replicas)
        if variant.timed
        else None,
    }
    with replacing(note) as partial:
        partial.write_text(json.dumps({"made_of": made_of, **cost}, indent=2) + "\n")
    return _finished(folder)


def _made_of(row: Variant, data: Data, backbone: Backbone) -> dict[str, Any]:
    """All that the result of a row depends on, as JSON has it."""
    parts = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    made_of = {
        "version": __version__,
        "settings": dataclasses.asdict(row.config),
        "unfrozen": row.unfrozen and dataclasses.asdict(row.unfrozen),
        **({"control": row.control} if row.control else {}),
        **backbone.hashes,
        "images": {name: images.fingerprint for name, images in parts.items()},
    }
    return json.loads(json.dumps(made_of))


def _finished(folder: Path) -> Finished:
    note = json.loads((folder / FINISHED).read_text())
    scores = effects.read_scores(folder / "scores.csv")
    return Finished(
        scores,
        note["seconds"],
        note["resumed"],
        note["trained_parameters"],
        tuple(note["made_of"]["settings"]["data"]["train_generators"]),
        note.get("milliseconds"),
    )


def _frozen(row: RowInProgress, banks: Path) -> tuple[TrainedDetector, FeatureSet]:
    """What ``train`` does, with a bank that other rows share."""
    data, backbone, run = row.data, row.backbone, row.run
    config = row.variant.config
    if row.variant.control == "random weights":
        backbone = _untrained(run.workdir / "backbone.safetensors", backbone, config.seed)
        config = dataclasses.replace(config, backbone=str(run.workdir / "backbone.safetensors"))
    made = filling.banks(config, data, backbone, banks)
    shared = shared_folder(made, Path(config.features.bank) if config.features.bank else banks)
    features = dataclasses.replace(config.features, bank=str(shared))
    config = dataclasses.replace(config, features=features)
    with Checkpoints(run.workdir / "checkpoints", best=resuming.validation_score) as checkpoints:
        metadata = trained.metadata(config, backbone, data)
        resuming.require_resumable(checkpoints, metadata, backbone)
        with row.timed("bank"):
            sets = filling.open_sets(config, data, backbone, run)
            if row.variant.control == "shuffled scores":
                sets = _shuffled(sets, config.seed)
        with row.timed("training"):
            fitting.fit(config, sets, backbone, run, checkpoints, metadata)
    best = loading.load(
        run.workdir, backbone=config.backbone, global_backbone=config.global_backbone
    )
    return dataclasses.replace(best, settings=config), sets.test


def _untrained(path: Path, backbone: Backbone, seed: int) -> Backbone:
    """A backbone of random weights, written once: a rewritten file may have another hash."""
    if not path.is_file():
        params = random_backbone(backbone.config, seed).params
        weights.save(path, backbone.config, params, {"method": f"random weights, seed {seed}"})
    return weights.load(path)


def _shuffled(sets: Sets, seed: int) -> Sets:
    """The sets, all readable images of each with the anomaly scores of another one."""

    def one(banked: BankedSet) -> BankedSet:
        return dataclasses.replace(banked, stored=banked.stored.with_shuffled_terms(seed))

    parts = {field.name: getattr(sets, field.name) for field in dataclasses.fields(sets)}
    return Sets(**{name: one(cast(BankedSet, part)) for name, part in parts.items()})


def shared_folder(banks: Mapping[str, Bank], folder: Path) -> Path:
    """A folder named by all that the features of a row depend on: rows that agree share a bank."""
    contents = [(name, one.recipe.choices, one.images.fingerprint) for name, one in banks.items()]
    digest = hashlib.sha256(json.dumps(contents).encode()).hexdigest()
    return folder / digest[:16]


def _unfrozen(row: RowInProgress, how: Unfrozen) -> tuple[TrainedDetector, FeatureSet, int]:
    """Trains head and backbone, and leaves both as a detector of its own in the row's folder.

    Returns:
      The detector, the test images, and how many of the backbone's parameters were trained.
    """
    config, data, backbone, run = row.variant.config, row.data, row.backbone, row.run
    extractor = Extractor(config.detector, config.masks, backbone, run.replicas)
    learned, held_out, test = (
        OnlineSet(images, extractor, config.data, config.eval.batch_size, config.features.num_views)
        for images in (data.train, data.validation, data.test)
    )
    with row.timed("training"):
        heads = trained.head_template(config, backbone)
        order = Order(len(data.train), config.train.batch_size, config.train.epochs, config.seed)
        normalizer = fitting.fit_normalizer(
            config.detector, heads, learned, order, run.replicas, config.train.standardize_images
        )
        heads = HeadState(heads.params, normalizer)
        validate = unfrozen.validator(held_out, config.detector, run)
        tuned = unfrozen.fit(config, how, data, backbone, heads, validate, run)
    detector = _saved(row, tuned, how)
    extractor.use(detector.backbone)
    moved, _ = unfrozen.split(tuned.params, how.part)
    return detector, test, num_params(moved)


def _saved(row: RowInProgress, tuned: Tuned, how: Unfrozen) -> TrainedDetector:
    """Writes a tuned backbone and its head, once, and loads them as a detector."""
    config, folder = row.variant.config, row.run.workdir
    path = folder / "backbone.safetensors"
    method = f"{how.part} of {row.backbone.sha256} trained by cinemae_jax.ablate"
    with Checkpoints(folder / "checkpoints", best=resuming.validation_score) as checkpoints:
        if checkpoints.latest is None:  # written once: a rewritten file may have another hash
            digest = weights.save(path, row.backbone.config, tuned.params, {"method": method})
            new = Backbone(tuned.params, row.backbone.config, digest)
            own = dataclasses.replace(config, backbone=str(path))
            checkpoints.save(
                tuned.step,
                {"head": tuned.heads, "held_out": tuned.held_out},
                trained.metadata(own, new, row.data),
                {"validation_loss": tuned.validation_loss},
            )
    return loading.load(folder, backbone=str(path))
