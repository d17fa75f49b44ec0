"""The ``cinemae`` command: predict, serve, doctor …, and the training jobs under their names.

Exit codes: 0 all done; 1 some inputs failed, each named; 2 usage or configuration; 70 a bug.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from cinemae_jax import __version__
from cinemae_jax.runtime.console import (
    accept_any_name,
    at_home,
    crashed,
    fail,
    interrupted,
    silence_decoders,
)


class Command(NamedTuple):
    """A row of the table of commands."""

    module: str  # holds ``main(argv)``, argv[0] being the command's name; imported when called
    help: str


COMMANDS = {
    "ablate": Command("cinemae_jax.ablate", "train and compare the rows of a table of the paper"),
    "audit": Command(
        "cinemae_jax.commands.audit", "measure what a detector's accuracy on a data set is worth"
    ),
    "bundle": Command(
        "cinemae_jax.commands.share", "write a trained detector to one file that others can use"
    ),
    "calibrate": Command(
        "cinemae_jax.commands.calibrate", "calibrate a detector's verdicts on your own photographs"
    ),
    "convert": Command(
        "weights_convert.__main__", "convert a published MAE checkpoint to a frozen backbone"
    ),
    "doctor": Command(
        "cinemae_jax.commands.doctor", "open every image of a data set and list the problems"
    ),
    "evaluate": Command(
        "cinemae_jax.evaluate", "score labelled images with a trained detector, and report"
    ),
    "export": Command(
        "cinemae_jax.commands.share", "write a detector as a StableHLO program for other software"
    ),
    "extract": Command("cinemae_jax.extract", "extract the feature bank of a run"),
    "predict": Command("cinemae_jax.commands.predict", "say how likely images are AI-generated"),
    "pretrain": Command("cinemae_jax.pretrain", "pre-train a small backbone on photographs"),
    "serve": Command("cinemae_jax.commands.serve", "do the same as a web page and over HTTP"),
    "train": Command("cinemae_jax.train", "train a detector's head on a frozen backbone"),
    "verify": Command(
        "cinemae_jax.commands.verify",
        "score the images of an evaluation again and compare",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; each has its own ``--help``."""
    arguments = [at_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    if arguments and arguments[0] in COMMANDS:
        silence_decoders()
        accept_any_name()
        try:
            return importlib.import_module(COMMANDS[arguments[0]].module).main(arguments)
        except KeyboardInterrupt:
            return interrupted()
        except Exception:
            return crashed()
    if arguments and not arguments[0].startswith("-"):
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        return fail(ValueError(f"cinemae has no command {arguments[0]!r}: {hint}"))
    parser().parse_args(arguments)
    parser().print_help()
    return 0


def parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<10}{command.help}" for name, command in COMMANDS.items())
    top = argparse.ArgumentParser(
        prog="cinemae",
        description="Tells AI-generated images from photographs.",
        epilog=f"commands:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"cinemae_jax {__version__}")
    top.add_argument("command", nargs="?", choices=COMMANDS, help="one of the commands below")
    return top


if __name__ == "__main__":
    sys.exit(main())
