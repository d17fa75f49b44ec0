"""Time per image of a detector, apart from decoding: synthetic images in memory to logits."""

import time

import numpy as np

from cinemae_jax.data.loader import Batch
from cinemae_jax.detector import scoring
from cinemae_jax.detector.trained import TrainedDetector
from cinemae_jax.features.extraction import Extractor
from cinemae_jax.runtime.devices import Replicas

BATCHES = 2  # per repetition
REPETITIONS = 3


def milliseconds_per_image(detector: TrainedDetector, replicas: Replicas) -> float:
    """Milliseconds per image of the compiled extraction and scoring, in batches of ``evaluate``.

    The fastest repetition after a warm-up: other work on the machine can only slow one down.  All
    crops of an image count, compilation and decoding do not.
    """
    config, model = detector.settings, detector.backbone.config
    extractor = Extractor(config.detector, config.masks, detector.backbone, replicas)
    scorer = scoring.Scorer(config.detector, model.num_patches, replicas)
    size, fed = config.eval.batch_size, detector.backbone.preprocessing
    transform = config.data.eval_transform(model.image_size, fed)
    rng = np.random.default_rng(0)
    shapes = {"image": transform.shape, "global_image": transform.global_shape}
    batch: Batch = {
        **{k: rng.integers(0, 256, (size, *v), dtype=np.uint8) for k, v in shapes.items() if v},
        "example_id": np.arange(size, dtype=np.uint32),
        "epoch": np.zeros(size, np.int32),
        "row": np.arange(size),
        "label": np.zeros(size, np.int32),
        "valid": np.ones(size, bool),
        "error": np.full(size, ""),
    }

    def seconds(batches: int) -> float:
        start = time.perf_counter()
        for _ in scorer(detector.heads, extractor(extractor.scoring, [batch] * batches)):
            pass  # NumPy results: the devices have finished
        return time.perf_counter() - start

    seconds(1)  # compiles
    return 1000 * min(seconds(BATCHES) for _ in range(REPETITIONS)) / (BATCHES * size)
