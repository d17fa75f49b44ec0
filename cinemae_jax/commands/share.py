"""cinemae bundle, cinemae export: write a trained detector to a file, to share or to deploy.

Exit codes: 0 done; 2 usage, or an unreadable detector.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cinemae_jax import weights
from cinemae_jax.commands import frozen
from cinemae_jax.detector import bundle, export
from cinemae_jax.detector.api import Detector
from cinemae_jax.runtime import console, progress


def main(argv: Sequence[str]) -> int:
    """Runs the command.

    Args:
      argv: command name, ``bundle`` or ``export``, then its arguments.
    """
    options = (bundle_parser() if argv[0] == "bundle" else export_parser()).parse_args(argv[1:])
    try:
        if not options.out.absolute().parent.is_dir() or options.out.is_dir():
            raise ValueError(f"cannot write {options.out}: name a file in a folder that exists")
        if argv[0] == "bundle":
            write_bundle(options)
        else:
            write_export(options)
    except (ValueError, OSError) as error:
        return console.fail(error)
    return console.OK


def bundle_parser() -> argparse.ArgumentParser:
    parser = console.Parser(
        prog="cinemae bundle",
        description="Writes a trained detector to one file: heads, settings, held-out scores, and "
        "the sha256 of its backbone, which stays a separate file.",
    )
    parser.add_argument("source", metavar="WORKDIR", help="folder of the training run")
    parser.add_argument(
        "--card", type=Path, metavar="F", help="text file that describes the detector"
    )
    return _common(parser, "file to write, for example mine.safetensors")


def export_parser() -> argparse.ArgumentParser:
    parser = console.Parser(
        prog="cinemae export",
        description="Writes a detector as a StableHLO program with all weights, and a description "
        "of its preprocessing to F.json.",
    )
    parser.add_argument(
        "source", metavar="DETECTOR", help="run folder, bundle file, or bundled name (clip, tiny)"
    )
    return _common(parser, "file to write, for example mine.stablehlo")


def _common(parser: argparse.ArgumentParser, out: str) -> argparse.ArgumentParser:
    parser.add_argument("--out", type=Path, required=True, metavar="F", help=out)
    frozen.add_options(parser)
    return parser


def write_bundle(options: argparse.Namespace) -> None:
    """Writes a detector to one file; without a new card it keeps its own."""
    out: Path = options.out
    found = bundle.load(
        options.source, backbone=options.backbone, global_backbone=options.global_backbone
    )
    if options.card is not None:
        found = dataclasses.replace(found, card=options.card.read_text(encoding="utf-8"))
    sha256 = bundle.save(out, found)
    progress.say(f"detector  {bundle.identity(found.detector)}, step {found.detector.step}")
    settings = found.detector.settings
    for name in filter(None, (settings.backbone, settings.global_backbone)):
        where = "bundled" if name in weights.BUNDLED else "keep it next to the file"
        progress.say(f"backbone  {Path(name).name}, {where}")
    progress.say(f"wrote     {out}, {out.stat().st_size / 1e6:,.1f} MB, sha256 {sha256}")


def write_export(options: argparse.Namespace) -> None:
    """Writes the program and its record."""
    out: Path = options.out
    detector = Detector.load(
        options.source, backbone=options.backbone, global_backbone=options.global_backbone
    )
    record = export.save(out, detector)
    progress.say(f"detector  {record['detector']}")
    progress.say(f"wrote     {out}, {out.stat().st_size / 1e6:,.1f} MB, for {record['platforms']}")
    progress.say(f"wrote     {export.record_path(out)}")
