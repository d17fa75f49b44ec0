"""The public detector: images in, calibrated probabilities and verdicts out.

    from cinemae_jax import Detector
    Detector.load().predict("photo.jpg")

The score of an image does not depend on its name, its batch or the calling thread: the masks are
drawn by a hash of the pixels, and all batches have the same shape.
"""

import dataclasses
import functools
import os
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt32

from cinemae_jax.data.refusal import DecodeError
from cinemae_jax.data.transforms import Pixels, blank
from cinemae_jax.detector import bundle, heatmap, inference, inputs, prediction
from cinemae_jax.detector.bundle import Bundle
from cinemae_jax.detector.heatmap import LcasMap
from cinemae_jax.detector.inference import ImageScores
from cinemae_jax.detector.inputs import Source
from cinemae_jax.detector.prediction import ALTERATIONS, PictureFacts, Prediction
from cinemae_jax.model.config import SCORES, Score
from cinemae_jax.runtime.devices import Replicas, merge

__all__ = ["Detector", "Prediction"]

OPINION = (
    "A statistical opinion, not a proof: it can be wrong about any image and does not know where "
    "an image comes from."
)
# Images per accelerator and step.  On a CPU it is 1: larger batches were not faster, and the first
# answer would come later.
ACCELERATOR_BATCH = 32
MAX_THREADS = 8  # decoding threads


class Detector:
    """A trained detector that scores images; thread-safe.

    Attributes:
      trained: backbone, heads and settings; scores come from the first head.
      name: name it was loaded by, and the first digits of its hash.
      card: description by its authors; empty if there is none.
      seen: what is known of its training files, or None.
      calibration: from logits to probabilities and verdicts.
      transform: cuts the crops that are scored.
      runs: masking runs per image.
      batch_size: images per step, over all devices.
    """

    def __init__(
        self,
        loaded: Bundle,
        *,
        runs: int | None = None,
        fpr: float | None = None,
        batch_size: int | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        """See ``load`` for the arguments."""
        trained, config = loaded.detector, loaded.detector.settings
        if fpr is not None:
            if not 0 < fpr < 1:
                raise ValueError(
                    f"fpr is {fpr}: give the share of photographs that may be called ai, between "
                    "0 and 1"
                )
            config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, fpr=fpr))
            trained = dataclasses.replace(trained, settings=config)
        self.trained, self.card, self.seen = trained, loaded.card, loaded.seen
        self.name = f"{loaded.name} {bundle.identity(trained)}"
        self.calibration = trained.calibration()
        backbone = trained.backbone
        self.transform = config.data.eval_transform(
            backbone.config.image_size, backbone.preprocessing
        )
        self.runs = config.detector.num_runs if runs is None else runs
        self._num_groups = _num_groups(self.runs, config.detector.num_runs)
        self._replicas = replicas or Replicas()
        if batch_size is None:
            per_device = 1 if jax.default_backend() == "cpu" else ACCELERATOR_BATCH
            batch_size = per_device * self._replicas.count
        self._replicas.check_batch_size(batch_size, "batch_size")
        self.batch_size = batch_size
        placed = backbone.in_dtype(config.detector.dtype)
        self._frozen = self._replicas.replicate((placed, trained.first_head, trained.mask_key))
        self._lock = threading.Lock()  # one batch at a time: bounded memory under load

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] = "",
        *,
        backbone: str = "",
        global_backbone: str = "",
        runs: int | None = None,
        fpr: float | None = None,
        batch_size: int | None = None,
        replicas: Replicas | None = None,
    ) -> "Detector":
        """Loads a detector.

        Args:
          source: name of a bundled detector, file of ``cinemae bundle``, or folder of a training
            run; empty takes the best bundled one.
          backbone, global_backbone: files of its backbone and of its global encoder; empty uses
            those that the detector names.
          runs: masking runs per image, a multiple of those in training (the default).  More runs
            give a steadier score and an estimate of its uncertainty.
          fpr: largest share of photographs that may be called AI; None uses the detector's.
          batch_size: images per step; None chooses by device.
          replicas: devices; None uses all.

        Raises:
          CheckpointError: if the detector is missing, damaged, or trained on another backbone.
          weights.BackboneError: if the backbone cannot be read.
          ValueError: if runs, fpr or batch_size is invalid for this detector.
        """
        loaded = bundle.load(source, backbone=backbone, global_backbone=global_backbone)
        return cls(loaded, runs=runs, fpr=fpr, batch_size=batch_size, replicas=replicas)

    def predict(
        self, images: Source | Iterable[Source], *, stability: bool = False
    ) -> list[Prediction]:
        """Scores images; an unread file gives a prediction with an ``error``.

        Args:
          images: one or several paths, file contents (bytes), Pillow images, or (H, W, 3) uint8
            RGB arrays.
          stability: also score each image after mild changes (``ALTERATIONS``): four times the
            cost.

        Returns:
          Predictions in the order of the images.

        Raises:
          TypeError, ValueError: if an object cannot be an image, such as an array of floats.
        """
        return list(self.stream(inputs.listed(images), stability=stability))

    def stream(self, images: Iterable[Source], *, stability: bool = False) -> Iterator[Prediction]:
        """Like ``predict``, but yields one by one: for more images than fit into memory."""
        prepare = functools.partial(self._prepare, stability=stability)
        waiting: list[_Prepared] = []
        for prepared in inputs.ahead(prepare, images, min(MAX_THREADS, os.cpu_count() or 1)):
            waiting.append(prepared)
            slots = sum(one.slots for one in waiting)
            if slots >= self.batch_size or not slots:
                yield from self._predict_batch(waiting)
                waiting = []
        yield from self._predict_batch(waiting)

    def lcas_map(
        self, image: Source, runs: int = heatmap.RUNS, score: Score | None = None
    ) -> LcasMap:
        """Mean LCAS of every patch that the detector looks at.

        Args:
          image: one image, as in ``predict``.
          runs: masking runs; the first ones are those of the score.
          score: LCAS variant; None uses the detector's.  ``mismatch`` is the reconstruction error
            alone.

        Raises:
          DecodeError, OSError: if the image cannot be read.
          ValueError: if runs or score is invalid, or the backbone has no decoder.
        """
        config = self.trained.settings.detector
        variant: Score = config.score if score is None else score
        if variant not in SCORES:
            raise ValueError(f"score {variant!r}: use one of {', '.join(SCORES)}")
        if runs < 1:
            raise ValueError(f"runs must be 1 or more, is {runs}")
        if not self.trained.backbone.config.has_decoder:
            raise ValueError(
                f"the backbone of {self.name} has no decoder, which heat maps need: use another "
                "detector"
            )
        picture = inputs.read(image)
        with self._lock:
            return heatmap.compute(
                self._on_one_device,
                picture.image,
                picture.example_id,
                self.transform,
                config,
                runs=runs,
                score=variant,
            )

    def in_words(self) -> list[str]:
        """What to tell a reader of the numbers: the opinion, the promises, the masking runs."""
        said = [f"{OPINION} Detector: {self.name}.", *self.calibration.in_words()]
        if self._num_groups > 1:
            said.append(
                f"{self.runs} masking runs per image: the logit is the mean over "
                f"{self._num_groups} groups of {self.trained.settings.detector.num_runs} runs, the "
                "number used in training and calibration"
            )
        return said

    def warm_up(self) -> None:
        """Compiles the scoring program now instead of with the first image."""
        with self._lock:
            self._scorer  # noqa: B018

    # --- one batch ------------------------------------------------------------------------------

    def _prepare(self, source: Source, *, stability: bool) -> "_Prepared":
        """Decodes an image and cuts its crops, in a decoding thread."""
        start = time.perf_counter()
        try:
            picture = inputs.read(source)
            altered = (alter(picture.image) for alter in ALTERATIONS.values() if stability)
            cut = [self.transform.cut(image) for image in (picture.image, *altered)]
            crops = jax.tree.map(lambda *x: np.stack(x), *cut)
        except (DecodeError, OSError) as failure:
            crops, facts = blank(self.transform, 0), None
            error = getattr(failure, "strerror", None) or str(failure) or type(failure).__name__
        else:
            facts, error = PictureFacts.of(picture, source), ""
        return _Prepared(source, crops, facts, error, time.perf_counter() - start)

    def _predict_batch(self, prepared: "list[_Prepared]") -> Iterator[Prediction]:
        """Predictions in the order of the images."""
        readable = [one for one in prepared if one.facts]
        if not readable:
            yield from map(self._refused, prepared)
            return
        self.warm_up()
        counts = [one.slots for one in readable]
        ids = np.repeat([one.facts.example_id for one in readable if one.facts], counts)
        start = time.perf_counter()
        crops = jax.tree.map(lambda *x: np.concatenate(x), *(one.crops for one in readable))
        scored = self.score_crops(crops, ids)
        share = (time.perf_counter() - start) / len(readable)
        at = 0
        for one in prepared:
            if one.facts is None:
                yield self._refused(one)
                continue
            rows = slice(at, at + one.slots)
            its = ImageScores(scored.logit[rows], scored.uniform_share[rows])
            at += one.slots
            yield self._predicted(one, one.facts, its, share)

    def score_crops(self, crops: Pixels, ids: UInt32[np.ndarray, " b"]) -> ImageScores:
        """Scores of images from their crops and ids, in batches of one shape.

        Args:
          crops: of ``transform.cut``, with an axis of images in front.
          ids: example ids.
        """
        count, size = len(ids), self.batch_size
        missing = -count % size
        padding = blank(self.transform, missing)
        crops = jax.tree.map(lambda *x: np.concatenate(x), crops, padding)
        ids = np.concatenate([ids, np.zeros(missing)]).astype(np.uint32)
        parts = []
        for start in range(0, count, size):
            here = slice(start, start + size)
            batch = jax.tree.map(lambda x: x[here], (crops, ids))  # noqa: B023 - called at once
            with self._lock:
                parts.append(merge(self._scorer(*self._frozen, self._replicas.split(batch))))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)

    @functools.cached_property
    def _scorer(self) -> Any:
        """The scoring program, compiled for the one batch shape."""
        logits = inference.make_logits(self.trained.settings.detector, self._num_groups)

        def of_batch(backbone: Any, head: Any, key: Any, batch: tuple) -> ImageScores:
            return logits(backbone, head, key, *batch)

        shapes = blank(self.transform, self.batch_size), np.zeros(self.batch_size, np.uint32)
        mapped: Any = self._replicas.pmap_map(of_batch, replicated=3)
        return mapped.lower(*self._frozen, self._replicas.split(shapes)).compile()

    @functools.cached_property
    def _on_one_device(self) -> Any:
        return jax.device_put(self._frozen, self._replicas.mesh.local_devices[0])

    def _predicted(
        self, one: "_Prepared", facts: PictureFacts, scored: ImageScores, seconds: float
    ) -> Prediction:
        """The prediction from the (1 + alterations, G) logits of an image."""
        config = self.trained.settings.detector
        logit = scored.logit.astype(np.float64).mean(axis=1)
        if not np.isfinite(logit).all():
            error = "its score is not finite: the detector's weights are damaged or too large"
            return self._refused(dataclasses.replace(one, error=error))
        by_group = self.calibration.probability(scored.logit[0])
        probability = self.calibration.probability(logit)
        low_context = scored.uniform_share > config.low_context_share
        verdicts = self.calibration.verdict(logit, low_context).tolist()
        altered = dict(
            zip(ALTERATIONS, zip(probability[1:], verdicts[1:], strict=True), strict=False)
        )
        flags = [prediction.low_context(float(scored.uniform_share[0]))] if low_context[0] else []
        flags += prediction.flags_of(facts, self.transform, self.seen)
        flags += prediction.unstable(verdicts[0], {k: v for k, (_, v) in altered.items()})
        return Prediction(
            path=inputs.name_of(one.source),
            probability=float(probability[0]),
            verdict=verdicts[0],
            flags=tuple(flags),
            error=None,
            detector=self.name,
            seconds=one.seconds + seconds,
            logit=float(logit[0]),
            uncertainty=float(by_group.std(ddof=1)) if len(by_group) > 1 else None,
            example_id=facts.example_id,
            stability={k: float(p) for k, (p, _) in altered.items()} or None,
            _map=functools.partial(self.lcas_map, one.source),
        )

    def _refused(self, one: "_Prepared") -> Prediction:
        name = inputs.name_of(one.source)
        return Prediction(name, None, None, (), one.error, self.name, one.seconds)


@dataclasses.dataclass(frozen=True, eq=False)
class _Prepared:
    """A decoded image, or the error of an unread one.

    Attributes:
      source: as given by the caller.
      crops: of the image, then of its alterations; no rows for an unread image (``slots``).
      facts: None for an unread image.
      error: empty for a decoded image.
      seconds: spent on decoding.
    """

    source: Source
    crops: Pixels
    facts: PictureFacts | None
    error: str
    seconds: float

    @property
    def slots(self) -> int:
        """Images to be scored: itself and its alterations."""
        return len(jax.tree.leaves(self.crops)[0])


def _num_groups(runs: int, trained: int) -> int:
    if runs == trained:
        return 1
    if not trained:
        raise ValueError(
            f"runs is {runs}, but this detector uses no masking runs: leave runs at its default"
        )
    if runs < trained or runs % trained:
        raise ValueError(
            f"runs is {runs}, but the head was trained on {trained} masking runs per image: use a "
            f"multiple of {trained}"
        )
    return runs // trained
