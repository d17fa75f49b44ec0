"""CINEMAE on arrays: images → frozen features → statistics → logits.

``extract_features`` is the stop_gradient boundary: nothing before it is trained, nothing after it
sees an image.  ``pixel_features`` and ``unfrozen_features`` are the same computation for callers
that need gradients with respect to pixels (``audit.attacks``) or to the backbone's parameters
(``training.unfrozen``).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key, UInt8

from cinemae_jax.model import bands, frequency, lcas, masking
from cinemae_jax.model.arrays import AnyArray, Params
from cinemae_jax.model.config import (
    CHANNELS,
    LOGARITHMIC_SCORES,
    STATISTICS,
    DetectorConfig,
    MAEConfig,
)
from cinemae_jax.model.head import HeadState, head_of, learned_weight
from cinemae_jax.model.mae import (
    MAE,
    grey_levels,
    initial_variables,
    normalize_images,
    patchify,
    to_target,
)
from cinemae_jax.model.vit import Encoder, Preprocessing, ViT


@struct.dataclass
class Backbone:
    """A frozen MAE: a pytree whose leaves are its parameters, which are never updated.

    Attributes:
      params: of ``MAE``, float32; after ``in_dtype``, kernels in that dtype.
      config: architecture and target.
      sha256: of the file that it was read from; stored in every checkpoint, bank and report.
      encoder: makes f_global in the MAE's place, frozen too; None if the MAE makes its own.
    """

    params: Params
    config: MAEConfig = struct.field(pytree_node=False)
    sha256: str = struct.field(pytree_node=False, default="")
    encoder: Encoder | None = None

    @property
    def global_width(self) -> int:
        """D, the length of f_global."""
        return self.encoder.config.feature_width if self.encoder else self.config.width

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How the encoder of f_global is fed; None if the MAE makes its own."""
        return self.encoder.preprocessing if self.encoder else None

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of every file, by its name in metadata."""
        encoder = {"global_backbone_sha256": self.encoder.sha256} if self.encoder else {}
        return {"backbone_sha256": self.sha256} | encoder

    def in_dtype(self, dtype: str) -> "Backbone":
        """A copy with kernels in ``dtype`` (``kernels_in``)."""
        return kernels_in(dtype, self)


Frozen = TypeVar("Frozen", "Backbone", Encoder)


def kernels_in(dtype: str, frozen: Frozen) -> Frozen:
    """A copy with kernels in ``dtype``, to which every product would round them anyway.

    Features do not change by a bit, and no program keeps a rounded copy beside its weights.
    """

    def rounded(path: tuple[Any, ...], leaf: AnyArray) -> AnyArray:
        is_kernel = getattr(path[-1], "key", "") == "kernel"
        return leaf.astype(dtype, copy=False) if is_kernel else leaf

    return cast(Frozen, jax.tree_util.tree_map_with_path(rounded, frozen))


@struct.dataclass
class Features:
    """What the frozen backbone says of a batch: everything that the head sees.

    ``batch`` is (B,); ``pmap`` adds axes in front while it moves the arrays.

    Attributes:
      f_global: global feature, float32.
      terms: the LCAS terms, (B, K, M) float32.
      masked: ids of the scored patches, int32; None if nothing reads them.
      uniform_share: share of nearly uniform patches, float32; above a limit, images are flagged.
      frequency: of the image itself, all kinds (``model.frequency``), float32; None if nothing
        reads it.
    """

    f_global: Float[AnyArray, "*batch d"]
    terms: lcas.Terms
    masked: Int[AnyArray, "*batch k m"] | None
    uniform_share: Float[AnyArray, "*batch"]
    frequency: Float[AnyArray, "*batch q"] | None = None


# The fields of ``DetectorConfig`` that features depend on.  Not among them: ``attention`` and
# ``run_layout``, which change features by rounding only, as another device would.
BEFORE_THE_HEAD = ("mask_ratio", "pooling", "anomaly", "dtype", "uniform_variance", "masking")
# Likewise, but of stratified masks only.
OF_STRATIFIED = ("texture_temperature",)

# Normalised pixels, visible and masked ids to predictions of the masked patches (target space).
Reconstruct = Callable[
    [Float[Array, "b h w 3"], Int[Array, "b n"], Int[Array, "b m"]], Float[Array, "b m d"]
]


def extract_features(
    backbone: Backbone,
    images: UInt8[Array, "b h w 3"],
    keys: Key[Array, " b"],
    runs: Int[Array, "b k"],
    config: DetectorConfig,
    reconstruct: Reconstruct | None = None,
    global_images: UInt8[Array, "g e e 3"] | None = None,
) -> Features:
    """One unmasked encoder pass and K masked runs of every image.

    Args:
      backbone: frozen.
      images: RGB of the backbone's image size.  Crops of one image follow each other.
      keys: one per example (``masking.example_keys``).
      runs: numbers of each example's masking runs: 0 … K-1 in evaluation, others in every epoch of
        training.
      config: static; only the fields ``BEFORE_THE_HEAD``, ``attention`` and ``run_layout`` are
        read.
      reconstruct: replaces the backbone's reconstruction, for control experiments.
      global_images: RGB squares of the encoder's size, one for each row of ``images``, or one for
        all crops of an image; needed if the backbone has an encoder.

    Raises:
      ValueError: if the images are not of the backbone's size.
    """
    size = backbone.config.image_size
    if images.shape[1:] != (size, size, 3):
        raise ValueError(
            f"images are {images.shape[1:]}, the backbone takes {(size, size, 3)}: resize them"
        )
    pixels = normalize_images(images)
    own = dataclasses.replace(backbone, encoder=None)
    features = pixel_features(own, pixels, keys, runs, config, reconstruct)
    if backbone.encoder is not None:
        if global_images is None:
            raise ValueError("the backbone has a global encoder: pass global_images")
        f_global = encode(backbone.encoder, global_images, config)
        crops = images.shape[0] // global_images.shape[0]
        features = dataclasses.replace(features, f_global=jnp.repeat(f_global, crops, axis=0))
    return jax.lax.stop_gradient(features)


def encode(
    encoder: Encoder, images: UInt8[Array, "b e e 3"], config: DetectorConfig
) -> Float[Array, "b d"]:
    """f_global of RGB squares by a frozen encoder, in the precision of ``config.dtype``.

    Raises:
      ValueError: if the encoder's patch size does not divide the side of the squares.
    """
    fed = encoder.preprocessing
    mean, std = (jnp.array(x, jnp.float32)[None, None, None] for x in (fed.mean, fed.std))
    pixels = (images.astype(jnp.float32) / 255 - mean) / std
    params = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, encoder.params))
    model = ViT(encoder.config, jnp.dtype(config.dtype))
    feature = model.apply({"params": params}, pixels, method="global_feature")
    return jax.lax.stop_gradient(cast(Array, feature))


def pixel_features(
    backbone: Backbone,
    pixels: Float[Array, "b h w 3"],
    keys: Key[Array, " b"],
    runs: Int[Array, "b k"],
    config: DetectorConfig,
    reconstruct: Reconstruct | None = None,
) -> Features:
    """``extract_features`` of ImageNet-normalised pixels, differentiable in the pixels only.

    Raises:
      ValueError: if the backbone has a global encoder, which does not read these pixels.
    """
    if backbone.encoder is not None:
        raise ValueError("gradients by pixels need a backbone without a global encoder")
    params = jax.lax.stop_gradient(jax.tree.map(jnp.asarray, backbone.params))
    return unfrozen_features(params, backbone.config, pixels, keys, runs, config, reconstruct)


def unfrozen_features(
    params: Params,
    mae_config: MAEConfig,
    pixels: Float[Array, "b h w 3"],
    keys: Key[Array, " b"],
    runs: Int[Array, "b k"],
    config: DetectorConfig,
    reconstruct: Reconstruct | None = None,
) -> Features:
    """The same, differentiable in the backbone's parameters too: nothing is held constant."""
    model = MAE(mae_config, jnp.dtype(config.dtype), config.attention)
    variables = {"params": params}
    patches = patchify(pixels, mae_config.patch_size)
    target = to_target(patches, mae_config.target)
    num_visible = mae_config.num_visible(config.mask_ratio)

    tokens = cast(Array, model.apply(variables, pixels, method="encode")).astype(jnp.float32)
    f_global = tokens[:, 0] if config.pooling == "cls" else tokens[:, 1:].mean(axis=1)

    visible = _visible_ids(pixels, keys, runs, mae_config, config)
    masked = masking.masked_ids(visible, mae_config.num_patches)  # (B, K, M)

    predict = reconstruct or cast(Reconstruct, functools.partial(model.apply, variables))

    def terms_of(
        vis: Int[Array, "b n"], mask: Int[Array, "b m"], predictions: Float[Array, "b m d"]
    ) -> lcas.Terms:
        terms = jax.vmap(lcas.run_terms)(target, predictions, vis, mask)
        if config.anomaly == "bands":
            truth = jax.vmap(lambda patches, ids: patches[ids])(target, mask)
            by_band = jax.vmap(bands.band_statistics)(truth, predictions)
            terms = dataclasses.replace(terms, bands=by_band)
        return terms

    def one_run(vis: Int[Array, "b n"], mask: Int[Array, "b m"]) -> lcas.Terms:
        return terms_of(vis, mask, predict(pixels, vis, mask))

    if runs.shape[1] and config.run_layout == "fold":
        predictions = _folded(predict, pixels, visible, masked)
        terms = jax.vmap(terms_of, in_axes=1, out_axes=1)(visible, masked, predictions)
    elif runs.shape[1]:
        terms = jax.vmap(one_run, in_axes=1, out_axes=1)(visible, masked)
    else:  # nothing to trace, and an encoder-only backbone has no decoder
        none = jnp.zeros((len(pixels), 0, mae_config.num_patches - num_visible))
        terms = lcas.Terms(none, none, none, none, jnp.zeros((len(pixels), 0, CHANNELS)))
    uniform = jax.vmap(lambda p: lcas.uniform_share(p, config.uniform_variance))(patches)
    spectra = jax.vmap(frequency.describe)(grey_levels(pixels))
    return Features(f_global, terms, masked, uniform, spectra)


def _visible_ids(
    pixels: Float[Array, "b h w 3"],
    keys: Key[Array, " b"],
    runs: Int[Array, "b k"],
    model: MAEConfig,
    config: DetectorConfig,
) -> Int[Array, "b k n"]:
    if config.masking != "stratified":
        return masks_by_key(keys, runs, model, config)
    levels = patchify(jnp.round(grey_levels(pixels)).astype(jnp.int32), model.patch_size)
    draw = functools.partial(
        masking.stratified_ids,
        num_visible=model.num_visible(config.mask_ratio),
        temperature=config.texture_temperature,
    )
    return jax.vmap(draw)(keys, runs, jax.vmap(lcas.texture)(levels))


def masks_by_key(
    keys: Key[Array, " b"], runs: Int[Array, "b k"], model: MAEConfig, config: DetectorConfig
) -> Int[Array, "b k n"]:
    """Visible patch ids of masks that follow from keys and run numbers alone, int32.

    Raises:
      ValueError: for stratified masks, which depend on the pixels.
    """
    if config.masking == "stratified":
        raise ValueError("stratified masks depend on the pixels: read their ids from the features")
    length, num_visible = model.num_patches, model.num_visible(config.mask_ratio)

    def one(key: Key[Array, ""], run: Int[Array, " k"]) -> Int[Array, "k n"]:
        if config.masking == "disjoint":
            return masking.disjoint_ids(key, run, length, num_visible, config.group_size)
        return masking.run_ids(key, run, length, num_visible)

    return jax.vmap(one)(keys, runs)


def _folded(
    predict: Reconstruct,
    pixels: Float[Array, "b h w 3"],
    visible: Int[Array, "b k n"],
    masked: Int[Array, "b k m"],
) -> Float[Array, "b k m d"]:
    """Predictions of all runs as one batch of B·K images; the runs of an image are neighbours."""
    (b, k), (n, m) = masked.shape[:2], (visible.shape[2], masked.shape[2])
    repeated = jnp.repeat(pixels, k, axis=0)
    predictions = predict(repeated, visible.reshape(b * k, n), masked.reshape(b * k, m))
    return predictions.reshape(b, k, m, -1)


def statistics(
    features: Features,
    config: DetectorConfig,
    num_patches: int,
    mismatch_weight: float | Float[Array, ""] | None = None,
) -> Float[Array, "b s"]:
    """What the head reads besides f_global, before standardisation: [s ; q] of every image.

    s are the configured statistics: log1p of s1 … s3 where the score cannot be negative (method.md
    4), means over the runs for statistics by frequency band, and zeros with K = 0.  q is the
    configured kind of ``frequency``, if the head reads it; fusion ``frequency`` reads nothing else.

    Args:
      features: of a batch.
      config: static.
      num_patches: L.
      mismatch_weight: λ, where it is learned; None takes the configured one.

    Raises:
      ValueError: if a term that the configuration needs is None.
    """
    s = _anomaly_statistics(features, config, num_patches, mismatch_weight)
    if not config.reads_frequency:
        return s
    if features.frequency is None:
        raise ValueError(f"these features lack the spectrum that {config.frequency!r} reads")
    q = jnp.asarray(features.frequency)[:, frequency.COLUMNS[config.frequency]]
    return q if config.fusion == "frequency" else jnp.concatenate([s, q], axis=1)


def _anomaly_statistics(
    features: Features,
    config: DetectorConfig,
    num_patches: int,
    mismatch_weight: float | Float[Array, ""] | None,
) -> Float[Array, "b s"]:
    if not config.scores_patches:
        return jnp.zeros((features.f_global.shape[0], len(config.statistics)))
    if config.anomaly == "bands":
        return features.terms.read("bands")[0].mean(axis=1)
    weight = config.mismatch_weight if mismatch_weight is None else mismatch_weight
    scores, masked = lcas.score(features.terms, config.score, weight), features.masked
    if config.score_share < 1:
        scores, masked = _shared(scores, masked, features.terms, config)

    def one(score: Float[Array, "k m"], masked: Int[AnyArray, "k m"] | None) -> Float[Array, " 3"]:
        return lcas.summarize(
            score, sensitivity=config.sensitivity, masked=masked, num_patches=num_patches
        )

    stats = jax.vmap(one)(scores, masked)
    stats = stats[:, np.array([STATISTICS.index(name) for name in config.statistics])]
    return stats if config.score in LOGARITHMIC_SCORES else jnp.log1p(stats)


def _shared(
    scores: Float[Array, "b k m"],
    masked: Int[AnyArray, "b k m"] | None,
    terms: lcas.Terms,
    config: DetectorConfig,
) -> tuple[Float[Array, "b k n"], Int[Array, "b k n"] | None]:
    """Scores and ids of the share of the masked patches that statistics summarise."""
    if config.reads_texture:
        places = lcas.most_textured(terms.read("patch_variance")[0], config.score_share)
    else:
        _, num_runs, num_masked = scores.shape
        places = lcas.any_patches(num_runs, num_masked, config.score_share)[None]

    def take(values: Array) -> Array:
        return jnp.take_along_axis(values, places, axis=2)

    return take(scores), None if masked is None else take(jnp.asarray(masked))


def before_the_head(config: DetectorConfig) -> dict[str, Any]:
    """The choices that features depend on, by field."""
    fields = (*BEFORE_THE_HEAD, *OF_STRATIFIED * (config.masking == "stratified"))
    return {field: getattr(config, field) for field in fields}


def num_statistics(config: DetectorConfig, model: MAEConfig) -> int:
    """Length of one row of ``statistics``.

    Raises:
      ValueError: if the statistics need a texture that the backbone's target does not have.
    """
    if config.reads_texture and model.target == "norm_pix":
        raise ValueError(
            f"detector.score_share is {config.score_share}, but this backbone predicts normalised "
            "pixels, in which all patches have the same variance: use a backbone with target "
            "'raw', or score_share 1"
        )
    q = frequency.num_values(config.frequency) if config.reads_frequency else 0
    if config.fusion == "frequency":
        return q
    has_bands = config.anomaly == "bands" and config.num_runs
    return q + (bands.num_bands(model) if has_bands else len(config.statistics))


def logits(
    head: HeadState, features: Features, config: DetectorConfig, num_patches: int
) -> tuple[Float[Array, " b"], Float[Array, "b s"]]:
    """Logit of "AI-generated" and statistics of every image, float32."""
    stats = statistics(features, config, num_patches, learned_weight(head.params))
    return head_logits(head, jnp.asarray(features.f_global), stats, config), stats


def head_logits(
    head: HeadState,
    f_global: Float[Array, "b d"],
    stats: Float[Array, "b s"],
    config: DetectorConfig,
) -> Float[Array, " b"]:
    """The head alone: logits from global features and statistics."""
    f, s = head.normalizer(f_global, stats)
    if config.clip:
        s = jnp.clip(s, -config.clip, config.clip)
    return cast(Array, head_of(config).apply({"params": head.params}, f, s))


def random_backbone(config: MAEConfig, seed: int = 0) -> Backbone:
    """An untrained backbone, for controls and tests."""
    init = jax.jit(functools.partial(initial_variables, config))
    params = init(jax.random.key(seed))["params"]
    return Backbone(params, config, sha256=f"random-{seed}")


def num_params(tree: Any) -> int:
    """Number of values in a pytree of arrays."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
