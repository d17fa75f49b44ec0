"""A data set split into training, validation and test images; images that could not be read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from cinemae_jax.data import collection
from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.records import HELD_OUT
from cinemae_jax.data.unread import BadImage, BadImages, count_by_class
from cinemae_jax.features.run import UNREAD
from cinemae_jax.runtime import collectives, progress
from cinemae_jax.settings import DataSettings

# Unread images named on the terminal; the others are in the list.
LISTED = 10


@dataclasses.dataclass(frozen=True)
class Data:
    """The images of a run: training, validation and test."""

    train: Catalog
    validation: Catalog
    test: Catalog


def read_data(config: DataSettings) -> Data:
    """Scans and splits the data set; test images take part in no choice.

    A list may name the held-out images itself (split ``held_out``), of any generator and source;
    otherwise they are a share of the training images (``config.holdout``).
    """
    everything = scan(config)
    train = everything.select(generators=config.train_generators, split="train")
    if HELD_OUT in everything.splits:
        validation, what = everything.select(split=HELD_OUT), f"split {HELD_OUT}"
    else:
        train, validation = train.hold_out(config.holdout)
        what = f"its held-out part ({config.holdout:.0%})"
    train.require_both_classes("the training split")
    validation.require_both_classes(what)
    return Data(train, validation, _tested(everything, config))


def read_test(config: DataSettings) -> Catalog:
    """Scans the data set for its test images alone."""
    return _tested(scan(config), config)


def scan(config: DataSettings) -> Catalog:
    """All images of the data set; prints how it was read and what was left out."""
    found = collection.scan(config.root, source=config.source, quarantine=config.quarantine)
    progress.say(found.explain())
    report_skipped(found)
    return found


def _tested(everything: Catalog, config: DataSettings) -> Catalog:
    """The ``val`` splits of the generators that are tested."""
    return everything.select(generators=config.test_generators or None, split="val")


def share_unread(unread: BadImages) -> None:
    """Merges the lists of all hosts, for all of them and into one file."""
    if jax.process_count() == 1:
        return
    for listed in collectives.exchange([dataclasses.asdict(image) for image in unread.listed]):
        unread.add(BadImage(**image) for image in listed)
    collectives.barrier("lists of unread images are merged")
    if jax.process_index() == 0:
        unread.tidy()


def report_unread(workdir: Path, images: Sequence[BadImage]) -> None:
    """Names on the terminal the images that could not be read, the first few of them."""
    for image in images[:LISTED]:
        progress.say(f"unread    {image.path}: {image.error}")
    if images:
        counts = ", ".join(f"{n} {name}" for name, n in count_by_class(images).items())
        progress.say(f"unread    {len(images)} images ({counts}), listed in {workdir / UNREAD}")


def report_skipped(images: Catalog) -> None:
    """Says which files of a data set were left out, by reason."""
    if images.skipped:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(images.skipped.items()))
        where = "" if images.root == Path("/") else f" of {images.root}"  # of several folders
        progress.say(f"left out  {sum(images.skipped.values())} entries{where}: {reasons}")
