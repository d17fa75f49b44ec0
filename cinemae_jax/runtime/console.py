"""Arguments, messages and exit codes of the commands; without JAX, so ``doctor`` starts fast."""

import argparse
import importlib.metadata
import io
import platform
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from rich.console import Console

# Exit codes: all done; some inputs failed, each named; wrong usage, configuration or path; a bug
# (EX_SOFTWARE of sysexits.h).
OK, SOME_FAILED, USAGE, CRASHED = 0, 1, 2, 70


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message} (see {self.prog} --help)\n")


def count(text: str) -> int:
    """Argument type: a non-negative integer."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a non-negative integer")
    return int(text)


def positive(text: str) -> int:
    """Argument type: a positive integer."""
    if (value := count(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, is {value}")
    return value


def fail(error: Exception) -> int:
    """Prints an error as one line on stderr and returns the exit code for it."""
    print("error:", *str(error).split(), file=sys.stderr, flush=True)
    return USAGE


def crashed() -> int:
    """Prints the traceback of the exception being handled and returns the exit code of a bug."""
    traceback.print_exc()
    print(
        "crashed   by a bug of cinemae_jax or of a library: please report the lines above",
        file=sys.stderr,
        flush=True,
    )
    return CRASHED


def interrupted() -> int:
    """Prints that Ctrl-C ended the command and returns the exit code of shells for it."""
    print("stopped   by Ctrl-C", file=sys.stderr, flush=True)
    return 128 + signal.SIGINT


def printable(text: str) -> str:
    """Escapes line breaks and terminal control characters, which file names may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def csv_cell(text: str) -> str:
    """Text for a CSV cell: printable, and with ' in front if a spreadsheet would compute it."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "@")) else text


def accept_any_name() -> None:
    """Lets the streams escape characters that they cannot encode instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


_HOME = re.compile(r"(^|=|,)~(?=/|$)")


def at_home(word: str) -> str:
    """A path or flag with ``~`` expanded also where shells do not: ``--out=~/z``, ``ai=~/a``."""
    return _HOME.sub(lambda found: found[1] + str(Path.home()), word)


def silence_decoders() -> None:
    """Keeps Pillow's warnings about odd files off the terminal: results name what matters."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def report_console(pipe_width: int) -> Console:
    """Console for reports whose text is data, never markup.

    Args:
      pipe_width: characters per line if stdout is not a terminal.
    """
    width = None if sys.stdout.isatty() else pipe_width
    return Console(width=width, markup=False, emoji=False, highlight=False)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of the named packages."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
