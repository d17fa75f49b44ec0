"""Examines files in a child process, which a codec may crash or block without harm.

The child is ``python -m cinemae_jax.data.inspect.examiner``.  It reads pickled lists of paths from
stdin and writes pickled lists of ``Facts`` to stdout.  If it dies, its files are retried one by
one.
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

# Time limit per file, many times what the largest image that the decoder accepts takes.
FILE_SECONDS = 60

READY = "ready"


class Examiner:
    """A child process, restarted after it dies; for one thread at a time."""

    def __init__(self, *, module: str = __name__, file_seconds: int = FILE_SECONDS) -> None:
        """Does not start the child yet.

        Args:
          module: what the child runs.
          file_seconds: time limit per file.
        """
        self._command = (sys.executable, "-m", module, str(file_seconds))
        self._file_seconds = file_seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._end = 0  # exit code of the last dead child

    def __enter__(self) -> "Examiner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._child:
            _stop(self._child)

    def examine(self, paths: Sequence[Path]) -> list[Facts]:
        """``facts.examine`` of each file.

        Raises:
          OSError: if the child cannot be started.
        """
        return self._ask(paths) or [self._alone(path) for path in paths]

    def _alone(self, path: Path) -> Facts:
        """Retries one file of a batch that killed the child; another file may be the cause."""
        found = self._ask([path])
        return found[0] if found else self._obituary()

    def _ask(self, paths: Sequence[Path]) -> list[Facts]:
        """Facts about all files, or nothing if the child died."""
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
        alone = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # otherwise one thread per core each
        child = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=alone
        )
        try:
            pickle.load(_pipes(child)[1])
        except EOFError:
            raise OSError(
                f"the examining process does not start: {' '.join(self._command)} exited with "
                f"code {_stop(child)}"
            ) from None
        return child

    def _obituary(self) -> Facts:
        """Facts about a file that killed the child."""
        if self._end == -signal.SIGALRM:
            return Facts(TOO_SLOW, f"not decoded in {self._file_seconds} seconds")
        how = f"signal {-self._end}" if self._end < 0 else f"exit code {self._end}"
        return Facts(CRASH, f"the decoding process ended with {how}")


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    return cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)


def _stop(child: subprocess.Popen[bytes]) -> int:
    """Closes the input of a child, which ends it, and returns its exit code."""
    requests, answers = _pipes(child)
    answers.close()
    with contextlib.suppress(BrokenPipeError):  # it may have left input unread
        requests.close()
    return child.wait()


def main(argv: Sequence[str]) -> None:
    """Runs in the child."""
    file_seconds = int(argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a codec prints must not mix with the answers
    warnings.simplefilter("ignore")  # Pillow warns about odd files
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C, the parent closes the input
    _answer(READY, answers)
    while True:
        try:
            paths = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        found = []
        for path in paths:
            signal.alarm(file_seconds)  # kills the process, even inside a codec
            found.append(facts.examine(path))
        signal.alarm(0)
        _answer(found, answers)


def _answer(what: object, answers: IO[bytes]) -> None:
    pickle.dump(what, answers)
    answers.flush()


if __name__ == "__main__":
    main(sys.argv)
