"""File names and counts as text, for tables and messages."""

import os
from collections.abc import Mapping


def as_text(name: str) -> str:
    """A file name that is valid UTF-8: undecodable bytes are replaced by '�'."""
    return os.fsencode(name).decode("utf-8", "replace")


def number(count: int, noun: str) -> str:
    """A count and its noun: ``1 file``, ``2,000 files``."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def tally(counts: Mapping[str, int]) -> str:
    """Counts and what they count: ``3 empty, 1,200 truncated``."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())
