"""Options of every command that loads a detector: where its frozen files lie now."""

import argparse

KINDS = ("backbone", "global_backbone")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds ``--backbone`` and ``--global-backbone``."""
    for kind in KINDS:
        flag, what = "--" + kind.replace("_", "-"), kind.replace("_", " ")
        parser.add_argument(
            flag, default="", metavar="F", help=f"file of the detector's {what}, if it has moved"
        )
