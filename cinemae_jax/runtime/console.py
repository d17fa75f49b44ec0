"""What commands share on the terminal; without JAX, so that ``doctor`` starts fast."""

import argparse
import importlib.metadata
import io
import platform
import signal
import sys
from collections.abc import Iterable
from typing import NoReturn

from rich.console import Console

# Exit codes: all done; some inputs failed, each named; usage, configuration or a missing file.
OK, SOME_FAILED, USAGE = 0, 1, 2


class Parser(argparse.ArgumentParser):
    """Arguments of a command; a mistake is one line, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message} ({self.prog} --help says more)\n")


def count(text: str) -> int:
    """A whole number from 0 on, as an argument."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1 on, as an argument."""
    if (value := count(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, is {value}")
    return value


def fail(error: Exception) -> int:
    """Says on one line of stderr what went wrong, and returns the exit code for it."""
    print("error:", *str(error).split(), file=sys.stderr, flush=True)
    return USAGE


def interrupted() -> int:
    """Says that Ctrl-C ended it, and returns the exit code of shells for that."""
    print("stopped   by Ctrl-C", file=sys.stderr, flush=True)
    return 128 + signal.SIGINT


def printable(text: str) -> str:
    """Spells out line breaks and terminal commands that a file name may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def accept_any_name() -> None:
    """Lets stdout spell out what it cannot show, in place of failing at a file's name."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def report_console(pipe_width: int) -> Console:
    """For reports whose text is data: nothing in it is markup.

    Args:
      pipe_width: characters a line where there is no terminal to fit.
    """
    width = None if sys.stdout.isatty() else pipe_width
    return Console(width=width, markup=False, emoji=False, highlight=False)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of installed packages, by name."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
