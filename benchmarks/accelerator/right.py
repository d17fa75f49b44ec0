"""Right on this device: every row has an error and the bound that it must not exceed."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

import cinemae_jax
from benchmarks.accelerator import programs
from benchmarks.accelerator.programs import Row, detector
from benchmarks.accelerator.sizes import Size, Skipped
from benchmarks.bench_backbone import TOY
from cinemae_jax.detector import inputs
from cinemae_jax.detector.api import Detector
from cinemae_jax.evaluation import metrics
from cinemae_jax.features import extraction
from cinemae_jax.model.cinemae import Backbone, logits, statistics
from cinemae_jax.model.head import Normalizer, init_params
from cinemae_jax.model.layers import affine
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.training import steps
from weights_convert import goldens as stored
from weights_convert import stages

# Relative errors of a product of float32 operands: 24 bits of float32, 11 of TF32, 8 of bfloat16.
# Sums of 1,024 random terms average out, so each kind lies well apart from the next.
KINDS = {"float32": 3e-6, "TF32": 1.5e-3, "bfloat16": 1e-1}
# A stage may differ by this share of its largest value (or of 1).  The tests hold 5e-6 on CPUs; the
# mildest mistake that they plant moves some stage by more than 5e-5.
GOLDEN = 2e-5
# 24 blocks instead of 3: rounding errors add up over a deep residual stream.
DEEP = 2e-4
# bfloat16: 4e-3 a rounding, a few per cent of a statistic after all blocks; s1-s3 are logarithms.
# The worst logit of 16 bundled images moved by 0.11 standard deviations on a CPU; of 200, it is
# further out.
STATISTICS, LOGIT, AUC = 0.05, 0.25, 0.02


def row(what: str, error: float, bound: float, **more: Any) -> Row:
    return {"what": what, "error": error, "bound": bound, "ok": bool(error <= bound), **more}


def product_error(precision: str | None) -> float:
    """Relative error of a product of float32 matrices, against float64 on the host."""
    return error_of(functools.partial(jnp.matmul, precision=precision))


def error_of(product: Callable[[jax.Array, jax.Array], jax.Array]) -> float:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1024, 1024), np.float32) for _ in range(2))
    found = np.asarray(jax.jit(product)(a, b))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def kind_of(error: float) -> str:
    """What a product was computed in, by its error."""
    return next((name for name, bound in KINDS.items() if error <= bound), "worse than bfloat16")


def precision(size: Size) -> Iterator[Row]:
    """Names what float32 products are by default; numbers are only compared in real float32."""
    del size
    for name in ("default", "highest"):
        error = product_error(name)
        bound = KINDS["float32"] if name == "highest" else 1.0
        yield row(f"jnp.matmul, {name}", error, bound, computed_in=kind_of(error))
    error = error_of(lambda a, b: affine(a, b, jnp.zeros(1024)))
    yield row("the package's layers", error, KINDS["float32"], computed_in=kind_of(error))


def require_float32() -> None:
    """Refuses to compare numbers where "highest" products are TF32.

    Raises:
      RuntimeError: naming what they are.
    """
    kind = kind_of(product_error("highest"))
    if kind != "float32":
        raise RuntimeError(
            f"float32 products are computed in {kind} here, even at the highest precision: unset "
            "NVIDIA_TF32_OVERRIDE and XLA's TF32 flags"
        )


def goldens(size: Size) -> Iterator[Row]:
    """Every stage from pixels to a trained head, against stored outputs of the reference."""
    require_float32()
    for name in size.goldens:
        golden = stored.read(stored.FOLDER / f"{name}.safetensors")
        config, params = stored.converted(golden)
        tree = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(params, sep="/"))
        with jax.default_matmul_precision("highest"):
            ours = stages.jax_stages(Backbone(tree, config), golden.inputs)
        rows = stages.compare(golden.stages, ours)
        worst = max(rows, key=lambda r: r.absolute / max(1.0, r.scale))
        error = worst.absolute / max(1.0, worst.scale)
        yield row(name, error, GOLDEN, stages=len(rows), worst=worst.stage)


def gap(one: Any, two: Any) -> float:
    """Largest difference as a share of the largest value."""
    one, two = np.asarray(one, np.float64), np.asarray(two, np.float64)
    return float(np.abs(one - two).max() / np.abs(two).max())


def vit_large(size: Size) -> Iterator[Row]:
    """Float32 features on this device against the CPU of this machine; random weights."""
    require_float32()
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError as error:
        raise Skipped("JAX has no CPU beside this device: unset JAX_PLATFORMS") from error
    config = detector(2, "float32")
    with jax.default_matmul_precision("highest"):
        ours = programs.features(size.compared, config, 2).run()
        for layout in ("vmap", "fold"):
            changed = detector(2, "float32", run_layout=layout, attention="xla")
            found = programs.features(size.compared, changed, 2).run()
            yield row(
                f"mismatch, xla, {layout}", gap(found.terms.mismatch, ours.terms.mismatch), DEEP
            )
        theirs = programs.features(size.compared, config, 2, cpu).run()
    note = "" if jax.default_backend() != "cpu" else "the same device: compares nothing here"
    yield row("masks", float((np.asarray(ours.masked) != np.asarray(theirs.masked)).sum()), 0.0)
    for name in ("deviation", "mismatch"):
        pair = getattr(ours.terms, name), getattr(theirs.terms, name)
        yield row(name, gap(*pair), DEEP, note=note)
    yield row("f_global", gap(ours.f_global, theirs.f_global), DEEP, note=note)


def bfloat16(size: Size) -> Iterator[Row]:
    """s1-s3 of the large model, then logits and AUC of the bundled detector on bundled images."""
    found = []
    for dtype in ("float32", "bfloat16"):
        config = detector(2, dtype)
        features = programs.features(size.compared, config, 4).run()
        found.append(np.asarray(statistics(features, config, size.compared.num_patches)))
    for index, name in enumerate(("s1", "s2", "s3")):
        error = float(np.abs(found[1] - found[0])[:, index].max())
        yield row(f"{name}, random weights", error, STATISTICS)
    labels, (full, half) = bundled(size.demo)
    error = float(np.abs(half[0] - full[0]).max() / full[0].std())
    yield row("logit, bundled detector, in standard deviations", error, LOGIT)
    aucs = [metrics.auc(labels, logit) for logit, _ in (full, half)]
    yield row("AUC, bundled detector", abs(aucs[1] - aucs[0]), AUC, float32=aucs[0], bf16=aucs[1])


def bundled(count: int) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Labels of bundled images; logits and statistics in float32 and bfloat16, one crop each."""
    root = Path(cinemae_jax.__file__).parent / "assets" / "demo"
    by_class = [sorted(root.rglob(f"{name}/*.jpg"))[: count // 2] for name in ("nature", "ai")]
    tiny = Detector.load("tiny")
    trained, transform = tiny.trained, tiny.transform
    pictures = [inputs.read(path) for paths in by_class for path in paths]
    crops = [transform.cut(picture.image) for picture in pictures]
    batch = {
        "image": np.stack([several[len(several) // 2] for several in crops]),
        "example_id": np.array([p.example_id for p in pictures], np.uint32),
        "epoch": np.zeros(len(pictures), np.int32),
    }
    found = []
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(trained.settings.detector, dtype=dtype)
        extract = extraction.make_extract(config, extraction.first_runs(config.num_runs))

        @jax.jit
        def scored(backbone: Any, batch: Any, extract: Any = extract, config: Any = config) -> Any:
            features = extract(backbone, trained.mask_key, batch)
            return logits(trained.first_head, features, config, backbone.config.num_patches)

        logit, stats = scored(trained.backbone.in_dtype(dtype), batch)
        found.append((np.asarray(logit), np.asarray(stats)))
    return np.repeat([0, 1], [len(paths) for paths in by_class]), found


def devices(size: Size) -> Iterator[Row]:
    """Gradient of the head (a step of SGD with rate 1) on one device and on all, mapped both ways.

    Sums over devices have another order: a few roundings of 6e-8.
    """
    del size
    require_float32()
    count = jax.device_count()
    one = gradient(Replicas(tuple(jax.devices()[:1])))
    yield row("shard_map, 1 device", gap(gradient(Replicas(one_device(), "shard_map")), one), 1e-5)
    if count == 1:
        yield {"what": "all devices", "note": "one device here: nothing to compare"}
        return
    for spmd in ("pmap", "shard_map"):
        found = gradient(Replicas(spmd=spmd))
        yield row(f"{spmd}, {count} devices", gap(found, one), 1e-5)


def one_device() -> tuple[jax.Device, ...]:
    return tuple(jax.devices()[:1])


def gradient(replicas: Any) -> np.ndarray:
    """Of the head on a fixed batch of 2 images a device of this machine, flattened."""
    config, batch = detector(2, "float32", hidden=8), 2 * jax.device_count()
    backbone = programs.backbone_of(TOY)
    params = jax.tree.map(lambda x: x[None], init_params(config, jax.random.key(0), TOY.width, 3))
    shapes = ((TOY.width, 0), (TOY.width, 1), (3, 0), (3, 1))
    normalizer = Normalizer(*(np.full((1, n), value, np.float32) for n, value in shapes))
    tx = optax.sgd(1.0)
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (batch, TOY.image_size, TOY.image_size, 3), dtype=np.uint8),
        "example_id": np.arange(batch, dtype=np.uint32),
        "epoch": np.zeros(batch, np.int32),
        "label": np.arange(batch, dtype=np.int32) % 2,
        "valid": np.arange(batch) != 1,
    }
    extract = replicas.pmap_map(
        extraction.make_extract(config, extraction.first_runs(2)), replicated=2
    )
    step = replicas.pmap_step(steps.make_head_step(config, tx, TOY.num_patches), replicated=2)
    frozen = replicas.replicate((backbone, jax.random.key(0)))
    state = replicas.replicate(steps.TrainState(params, jax.vmap(tx.init)(params)))
    features = extract(*frozen, replicas.shard(arrays, extraction.INPUTS))
    labelled = steps.Labelled(features, **replicas.shard(arrays, ("label", "valid")))
    after, _ = step(state, replicas.replicate(normalizer), labelled)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(after.params), strict=True)
    return np.concatenate([np.ravel(np.asarray(a) - np.asarray(b)) for a, b in leaves])
