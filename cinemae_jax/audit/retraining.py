"""Trains and scores the controls of a detector: heads by the same recipe, on other features.

In: a detector, images to train on and images to score.  Out: scores of every control.  Features are
computed once per source and held in memory.
"""

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from cinemae_jax.audit.conditions import Change, Scored, corrupting, unchanged
from cinemae_jax.audit.controls import SHRINK, Control, Source, controls, gaussian_inpainting
from cinemae_jax.audit.rescoring import Rescorer
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import resuming, trained
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.features import sources
from cinemae_jax.features.bank import TERMS, Stored
from cinemae_jax.features.extraction import Extractor, Featured
from cinemae_jax.features.run import Run
from cinemae_jax.features.sources import BankedSet, OnlineSet, Sets
from cinemae_jax.features.splits import Data
from cinemae_jax.model import masking
from cinemae_jax.model.cinemae import Backbone, Reconstruct, random_backbone
from cinemae_jax.model.config import DetectorConfig
from cinemae_jax.runtime.checkpoints import Checkpoints
from cinemae_jax.runtime.devices import merge
from cinemae_jax.training import fitting

# Masking runs stored per image, for recipes that draw new runs in every step.
LEAST_RUNS = 4


class Retrainer:
    """Trains and scores controls."""

    def __init__(self, detector: TrainedDetector, data: Data, run: Run) -> None:
        """
        Args:
          detector: gives the recipe.
          data: images to train on, to choose the checkpoint by, and to score.
          run: devices, and the list of unread images; its folder is not used.
        """
        config = detector.settings
        self._settings = dataclasses.replace(
            config,
            features=dataclasses.replace(
                config.features,
                source="bank",
                num_runs=_stored_runs(config.detector, config.features.num_runs),
                num_views=config.features.num_views or 1,
            ),
        )
        self._backbone, self._data = detector.backbone, data
        self._run = run
        self._stored: dict[Source, dict[str, Stored]] = {}

    def __call__(self, control: Control) -> Scored:
        """Trains a control, and scores the test images with its best checkpoint."""
        config = dataclasses.replace(self._settings, detector=control.detector)
        if control.source not in self._stored:
            self._stored[control.source] = self._extracted(control.source)
        columns = sources.needed_columns(control.detector)

        def banked(name: str, stored: Stored) -> BankedSet:
            own = Stored({column: stored.columns[column] for column in columns}, stored.errors)
            return BankedSet(
                getattr(self._data, name),
                own,
                config.detector,
                config.masks,
                self._backbone.config,
                self._backbone.global_width,
                self._run.replicas,
                batch_size=config.eval.batch_size,
                num_views=config.features.num_views,
            )

        sets = Sets(**{n: banked(n, one) for n, one in self._stored[control.source].items()})
        with tempfile.TemporaryDirectory(prefix="cinemae-audit-") as folder:
            run = dataclasses.replace(self._run, workdir=Path(folder))
            detector = self._trained(control.detector, sets, run)
        return Rescorer(detector, self._run.replicas, self._run.unread).of(sets.test)

    def _trained(self, head: DetectorConfig, sets: Sets, run: Run) -> TrainedDetector:
        config = dataclasses.replace(self._settings, detector=head)
        backbone, data = self._backbone, self._data
        metadata = trained.metadata(config, backbone, data)
        like = {"head": trained.head_template(config, backbone)}
        folder = run.workdir / "checkpoints"
        with Checkpoints(folder, best=resuming.validation_score) as checkpoints:
            fitting.fit(config, sets, backbone, run, checkpoints, metadata)
            step = checkpoints.best or checkpoints.latest or 0
            heads = checkpoints.restore(step, like)["head"]
        unknown = trained.HeldOut.unknown(len(data.validation), config.num_seeds)
        return TrainedDetector(backbone, heads, config, step, unknown, data.validation.fingerprint)

    def _extracted(self, source: Source) -> dict[str, Stored]:
        config, fed = self._settings, self._backbone.preprocessing
        size = self._backbone.config.image_size
        backbone, reconstruct, change = frozen(source, self._backbone, config.seed)
        extractor = Extractor(
            config.detector,
            config.masks,
            backbone,
            self._run.replicas,
            reconstruct=reconstruct,
            whole=True,  # several heads share these features
        )
        heads = [control.detector for control in controls(config.detector)]
        needed = dict.fromkeys(
            ("f_global", *(c for head in heads for c in sources.needed_columns(head)))
        )

        def stored(images: Catalog, *, learned: bool) -> Stored:
            data, features = config.data, config.features
            own = data.train_transform if learned else data.eval_transform
            transform = change(own(size, fed))
            views = features.num_views if learned else 1
            batch_size = features.batch_size if learned else config.eval.batch_size
            once = OnlineSet(images, extractor, data, batch_size)
            shown = once.views(transform, views, range(len(images)))
            extract = extractor.storing if learned else extractor.scoring
            batches = extractor(extract, shown)
            return collect(batches, images, views, tuple(needed), self._run.unread)

        return {
            "train": stored(self._data.train, learned=True),
            "validation": stored(self._data.validation, learned=False),
            "test": stored(self._data.test, learned=False),
        }


def frozen(
    source: Source, backbone: Backbone, seed: int
) -> tuple[Backbone, Reconstruct | None, Change]:
    """What features of a source are made with: backbone, reconstruction, change of the images.

    Args:
      source: of the features.
      backbone: the detector's.
      seed: of random weights.
    """
    match source:
        case "MAE":
            return backbone, None, unchanged
        case "random weights":
            fresh = random_backbone(backbone.config, seed)
            return dataclasses.replace(fresh, encoder=backbone.encoder), None, unchanged
        case "Gaussian in-painting":
            return backbone, gaussian_inpainting(backbone.config), unchanged
        case "MAE on shrunken images":
            return backbone, None, corrupting(SHRINK)


def collect(
    batches: Iterable[Featured],
    images: Catalog,
    num_calls: int,
    columns: Sequence[str],
    bad: BadImages,
) -> Stored:
    """Features of all images, in memory.

    Args:
      batches: all of ``images`` in order, ``num_calls`` examples per image.
      images: the images that rows of a batch refer to.
      num_calls: how often the transform is applied to each image.
      columns: names of those to keep, as in a bank; ``f_global`` and ``uniform_share`` among them.
      bad: records images that cannot be read.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in columns}
    errors: list[str] = []
    for batch, features in batches:
        bad.note(images, batch)
        errors.extend(batch["error"][::num_calls].tolist())
        merged = merge(features)
        for name in columns:
            parts[name].append(getattr(merged.terms if name in TERMS else merged, name))

    def column(name: str) -> np.ndarray:
        flat = np.concatenate(parts[name])
        views = len(flat) // len(errors)
        return flat.reshape(len(errors), views, *flat.shape[1:])[: len(images)]

    return Stored({name: column(name) for name in columns}, np.array(errors)[: len(images)])


def _stored_runs(config: DetectorConfig, num_stored: int) -> int:
    if not config.num_runs:
        return 0
    least = max(LEAST_RUNS, config.num_runs)
    return num_stored or masking.whole_groups(least, config.group_size)
