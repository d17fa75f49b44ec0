"""Speed on this device; every function yields the rows of one section."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.accelerator import programs
from benchmarks.accelerator.programs import Row, detector, measured, rate
from benchmarks.accelerator.sizes import Size

NUM_RUNS = 2


def matmul(size: Size) -> Iterator[Row]:
    """The ceiling that other sections refer to."""
    for dtype in ("bfloat16", "float32"):
        flops = programs.matmul_rate(size.square, dtype, size.seconds)
        yield {"dtype": dtype, "side": size.square, "TFLOP/s": flops / 1e12}


def features(size: Size) -> Iterator[Row]:
    """Most telling rows first: the section may run out of time."""
    yield measured(size, detector(NUM_RUNS, "bfloat16"), size.batch)
    yield measured(size, detector(NUM_RUNS, "float32"), size.batch)
    for batch in size.batches:
        if batch != size.batch:
            yield attempted(size, batch)
    for runs in size.runs:
        if runs != NUM_RUNS:
            yield measured(size, detector(runs, "bfloat16"), size.batch)
    yield measured(size, detector(0, "float32"), size.batch)


def attempted(size: Size, batch: int) -> Row:
    """A batch that may be too large for the device's memory."""
    try:
        return measured(size, detector(NUM_RUNS, "bfloat16"), batch)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"K": NUM_RUNS, "batch": batch, "dtype": "bfloat16", "note": "out of memory"}


def attention(size: Size) -> Iterator[Row]:
    """Every implementation with both layouts, and how far their features are from the default's.

    Features differ by the place where bfloat16 rounds: 4e-3 of a value, and a few times as much
    after all blocks.
    """
    expected: Any = None
    for kind in ("plain", "xla", "cudnn"):
        for layout in ("vmap", "fold"):
            config = detector(NUM_RUNS, "bfloat16", attention=kind, run_layout=layout)
            if kind == "cudnn" and jax.default_backend() != "gpu":
                yield {"attention": kind, "layout": layout, "note": "skipped: no NVIDIA GPU"}
                continue
            try:
                program = programs.features(size.model, config, size.batch)
                row, found = measured(size, config, size.batch, program), program.run()
            except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
                yield {"attention": kind, "layout": layout, "note": str(error)[:200]}
                continue
            values = np.asarray(found.f_global), np.asarray(found.terms.mismatch)
            expected = values if expected is None else expected
            gaps = [
                np.abs(a - b).max() / np.abs(b).max() for a, b in zip(values, expected, strict=True)
            ]
            row |= {"what": f"{kind}, {layout}", "error": float(max(gaps)), "bound": 0.05}
            yield row | {"ok": bool(max(gaps) <= 0.05)}


def one(size: Size) -> Iterator[Row]:
    """The main program alone: what XLA flags are judged by."""
    yield measured(size, detector(NUM_RUNS, "bfloat16"), size.batch)


def head(size: Size) -> Iterator[Row]:
    """Two epochs from a bank in memory, with validation, checkpoints and compilation."""
    from benchmarks.__main__ import head as train

    found = train(size.banked)
    yield found | {"images/s": size.banked * found["epochs"] / found["seconds"]}


def pretrain(size: Size) -> Iterator[Row]:
    """A step of configs/pretrain_tiny.py."""
    from benchmarks import bench_pretrain
    from cinemae_jax.configs import pretrain_tiny

    settings = pretrain_tiny.get_config()
    settings.model.update(size.pretrained_model)
    for dtype in ("bfloat16", "float32"):
        run = bench_pretrain.jax_run(settings, size.pretrained, dtype)
        speed = rate(run, size.pretrained, size.seconds)
        yield {"dtype": dtype, "batch": size.pretrained, "images/s": speed}


def files(size: Size) -> Iterator[Row]:
    """JPEG files of 512 x 512 decoded, features of images in memory, and both at once."""
    from benchmarks import bench_extract, bench_loader
    from cinemae_jax.data import catalog
    from cinemae_jax.features.extraction import Extractor
    from cinemae_jax.runtime.devices import Replicas

    config, _, _ = bench_extract.model("toy")
    config = dataclasses.replace(
        config,
        detector=dataclasses.replace(config.detector, dtype="bfloat16"),
        features=dataclasses.replace(config.features, batch_size=min(size.batch, size.files)),
    )
    backbone = programs.backbone_of(size.model)
    extractor = Extractor(config.detector, config.masks, backbone, Replicas())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench_loader.write_images(folder / "files", size.files, ".jpg")
        images = catalog.scan(folder / "files")
        runs = bench_extract.extractions(config, images, folder, extractor, backbone)
        for what in ("decoding", "features", "extract"):
            speed = rate(runs[what], size.files, size.seconds)
            threads = config.data.num_threads
            yield {"what": what, "threads": threads, "images/s": speed}
