"""The detector for people and programs: pictures in, calibrated probabilities and verdicts out.

    from cinemae_jax import Detector
    Detector.load("tiny").predict("photo.jpg")

A picture gets the same number whatever it is called, whatever it is batched with, and from however
many threads: its masks follow from its pixels, and every batch has one shape.
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

from cinemae_jax.data.decode import DecodeError
from cinemae_jax.detector import bundle, heatmap, inference, inputs, prediction
from cinemae_jax.detector.bundle import Bundle
from cinemae_jax.detector.heatmap import LcasMap
from cinemae_jax.detector.inference import Judged
from cinemae_jax.detector.inputs import Source
from cinemae_jax.detector.prediction import ALTERATIONS, PictureFacts, Prediction
from cinemae_jax.model.config import SCORES, Score
from cinemae_jax.runtime.devices import Replicas, merge

__all__ = ["Detector", "Prediction"]

OPINION = (
    "A statistical opinion, not a proof: it can be wrong about any one picture, and where a "
    "picture comes from it does not know."
)
# Pictures a device and step; 1 on a CPU, where more were not faster and one would wait longer.
ACCELERATOR_BATCH = 32
MAX_THREADS = 8  # that decode


class Detector:
    """A trained detector, ready to judge pictures; may be used from several threads.

    Attributes:
      trained: backbone, heads and settings; the first head is used.
      name: what it was loaded as, and the first digits of its hash.
      card: what its makers say of it.
      calibration: of logits to probabilities and verdicts.
      transform: which squares of a picture are looked at.
      runs: masks a picture.
      batch_size: pictures a step, over all devices.
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
        """``load`` has the arguments."""
        trained, config = loaded.detector, loaded.detector.settings
        if fpr is not None:
            if not 0 < fpr < 1:
                raise ValueError(
                    f"the share of photographs called ai must lie between 0 and 1, is {fpr}"
                )
            config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, fpr=fpr))
            trained = dataclasses.replace(trained, settings=config)
        self.trained, self.card, self.seen = trained, loaded.card, loaded.seen
        self.name = f"{loaded.name} {bundle.identity(trained)}"
        self.calibration = trained.calibration()
        self.transform = config.data.eval_transform(trained.backbone.config.image_size)
        self.runs = config.detector.num_runs if runs is None else runs
        self._num_groups = _num_groups(self.runs, config.detector.num_runs)
        self._replicas = replicas or Replicas()
        if batch_size is None:
            per_device = 1 if jax.default_backend() == "cpu" else ACCELERATOR_BATCH
            batch_size = per_device * self._replicas.count
        self._replicas.check_batch_size(batch_size, "the batch of pictures")
        self.batch_size = batch_size
        placed = trained.backbone.in_dtype(config.detector.dtype)
        self._frozen = self._replicas.replicate((placed, trained.first_head, trained.mask_key))
        self._lock = threading.Lock()  # one batch at a time: memory stays flat under load
        self._programs: dict[Any, Any] = {}

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] = "tiny",
        *,
        backbone: str = "",
        runs: int | None = None,
        fpr: float | None = None,
        batch_size: int | None = None,
        replicas: Replicas | None = None,
    ) -> "Detector":
        """Reads a detector.

        Args:
          source: name of a bundled one, file of ``cinemae bundle``, or folder of a training run.
          backbone: file of its backbone, where it is not found by itself.
          runs: masks a picture, a multiple of what it was trained with (the default): more of them
            steady the number, and tell how much it depends on them.
          fpr: share of photographs, at most, that may be called AI; None takes the detector's.
          batch_size: pictures a step; None suits the devices.
          replicas: devices; None takes all.

        Raises:
          CheckpointError: if there is no such detector, it is damaged, or its backbone is another.
          weights.BackboneError: if the backbone cannot be read.
          ValueError: if runs, fpr or batch_size make no sense for it.
        """
        loaded = bundle.load(source, backbone=backbone)
        return cls(loaded, runs=runs, fpr=fpr, batch_size=batch_size, replicas=replicas)

    def predict(
        self, images: Source | Iterable[Source], *, stability: bool = False
    ) -> list[Prediction]:
        """Judges pictures; one that cannot be read is a prediction with an ``error``.

        Args:
          images: one or several of: path, bytes of a file, Pillow image, (H, W, 3) uint8 RGB.
          stability: also judge each after mild changes (``ALTERATIONS``), at four times the cost.

        Returns:
          In the order of the images.

        Raises:
          TypeError, ValueError: if something is no picture at all, such as an array of floats.
        """
        return list(self.stream(inputs.listed(images), stability=stability))

    def stream(self, images: Iterable[Source], *, stability: bool = False) -> Iterator[Prediction]:
        """``predict`` one by one, for more pictures than fit into memory."""
        prepare = functools.partial(self._prepare, stability=stability)
        waiting: list[_Prepared] = []
        for prepared in inputs.ahead(prepare, images, min(MAX_THREADS, os.cpu_count() or 1)):
            waiting.append(prepared)
            slots = sum(len(one.crops) for one in waiting)
            if slots >= self.batch_size or not slots:
                yield from self._judge(waiting)
                waiting = []
        yield from self._judge(waiting)

    def lcas_map(
        self, image: Source, runs: int = heatmap.RUNS, score: Score | None = None
    ) -> LcasMap:
        """Mean LCAS of every patch that the detector looks at.

        Args:
          image: one picture.
          runs: masks; the first are those that the score rests on.
          score: LCAS variant; None takes the detector's.  ``mismatch`` is the reconstruction error
            alone.

        Raises:
          DecodeError, OSError: if the picture cannot be read.
          ValueError: if runs or score are impossible, or the backbone has no decoder.
        """
        config = self.trained.settings.detector
        variant: Score = config.score if score is None else score
        if variant not in SCORES:
            raise ValueError(f"score {variant!r}: use one of {', '.join(SCORES)}")
        if runs < 1:
            raise ValueError(f"runs must be 1 or more, is {runs}")
        if not self.trained.backbone.config.has_decoder:
            raise ValueError(f"the backbone of {self.name} has no decoder: nothing to map")
        picture = inputs.read(image)
        crops = inputs.crops(picture.image, self.transform)
        with self._lock:
            if (runs, variant) not in self._programs:
                self._programs[runs, variant] = jax.jit(inference.make_maps(config, runs, variant))
            maps = self._programs[runs, variant]
            values, shown = jax.device_get(
                maps(*self._on_one_device, crops, np.uint32(picture.example_id))
            )
        return heatmap.assemble(
            picture.image, self.transform, values, shown, runs=runs, score=variant
        )

    def in_words(self) -> list[str]:
        """What a reader of its numbers should know, in sentences."""
        said = [f"{OPINION} Given by detector {self.name}.", *self.calibration.in_words()]
        if self._num_groups > 1:
            said.append(
                f"{self.runs} masks a picture, more than the "
                f"{self.trained.settings.detector.num_runs} of training and calibration: the mean "
                f"logit of {self._num_groups} groups of as many"
            )
        return said

    def warm_up(self) -> None:
        """Compiles now, and not at the first picture."""
        with self._lock:
            self._scorer  # noqa: B018

    # --- one batch ------------------------------------------------------------------------------

    def _prepare(self, source: Source, *, stability: bool) -> "_Prepared":
        """Decodes; runs in a thread of its own."""
        start = time.perf_counter()
        try:
            picture = inputs.read(source)
            altered = (alter(picture.image) for alter in ALTERATIONS.values() if stability)
            crops = np.stack([inputs.crops(i, self.transform) for i in (picture.image, *altered)])
        except (DecodeError, OSError) as failure:
            crops, facts = np.zeros((0, *self.transform.shape), np.uint8), None
            error = getattr(failure, "strerror", None) or str(failure) or type(failure).__name__
        else:
            facts, error = PictureFacts.of(picture, source), ""
        return _Prepared(source, crops, facts, error, time.perf_counter() - start)

    def _judge(self, prepared: "list[_Prepared]") -> Iterator[Prediction]:
        """Predictions of some pictures, in order."""
        readable = [one for one in prepared if one.facts]
        if not readable:
            yield from map(self._refused, prepared)
            return
        self.warm_up()
        counts = [len(one.crops) for one in readable]
        ids = np.repeat([one.facts.example_id for one in readable if one.facts], counts)
        start = time.perf_counter()
        scored = self._score(np.concatenate([one.crops for one in readable]), ids)
        share = (time.perf_counter() - start) / len(readable)
        at = 0
        for one in prepared:
            if one.facts is None:
                yield self._refused(one)
                continue
            rows = slice(at, at + len(one.crops))
            its = Judged(scored.logit[rows], scored.uniform_share[rows])
            at += len(one.crops)
            yield self._predicted(one, one.facts, its, share)

    def _score(self, crops: np.ndarray, ids: np.ndarray) -> Judged:
        """Scores of N pictures, in batches of one shape."""
        count, size = len(ids), self.batch_size
        missing = -count % size
        crops = np.concatenate([crops, np.zeros((missing, *crops.shape[1:]), np.uint8)])
        ids = np.concatenate([ids, np.zeros(missing)]).astype(np.uint32)
        parts = []
        for start in range(0, count, size):
            batch = crops[start : start + size], ids[start : start + size]
            with self._lock:
                parts.append(merge(self._scorer(*self._frozen, self._replicas.split(batch))))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)

    @functools.cached_property
    def _scorer(self) -> Any:
        """The compiled program of every batch."""
        logits = inference.make_logits(self.trained.settings.detector, self._num_groups)

        def of_batch(backbone: Any, head: Any, key: Any, batch: tuple) -> Judged:
            return logits(backbone, head, key, *batch)

        shapes = (
            np.zeros((self.batch_size, *self.transform.shape), np.uint8),
            np.zeros(self.batch_size, np.uint32),
        )
        mapped: Any = self._replicas.pmap_map(of_batch, replicated=3)
        return mapped.lower(*self._frozen, self._replicas.split(shapes)).compile()

    @functools.cached_property
    def _on_one_device(self) -> Any:
        return jax.device_put(self._frozen, self._replicas.mesh.local_devices[0])

    def _predicted(
        self, one: "_Prepared", facts: PictureFacts, scored: Judged, seconds: float
    ) -> Prediction:
        """Of a picture and its alterations, (1 + alterations, G) logits."""
        config = self.trained.settings.detector
        logit = scored.logit.astype(np.float64).mean(axis=1)
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
    """A picture that waits for its turn; (slots, n, S, S, 3), its alterations after itself."""

    source: Source
    crops: np.ndarray
    facts: PictureFacts | None
    error: str
    seconds: float


def _num_groups(runs: int, trained: int) -> int:
    if runs == trained:
        return 1
    if not trained:
        raise ValueError(f"runs is {runs}, but this detector was trained without masks")
    if runs < trained or runs % trained:
        raise ValueError(
            f"runs is {runs}, but the head was trained on {trained} masks a picture: use a "
            f"multiple of {trained}"
        )
    return runs // trained
