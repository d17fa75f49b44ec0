"""Write ``ATTRIBUTION.md``: how the files were made, whose they are, under which licence.

In: the rows of the manifest. Out: the Markdown text.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from demo_set.images import COMMON_SIDE, JPEG_QUALITY, SIDE
from demo_set.selection import DATASET

LICENCE_LINKS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}

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

Edits of a given picture (image to image, inpainting, outpainting, restoration) were left out. What
an image was made from stands in column `made from` below (`condition` in `manifest.csv`), as the
workflow in its package says, or its file name where there is none. Most began with text alone.
Some were guided by a depth map, edge map, scribble or pose (a ControlNet or the like; `control
image` where the kind is not told), which fixes the layout but gives no pixels, by boxes for the
subjects, or by images used as prompts. In a few, the model went a second time over its own output.
The persons of `gemini_3_pro` are invented; each image had earlier images of the same person, by the
same model, as reference.

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
    lines = [
        "| file | model | made from | from | licence | package |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = (
            short_path(row), cell(row["model"]), cell(row["condition"]), cell(row["author"]),
            row["licence"], row["package"],
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
