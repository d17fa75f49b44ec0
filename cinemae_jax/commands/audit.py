"""cinemae audit ROOT: what a detector's accuracy on a data set is worth.

Without a detector: how much of the task file facts and a coarse spectrum solve by themselves.
Exit codes: 0 all done; 1 some images cannot be read, each named in the report; 2 usage.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from cinemae_jax.audit import display, whole
from cinemae_jax.audit.attacks import Attack
from cinemae_jax.audit.equalise import require_possible
from cinemae_jax.runtime.console import (
    OK,
    SOME_FAILED,
    Parser,
    accept_any_name,
    count,
    fail,
    report_console,
)
from cinemae_jax.runtime.files import require_writable, write_json

PIPE_WIDTH = 160  # characters a line, where there is no terminal to fit


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: name of the command first.
    """
    options = parser().parse_args(argv[1:])
    accept_any_name()
    try:
        _require_possible(options)
        with contextlib.redirect_stdout(sys.stderr):  # progress is none of the report
            report = whole.audited_report(options)
        if options.json:
            write_json(options.json, report)
    except (ValueError, OSError) as error:
        return fail(error)
    display.show(report, report_console(PIPE_WIDTH))
    return SOME_FAILED if report["unreadable"] else OK


def parser() -> Parser:
    arguments = Parser(
        prog="cinemae audit",
        description="Says what an accuracy on a data set is worth: what files alone give away, and "
        "what of a detector's accuracy is left under other conditions.",
        epilog="exit codes: 0 all done, 1 some images cannot be read, 2 usage; see docs/audit.md",
    )
    add = arguments.add_argument
    add("root", help="folder of the data set, or a list of images")
    add("--quarantine", metavar="F", help="list of images to leave out, of `cinemae doctor`")
    add("--detector", metavar="D", help="run, file of `cinemae bundle`, or bundled name (tiny)")
    add("--backbone", default="", metavar="F", help="its backbone's file, if it has moved")
    add("--json", type=Path, metavar="F", help="write the whole report here")
    add("--images", type=count, default=0, metavar="N", help="of each class and generator (all)")
    add("--side", type=count, default=256, metavar="S", help="equalised short side (256)")
    add("--quality", type=count, default=90, metavar="Q", help="equalised JPEG quality (90)")
    add(
        "--train-root", default="", metavar="ROOT", help="to train controls on (ROOT's train split)"
    )
    add("--train-images", type=count, default=0, metavar="N", help="of each class, for them (all)")
    add("--no-controls", action="store_true", help="do not train controls")
    add("--robustness", action="store_true", help="corruptions and white-box attacks, too")
    add("--attack-images", type=count, default=16, metavar="N", help="of each cell (16; 0: all)")
    add("--attack-steps", type=count, default=10, metavar="N", help="gradient steps (10)")
    add("--attack-draws", type=count, default=4, metavar="N", help="mask draws a step (4)")
    add("--bootstrap", type=count, default=1000, metavar="N", help="resamples (1000)")
    return arguments


def _require_possible(options: argparse.Namespace) -> None:
    """Fails before the hours of an audit, not after them."""
    require_writable(options.json)
    if not options.detector and (options.robustness or options.train_root):
        raise ValueError("--robustness and --train-root need a --detector")
    Attack(options.attack_steps, options.attack_draws)
    require_possible(options.side, options.quality)
