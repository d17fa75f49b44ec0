"""From files to features and to verdicts, against their two parts: decoding and computing.

    python -m benchmarks.bench_extract [--preset tiny] [--images 48] [--rounds 5] [--json out.json]
    python -m benchmarks.bench_extract --memory 5000

The same images of 512 x 512 as JPEG and as PNG.  ``extract`` goes from files to a part of a bank,
``features`` from crops in memory.  ``predict`` goes from files to verdicts, ``logits`` from crops
in memory (a verdict may need less of the backbone than a bank).  ``decoding`` is decoding alone.
``in turn`` is the rate if one processor does both parts one after the other.  ``tiny`` is the
bundled detector with four crops; other presets have random weights, one crop, and no ``predict``.

Also measures the seconds until a ``cinemae predict`` process prints its first line, with and
without a compilation cache, and on request the memory of a process that predicts many images.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import bench_loader, measure
from benchmarks.bench_backbone import PRESETS
from cinemae_jax import typed
from cinemae_jax.configs import sd14
from cinemae_jax.data import catalog
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Batch
from cinemae_jax.data.unread import BadImages
from cinemae_jax.detector import inputs
from cinemae_jax.detector.api import Detector
from cinemae_jax.features import extraction, filling, splits
from cinemae_jax.features.extraction import Extractor
from cinemae_jax.features.sources import OnlineSet
from cinemae_jax.model.cinemae import Backbone, random_backbone
from cinemae_jax.runtime.devices import Replicas, merge
from cinemae_jax.settings import Settings

BATCH = 4  # images extracted at a time
KINDS = {"JPEG": ".jpg", "PNG": ".png"}
FEW = 500  # images after which memory should stop growing
DIFFERENT = 64  # distinct files; more images repeat them


def model(preset: str) -> tuple[Settings, Backbone, Detector | None]:
    """Settings and backbone to extract with, K runs like a verdict, and the detector, if any."""
    if preset == "tiny":
        detector = Detector.load("tiny")
        config, backbone = detector.trained.settings, detector.trained.backbone
    else:
        raw = sd14.get_config()
        raw.data.root = "files"
        config, detector = typed.read(raw.to_dict(), Settings), None
        backbone = random_backbone(PRESETS[preset])
    num_runs = config.detector.num_runs
    return (
        dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, num_threads=os.cpu_count() or 1),
            features=dataclasses.replace(
                config.features, num_runs=num_runs, num_views=1, batch_size=BATCH
            ),
        ),
        backbone,
        detector,
    )


def extractions(
    config: Settings, images: Catalog, folder: Path, extractor: Extractor, backbone: Backbone
) -> dict[str, measure.Run]:
    """Decoding, features from memory, and extraction from files."""
    source = OnlineSet(images, extractor, config.data, config.features.batch_size)
    data = splits.Data(images, images, images)
    programs = filling.Programs(extractor, None)
    bank, bad = filling.banks(config, data, backbone, folder)["test"], BadImages(folder / "bad.csv")

    def batches() -> Iterable[Batch]:
        return source.views(bank.transform, bank.num_calls, range(len(images)))

    decoded = list(batches())

    def features() -> None:
        for _, found in extraction.ahead(extractor(extractor.storing, decoded)):
            merge(found)

    def decoding() -> None:
        for _ in batches():
            pass

    def extract() -> None:
        for part in bank.parts:
            shown = source.views(bank.transform, bank.num_calls, part.rows)
            stores = list(bank.stores)
            filling.extract_part(bank, part.index, stores, programs, shown, bad, lambda _: None)

    return {"decoding": decoding, "features": features, "extract": extract}


def predictions(detector: Detector, paths: list[Path]) -> dict[str, measure.Run]:
    """Logits from memory, and verdicts from files."""
    pictures = [inputs.read(path) for path in paths]
    crops = np.stack([detector.transform.cut(picture.image) for picture in pictures])
    ids = np.array([picture.example_id for picture in pictures])
    return {
        "logits": lambda: detector.score_crops(crops, ids),
        "predict": lambda: detector.predict(paths),
    }


def bench(preset: str, count: int, rounds: int) -> dict[str, Any]:
    """Runs the comparison on both kinds of files."""
    config, backbone, detector = model(preset)
    extractor = Extractor(config.detector, config.masks, backbone, Replicas())
    result: dict[str, Any] = {}
    for kind, suffix in KINDS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            bench_loader.write_images(folder / "files", count, suffix)
            images = catalog.scan(folder / "files")
            runs = extractions(config, images, folder, extractor, backbone)
            if detector:
                paths = [images.root / path for path in images.table["path"].to_pylist()]
                runs |= predictions(detector, paths)
            contenders = {name: (float(count), run) for name, run in runs.items()}
            rows = measure.compare(contenders, baseline="features", rounds=rounds)
        rows += [in_turn(rows, name) for name in ("features", "logits") if name in runs]
        title = f"{count} {kind} files, {preset}, {config.data.num_threads} decoding threads"
        measure.show(title, "image", rows)
        shares = {
            f"{a} / {b}": measure.ratio(rows, a, b)
            for job, of in (("extract", "features"), ("predict", "logits"))
            for a, b in ((job, of), (job, f"decoding, {of} in turn"))
            if job in runs
        }
        print(", ".join(f"{name} {share:.2f}" for name, share in shares.items()))
        result[kind] = {"title": title, "rows": measure.as_json(rows), "shares": shares}
    return result


def in_turn(rows: list[measure.Row], name: str) -> measure.Row:
    """The rate of decoding and ``name`` one after the other, each in its own time."""
    rounds = {row.name: row.rounds for row in rows}
    pairs = zip(rounds["decoding"], rounds[name], strict=True)
    rates = [1 / (1 / a + 1 / b) for a, b in pairs]
    return measure.row(f"decoding, {name} in turn", rates, rounds["features"])


def latency(rounds: int) -> dict[str, Any]:
    """Seconds until a process prints its first line; the first one has an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        bench_loader.write_images(Path(folder, "files"), 1, ".jpg")
        (path,) = Path(folder, "files").rglob("*.jpg")
        module = (sys.executable, "-m", "cinemae_jax.main")
        command = (*module, "predict", str(path), "--format", "jsonl")
        taken = []
        for _ in range(1 + rounds):
            begin = time.perf_counter()
            environment = os.environ | {"XDG_CACHE_HOME": folder}
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                json.loads(process.stdout.readline())
                taken.append(time.perf_counter() - begin)
    cold, *warm = taken
    median = statistics.median(warm)
    print(
        f"predict, first line of a process: {cold:.1f} s with an empty compilation cache, then "
        f"{median:.1f} s ({min(warm):.1f} to {max(warm):.1f})"
    )
    return {"cold_s": cold, "warm_s": warm}


def memory(count: int) -> dict[str, Any]:
    """Peak memory of a fresh process after ``FEW`` images and after all."""
    facts = measure.fresh("benchmarks.bench_extract", "--here", "--memory", count)
    print(
        f"predict, peak memory: {facts['few_bytes'] / 1e6:,.0f} MB after {facts['few']} images, "
        f"{facts['all_bytes'] / 1e6:,.0f} MB after {count}; {facts['rate']:.1f} images/s"
    )
    return facts


def predict_here(count: int) -> dict[str, Any]:
    few = min(FEW, count)
    with tempfile.TemporaryDirectory() as folder:
        bench_loader.write_images(Path(folder), DIFFERENT, ".jpg")
        paths = sorted(Path(folder).rglob("*.jpg"))
        sources = itertools.islice(itertools.cycle(paths), count)
        by_few, begin = 0, time.perf_counter()
        for number, _ in enumerate(Detector.load("tiny").stream(sources), 1):
            if number == few:
                by_few = measure.peak_bytes()
        seconds = time.perf_counter() - begin
    peak = measure.peak_bytes()
    return {"few": few, "few_bytes": by_few, "all_bytes": peak, "rate": count / seconds}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=["tiny", *sorted(PRESETS)], default="tiny")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, metavar="N", help="only predict N images")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help="measure in this process, print JSON")
    o = parser.parse_args(argv)
    if o.here:
        print(json.dumps(predict_here(o.memory)))
        return
    if o.memory:
        result = {"memory": memory(o.memory)}
    else:
        result = {"files": bench(o.preset, o.images, o.rounds), "latency": latency(o.rounds)}
    if o.json:
        measure.write(o.json, {"machine": measure.machine(), "extract": result})


if __name__ == "__main__":
    main()
