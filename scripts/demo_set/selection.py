"""Read the selection table: source and destination of every image.

In: ``demo_selection.csv``, written by hand. Out: its checked rows, sorted by output path.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from demo_set.packages import PACKAGES

DATASET = "imagenet_ai_demo"
LABELS = ("ai", "nature")
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Entry:
    """One row of the selection table: a source image and its place in the set."""

    package: str
    member: str
    generator: str
    split: str
    label: str
    name: str
    model: str
    condition: str
    licence: str
    author: str
    title: str
    source: str
    crop: str

    @property
    def path(self) -> str:
        return f"{self.generator}/{DATASET}/{self.split}/{self.label}/{self.name}.jpg"


def read_selection(path: Path) -> list[Entry]:
    with path.open(newline="", encoding="utf-8") as handle:
        entries = [Entry(**row) for row in csv.DictReader(handle)]
    check_selection(entries)
    return sorted(entries, key=lambda entry: entry.path)


def check_selection(entries: list[Entry]) -> None:
    """Refuse a table that leaks between splits or classes."""
    known = {package.spec for package in PACKAGES}
    for entry in entries:
        if entry.package not in known or entry.label not in LABELS or entry.split not in SPLITS:
            raise ValueError(f"unknown package, label or split: {entry}")
    refuse_repeats("output", [entry.path for entry in entries])
    refuse_repeats("source", [f"{entry.package} {entry.member}" for entry in entries])
    counts = Counter((entry.generator, entry.split, entry.label) for entry in entries)
    for generator, split, _ in counts:
        if counts[generator, split, "ai"] != counts[generator, split, "nature"]:
            raise ValueError(f"{generator}/{split} has different numbers of nature and ai images")
    check_authors(entries)


def refuse_repeats(what: str, values: list[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{what} used more than once: {repeated}")


def check_authors(entries: list[Entry]) -> None:
    """Refuse an author with photographs in both splits, which could split a series."""
    splits: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.label == "nature":
            splits[entry.author].add(entry.split)
    torn = sorted(author for author, found in splits.items() if len(found) > 1)
    if torn:
        raise ValueError(f"authors with photographs in both train and val: {torn}")
