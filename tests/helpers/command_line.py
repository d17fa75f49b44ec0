"""Entry points called in this process as their commands would call them."""

import sys
from collections.abc import Callable
from unittest import mock

from absl import flags


def called(main: Callable[[list[str]], int], *arguments: str) -> int:
    """The exit code of an entry point; flags that its config file has defined are removed again."""
    argv = ["job", *arguments]
    before = set(flags.FLAGS)
    with mock.patch.object(sys, "argv", argv):  # where ml_collections looks for overrides
        try:
            return main(argv)
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
            flags.FLAGS.mark_as_parsed()
