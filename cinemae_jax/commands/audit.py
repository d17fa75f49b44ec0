"""cinemae audit ROOT: what a detector's accuracy on a data set is worth.

Without a detector: how much of the task file facts and a coarse spectrum solve by themselves.
Exit codes: 0 all done; 1 some images cannot be read, each named in the report; 2 usage.
"""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from cinemae_jax.audit import display, findings
from cinemae_jax.audit.options import AuditOptions
from cinemae_jax.commands import frozen
from cinemae_jax.runtime.console import (
    OK,
    SOME_FAILED,
    Parser,
    count,
    fail,
    report_console,
)
from cinemae_jax.runtime.files import require_writable, write_json

PIPE_WIDTH = 160  # characters per line if the output is not a terminal
NUMBERS = {
    "--images": "images to score, per class and generator; 0: all",
    "--side": "short side of equalised files, pixels",
    "--quality": "JPEG quality of equalised files",
    "--train-images": "images to train controls on, per class and generator; 0: all",
    "--attack-images": "images to attack, per class and generator; 0: all",
    "--attack-steps": "gradient steps of an attack",
    "--attack-draws": "mask draws per gradient step",
    "--bootstrap": "resamples per interval",
}


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: name of the command first.
    """
    arguments = vars(parser().parse_args(argv[1:]))
    file = arguments.pop("json")
    try:
        require_writable(file)
        options = AuditOptions(**arguments)
        with contextlib.redirect_stdout(sys.stderr):  # progress is not part of the report
            report = findings.report(options)
        if file:
            write_json(file, report)
    except (ValueError, OSError) as error:
        return fail(error)
    display.show(report, report_console(PIPE_WIDTH))
    return SOME_FAILED if report["unreadable"] else OK


def parser() -> Parser:
    """Arguments: the fields of ``AuditOptions``, and ``--json``."""
    arguments = Parser(
        prog="cinemae audit",
        description="Shows what an accuracy on a data set is worth: what the files alone give "
        "away, and how much of a detector's accuracy remains under other conditions.",
        epilog="exit codes: 0 all done, 1 some images cannot be read, 2 usage; see docs/audit.md",
    )
    add = arguments.add_argument
    add("root", help="folder of the data set, or a list of images")
    add("--quarantine", default="", metavar="F", help="leave out what `cinemae doctor` listed in F")
    add("--detector", default="", metavar="D", help="run, bundle file, or bundled name (tiny)")
    frozen.add_options(arguments)
    add("--json", type=Path, metavar="F", help="write the whole report to this file")
    add("--train-root", default="", metavar="F", help="data set to train controls on, if not root")
    add("--no-controls", dest="controls", action="store_false", help="do not train controls")
    add("--robustness", action="store_true", help="add corruptions and white-box attacks")
    add("--signal", action="store_true", help="add what every anomaly statistic is worth")
    for flag, meaning in NUMBERS.items():
        default = getattr(AuditOptions, flag.strip("-").replace("-", "_"))
        add(flag, type=count, default=default, metavar="N", help=f"{meaning} ({default})")
    return arguments
