"""cinemae bundle, cinemae export: write a trained detector to a file, to share or to deploy.

Exit codes: 0 done; 2 usage, or an unreadable detector.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cinemae_jax import weights
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
            write_bundle(options.source, options.out, options.backbone, options.card)
        else:
            write_export(options.source, options.out, options.backbone)
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
    parser.add_argument("source", metavar="DETECTOR", help="run folder, bundle file or 'tiny'")
    return _common(parser, "file to write, for example mine.stablehlo")


def _common(parser: argparse.ArgumentParser, out: str) -> argparse.ArgumentParser:
    parser.add_argument("--out", type=Path, required=True, metavar="F", help=out)
    parser.add_argument(
        "--backbone", default="", metavar="F", help="file of its backbone, if moved"
    )
    return parser


def write_bundle(source: str, out: Path, backbone: str, card: Path | None) -> None:
    """Writes a detector to one file; without a new card it keeps its own."""
    found = bundle.load(source, backbone=backbone)
    if card is not None:
        found = dataclasses.replace(found, card=card.read_text(encoding="utf-8"))
    sha256 = bundle.save(out, found)
    progress.say(f"detector  {bundle.identity(found.detector)}, step {found.detector.step}")
    name = Path(found.detector.settings.backbone).name
    progress.say(
        f"backbone  {name}, {'bundled' if name in weights.BUNDLED else 'keep it next to the file'}"
    )
    progress.say(f"wrote     {out}, {out.stat().st_size / 1e6:,.1f} MB, sha256 {sha256}")


def write_export(source: str, out: Path, backbone: str) -> None:
    """Writes the program and its record."""
    record = export.save(out, Detector.load(source, backbone=backbone))
    progress.say(f"detector  {record['detector']}")
    progress.say(f"wrote     {out}, {out.stat().st_size / 1e6:,.1f} MB, for {record['platforms']}")
    progress.say(f"wrote     {export.record_path(out)}")
