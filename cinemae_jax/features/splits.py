"""A data set split into training, validation and test images; images that could not be read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from cinemae_jax.data.catalog import Catalog
from cinemae_jax.data.unread import BadImage, BadImages, count_by_class
from cinemae_jax.runtime import collectives, progress
from cinemae_jax.settings import Settings


@dataclasses.dataclass(frozen=True)
class Data:
    """The images of a run: learned from, validated on, tested on."""

    train: Catalog
    validation: Catalog
    test: Catalog


def read_data(config: Settings) -> Data:
    """Scans the data set and splits it; test images never take part in any choice."""
    everything = config.data.scan()
    progress.say(everything.explain())
    report_skipped(everything)
    learned = everything.select(generators=config.data.train_generators, split="train")
    train, validation = learned.hold_out(config.data.holdout)
    train.require_both_classes("the training split")
    validation.require_both_classes(f"its held-out part ({config.data.holdout:.0%})")
    test = everything.select(generators=config.data.test_generators or None, split="val")
    return Data(train, validation, test)


BAD_IMAGES = "bad_images.csv"
# Bad images named on the terminal; the others are in bad_images.csv.
LISTED = 10


def share_bad_images(bad: BadImages) -> None:
    """Merges the lists of all hosts, for all of them and into one file."""
    if jax.process_count() == 1:
        return
    for listed in collectives.exchange([dataclasses.asdict(image) for image in bad.listed]):
        bad.add(BadImage(**image) for image in listed)
    collectives.barrier("lists of bad images are merged")
    if jax.process_index() == 0:
        bad.tidy()


def report_bad_images(workdir: Path, bad: Sequence[BadImage]) -> None:
    """Names on the terminal the images that could not be read, the first few of them."""
    for image in bad[:LISTED]:
        progress.say(f"unread    {image.path}: {image.error}")
    if bad:
        counts = ", ".join(f"{n} {name}" for name, n in count_by_class(bad).items())
        progress.say(f"unread    {len(bad)} images ({counts}), listed in {workdir / BAD_IMAGES}")


def report_skipped(images: Catalog) -> None:
    """Says which files of a data set were left out, by reason."""
    if images.skipped:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(images.skipped.items()))
        where = "" if images.root == Path("/") else f" of {images.root}"  # of several folders
        progress.say(f"left out  {sum(images.skipped.values())} entries{where}: {reasons}")
