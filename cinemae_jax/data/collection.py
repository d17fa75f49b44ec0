"""Opens the data set of a run: a folder or list of files, or a TFDS data set built from one."""

import os
from typing import Literal

from cinemae_jax.data import catalog, loader
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Images

Source = Literal["folder", "tfds"]


def scan(
    root: str | os.PathLike[str],
    *,
    source: Source,
    quarantine: str | os.PathLike[str] = "",
) -> Catalog:
    """Lists all images of a data set except the quarantined ones.

    Args:
      root: for ``folder``, what ``catalog.scan`` accepts; for ``tfds``, the folder that
        ``data.genimage`` built into.
      source: ``folder`` (also for lists) or ``tfds``.
      quarantine: CSV of images to leave out, as ``cinemae doctor`` writes it; '' means none.

    Raises:
      CatalogError: if the data set is missing or not understood, or the quarantine list is not
        about it.
    """
    if source == "tfds":
        from cinemae_jax.data import tfds_records  # importing TFDS takes a second

        found, _ = tfds_records.open_tfds(root)
    else:
        found = catalog.scan(root)
    return found.without_listed(quarantine) if quarantine else found


def open_images(images: Catalog, *, source: Source) -> Images:
    """Access to the files of all or some of the images of ``scan``.

    Raises:
      CatalogError: for ``tfds``, if an image is not in the built data set.
    """
    if source == "tfds":
        from cinemae_jax.data import tfds_records

        return tfds_records.from_catalog(images)
    return loader.from_catalog(images)
