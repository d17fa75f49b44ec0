"""Reconstruction of masked patches: the loss of pre-training, and pictures of the result."""

import functools
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from cinemae_jax.model import masking
from cinemae_jax.model.arrays import Params
from cinemae_jax.model.mae import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAE,
    NORM_PIX_EPS,
    normalize_images,
    patchify,
    to_target,
    unpatchify,
)


def masked_loss(
    params: Params,
    batch: Mapping[str, Array],
    key: Key[Array, ""],
    *,
    model: MAE,
    mask_ratio: float,
) -> Float[Array, ""]:
    """Sum over valid images of the mean squared error on masked patches (MAE, section 3).

    Args:
      params: of ``model``.
      batch: ``image`` uint8 (B, H, W, 3); ``example_id`` uint32, ``epoch`` int32, ``valid`` (B,).
      key: base key; an image's mask depends on it, on the image's id and epoch, and nothing else.
      model: the MAE.
      mask_ratio: r, share of patches masked.
    """
    config = model.config
    num_visible = config.num_visible(mask_ratio)
    keys = masking.example_keys(key, batch["example_id"])
    ids = functools.partial(
        masking.run_ids, num_patches=config.num_patches, num_visible=num_visible
    )
    visible = jax.vmap(ids)(keys, batch["epoch"][:, None])[:, 0]
    masked = masking.masked_ids(visible, config.num_patches)
    pixels = normalize_images(batch["image"])
    target = to_target(patchify(pixels, config.patch_size), config.target)
    truth = jnp.take_along_axis(target, masked[..., None], axis=1)
    predictions = cast(Array, model.apply({"params": params}, pixels, visible, masked))
    per_image = ((predictions.astype(jnp.float32) - truth) ** 2).mean(axis=(1, 2))
    return (per_image * batch["valid"]).sum()


@functools.partial(jax.jit, static_argnames=("model", "mask_ratio"))
def pictures(
    params: Params,
    images: UInt8[Array, "b h w 3"],
    key: Key[Array, ""],
    *,
    model: MAE,
    mask_ratio: float,
) -> UInt8[Array, "rows columns 3"]:
    """A sheet with one row per image: original, visible patches, reconstruction.

    For a ``norm_pix`` target, predictions are shown with the mean and variance of the true patch,
    which the model does not know: good to look at, useless for a score.
    """
    config = model.config
    num_visible = config.num_visible(mask_ratio)
    keys = masking.example_keys(key, jnp.arange(len(images), dtype=jnp.uint32))
    ids = functools.partial(
        masking.visible_ids, num_runs=1, num_patches=config.num_patches, num_visible=num_visible
    )
    visible = jax.vmap(ids)(keys)[:, 0]
    masked = masking.masked_ids(visible, config.num_patches)
    pixels = normalize_images(images)
    patches = patchify(pixels, config.patch_size)
    predictions = cast(Array, model.apply({"params": params}, pixels, visible, masked))
    if config.target == "norm_pix":
        truth = jnp.take_along_axis(patches, masked[..., None], axis=1)
        mean, var = truth.mean(-1, keepdims=True), truth.var(-1, keepdims=True, ddof=1)
        predictions = predictions * jnp.sqrt(var + NORM_PIX_EPS) + mean
    rows = jnp.arange(len(images))[:, None]
    hidden = patches.at[rows, masked].set(0.0)
    filled = patches.at[rows, masked].set(predictions.astype(patches.dtype))
    columns = [unpatchify(p, config.patch_size) for p in (patches, hidden, filled)]
    sheet = jnp.concatenate(columns, axis=2).reshape(-1, 3 * config.image_size, 3)
    mean, std = (jnp.array(v)[None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    sheet = (sheet * std + mean) * 255.0
    return sheet.round().clip(0, 255).astype(jnp.uint8)
