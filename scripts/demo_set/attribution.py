"""Write ``ATTRIBUTION.md``: how the files were made, their authors and licences.

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

The folders next to this file hold photographs (`nature`) and images from named generators (`ai`),
so that you can try the programs of this project without a download. They are a **demonstration,
not a benchmark**: the set is small, the two classes show different subjects, and a result on it
says nothing about how well a detector works elsewhere.

## How the files were made

Every file was chosen by hand from a package that allows redistribution (`demo_selection.csv`).
Each was turned upright and cropped to its central square. A few were cropped to another square
(column `crop` of `manifest.csv`), to keep the subject in view or to remove a badge in a corner.
Squares above {common} pixels were reduced to {common}, then all were reduced to {side} x {side}
with a Lanczos filter and saved as JPEG, quality {quality}, 4:2:0, without metadata. So every image
here is a **modified copy** of its source. `manifest.csv` gives the size and format of each source;
most sources are lossy WebP or JPEG files themselves. Colour profiles were dropped, not converted.

The credits of the photographs from `gcompris-qt-data` come from the README files inside its
resource containers; these name the pictures of this version, which the copyright file of the Debian
package does not. The credits of `lomiri-wallpapers-16.04` come from its copyright file, those of
the Python packages from their documentation.

Generator names come from the source's file name or metadata and were not checked independently.
`stable_diffusion` holds several models of that family and models fine-tuned from it;
`other_diffusion` holds models with published weights and the FLUX.2 and FLUX.3 families;
`commercial_api` holds models that are offered only as a service.

Edits of an existing image (image to image, inpainting, outpainting, restoration) were left out. The
column `made from` below (`condition` in `manifest.csv`) says what an image was made from, according
to the workflow in its package, or to its file name if there is no workflow. Most were made from
text alone. Some were guided by a depth map, edge map, scribble or pose (a ControlNet or similar;
`control image` if the kind is unknown), which fixes the layout but provides no pixels; others by
boxes for the subjects, or by images used as prompts. For a few, the model processed its own output
a second time. The persons of `gemini_3_pro` are invented; each image used earlier images of the
same person, from the same model, as a reference.

## Licences

These images are not covered by the Apache licence of the program code. Each keeps the licence of
its source, as listed in the tables:

{licences}

* **CC-BY** files: keep the name of the author when you share them.
* **CC-BY-SA** files (share-alike): the modified copies here stay under the same CC-BY-SA licence,
  and so must anything you make from them. This applies to the individual files, not to the set,
  which is a collection.
* **MIT** files are the AI images; the packages they come from put them under the MIT licence, whose
  text is at the end. The services that made some of them may add further terms.
* **CC0 and public domain** files: no conditions; the authors are named as a courtesy. "Public
  domain" is what the source states and may differ in some countries.

Persons in the photographs appear at public performances, or are public figures. A free licence does
not waive the rights of the persons shown; do not use the images to suggest that they endorse
anything. The AI images show no real persons; any likeness is unintended.
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
    note = f"`...` stands for `{DATASET}`. All files were cropped and reduced as described above."
    sections = [introduction, "## Photographs\n", note, "", *photographs, ""]
    sections += ["## AI images\n", *images, "", MIT_TEXT]
    return "\n".join(sections)
