"""Examines files in a process of its own, so that a codec that crashes or hangs ends only that.

The child is ``python -m cinemae_jax.data.inspect.examiner``: pickled lists of paths on its stdin,
pickled lists of ``Facts`` on its stdout.  Files that it died on are retried one by one.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, cast

from cinemae_jax.data.inspect import facts
from cinemae_jax.data.inspect.facts import CRASH, TOO_SLOW, Facts

# That a file may take: many times what the largest picture takes that the decoder admits.
FILE_SECONDS = 60

READY = "ready"


class Examiner:
    """One child process, and another when it has died; for one thread at a time."""

    def __init__(self, *, module: str = __name__, file_seconds: int = FILE_SECONDS) -> None:
        """Starts nothing yet.

        Args:
          module: that the child runs.
          file_seconds: that a file may take.
        """
        self._command = (sys.executable, "-m", module, str(file_seconds))
        self._file_seconds = file_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._end = 0  # exit code of the last child that died

    def __enter__(self) -> "Examiner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._child:
            _stop(self._child)

    def examine(self, paths: Sequence[Path]) -> list[Facts]:
        """As ``facts.examine`` of each.

        Raises:
          OSError: if no child can be started.
        """
        return self._ask(paths) or [self._alone(path) for path in paths]

    def _alone(self, path: Path) -> Facts:
        """Of one of some files that the child has died of: perhaps for memory that others took."""
        found = self._ask([path])
        return found[0] if found else self._obituary()

    def _ask(self, paths: Sequence[Path]) -> list[Facts]:
        """Facts of all, or nothing if the child has died of one."""
        self._child = child = self._child or self._start()
        requests, answers = _pipes(child)
        try:
            pickle.dump(paths, requests)
            requests.flush()
            return pickle.load(answers)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self._end, self._child = _stop(child), None
            return []

    def _start(self) -> subprocess.Popen[bytes]:
        alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # else a thread a core in every child
        child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=alone
        )
        try:
            pickle.load(_pipes(child)[1])
        except EOFError:
            raise OSError(
                f"the examining process does not start: {' '.join(self._command)} ended with "
                f"exit code {_stop(child)}"
            ) from None
        return child

    def _obituary(self) -> Facts:
        """Of the file that the last child has died of, alone."""
        if self._end == -signal.SIGALRM:
            return Facts(TOO_SLOW, f"not decoded in {self._file_seconds} seconds")
        how = f"signal {-self._end}" if self._end < 0 else f"exit code {self._end}"
        return Facts(CRASH, f"the process that decoded it has ended with {how}")


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    return cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)


def _stop(child: subprocess.Popen[bytes]) -> int:
    """Waits for a child that is dead, or that ends with its input; returns its exit code."""
    requests, answers = _pipes(child)
    answers.close()
    with contextlib.suppress(BrokenPipeError):  # of what it has not read
        requests.close()
    return child.wait()


def main(argv: Sequence[str]) -> None:
    """The child."""
    file_seconds = int(argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a codec that prints does not disturb
    warnings.simplefilter("ignore")  # of Pillow on odd files
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then hangs up
    _answer(READY, answers)
    while True:
        try:
            paths = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        found = []
        for path in paths:
            signal.alarm(file_seconds)  # ends the process, even in the midst of a codec
            found.append(facts.examine(path))
        signal.alarm(0)
        _answer(found, answers)


def _answer(what: object, answers: IO[bytes]) -> None:
    pickle.dump(what, answers)
    answers.flush()


if __name__ == "__main__":
    main(sys.argv)
