"""The ``cinemae`` command: what people type, as opposed to training jobs.

Exit codes: 0 all done; 1 some inputs failed, each named; 2 usage or configuration.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from cinemae_jax import __version__
from cinemae_jax.runtime.console import interrupted

COMMANDS = {
    "audit": "what a detector's accuracy on a data set is worth",
    "bundle": "trained detector in one file, to be passed on",
    "calibrate": "a detector's verdicts, calibrated on photographs of your own",
    "convert": "published MAE checkpoint to a frozen backbone",
    "doctor": "opens every image of a data set and says what is wrong with it",
    "export": "detector as a StableHLO program for other software",
    "predict": "how likely pictures are AI-generated",
    "serve": "the same as a web page and over HTTP",
    "verify": "scores an evaluation's images again and compares with its receipt",
}
# Where ``main(argv)`` of each command is, its name first in argv; imported when it is called.
MODULES = {
    "audit": "cinemae_jax.commands.audit",
    "bundle": "cinemae_jax.commands.share",
    "calibrate": "cinemae_jax.commands.calibrate",
    "convert": "weights_convert.__main__",
    "doctor": "cinemae_jax.commands.doctor",
    "export": "cinemae_jax.commands.share",
    "predict": "cinemae_jax.commands.predict",
    "serve": "cinemae_jax.commands.serve",
    "verify": "cinemae_jax.commands.verify",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand; each has its own ``--help``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in COMMANDS:
        try:
            return importlib.import_module(MODULES[arguments[0]]).main(arguments)
        except KeyboardInterrupt:
            return interrupted()
    parser().parse_args(arguments)
    parser().print_help()
    return 0


def parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<10}{help_}" for name, help_ in COMMANDS.items())
    top = argparse.ArgumentParser(
        prog="cinemae",
        description="Tells AI-generated images from photographs.",
        epilog=f"commands:\n{listed}\n\nTraining: python -m cinemae_jax.train --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"cinemae_jax {__version__}")
    top.add_argument("command", nargs="?", choices=COMMANDS, help="one of those below")
    return top


if __name__ == "__main__":
    sys.exit(main())
