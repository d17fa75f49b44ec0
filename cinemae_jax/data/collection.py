"""A data set by its name and kind: a folder or list of image files, or TFDS records."""

from typing import Literal

from cinemae_jax.data import catalog, loader
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.loader import Images

Source = Literal["folder", "tfds"]


def scan(root: str, *, source: Source, quarantine: str = "") -> Catalog:
    """All images of a data set except the quarantined ones.

    Args:
      root: folder or list (``folder``), or the folder that ``data.genimage`` built into (``tfds``).
      source: what kind of data set ``root`` is.
      quarantine: CSV of images to leave out; empty for none.

    Raises:
      CatalogError: if there is no data set, or its layout is not understood.
    """
    if source == "tfds":
        from cinemae_jax.data import tfds_records  # TFDS takes a second to import

        found, _ = tfds_records.open_tfds(root)
    else:
        found = catalog.scan(root)
    return found.without_listed(quarantine) if quarantine else found


def open_images(images: Catalog, *, source: Source) -> Images:
    """The files of images that ``scan`` found."""
    if source == "tfds":
        from cinemae_jax.data import tfds_records

        return tfds_records.from_catalog(images)
    return loader.from_catalog(images)
