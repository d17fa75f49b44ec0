"""Accuracies that papers report on GenImage, in per cent; none of them was measured here.

All methods are trained on Stable Diffusion v1.4.  The numbers come from the papers and their later
corrections; protocols differ in crops, compression and image counts.
"""

import dataclasses
from collections.abc import Sequence

from cinemae_jax.evaluation.metrics import Row

# Folder of GenImage → name in the papers, in the order of their tables.
GENERATORS = {
    "Midjourney": "Midjourney",
    "stable_diffusion_v_1_4": "SD 1.4",
    "stable_diffusion_v_1_5": "SD 1.5",
    "ADM": "ADM",
    "glide": "GLIDE",
    "wukong": "Wukong",
    "VQDM": "VQDM",
    "BigGAN": "BigGAN",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A method and its reported accuracies.

    Attributes:
      name: of the method.
      paper: reference.
      by_generator: accuracy by folder of GenImage; may lack generators.
      mean: over the eight generators; None if not reported.
      note: table or version, if there are several.
    """

    name: str
    paper: str = ""
    by_generator: dict[str, float] = dataclasses.field(default_factory=dict)
    mean: float | None = None
    note: str = ""


def _eight(*values: float) -> dict[str, float]:
    return dict(zip(GENERATORS, values, strict=True))


CINEMAE = "arXiv 2511.06325"
# CINEMAE, and methods with numbers by generator.
SOURCES = (
    Source("CINEMAE", CINEMAE, {"Midjourney": 95.9}, 96.63, "v2: abstract, and Midjourney"),
    Source("CINEMAE, additive", CINEMAE, mean=95.74, note="v1, table 4; its summary says 95.96"),
    Source(
        "Effort",
        "arXiv 2411.15633",
        _eight(82.4, 99.8, 99.8, 78.7, 93.3, 97.4, 91.7, 77.6),
        91.1,
        "mean as reported; these eight average 90.1",
    ),
    Source("NPR", "arXiv 2312.10461", _eight(81.0, 98.2, 97.9, 76.9, 89.8, 96.9, 84.1, 84.2), 88.6),
    Source(
        "AIDE", "arXiv 2406.19435", _eight(79.4, 99.7, 99.8, 78.5, 91.8, 98.7, 80.3, 66.9), 86.9
    ),
    Source("DRCT", "ICML 2024", _eight(91.5, 95.0, 94.4, 79.4, 89.2, 94.7, 90.0, 81.7), 89.5),
)

# Means over the eight generators of further methods.
MEANS = (
    ("LOTA", 98.5),
    ("SDID", 98.4),
    ("BSF", 98.4),
    ("MCAN", 96.9),
    ("IAPL", 96.7),
    ("DINOv3-7B, linear probe", 96.4),
    ("FatFormer", 88.9),
    ("UnivFD", 79.5),
    ("ResNet-50", 72.1),
    ("DIRE", 70.7),
)

NOTES = (
    "CINEMAE, v1, table 4, mean of the eight by fusion: additive 95.74, concat 95.61, gate 94.95.",
    "CINEMAE, mean of the eight: frozen backbone 96.31, unfrozen 70.07; encoder alone (K = 0) "
    "about 92; JPEG quality 50 above 93.",
    "CINEMAE elsewhere: AIGCDetectBenchmark 93.96 (mean), Chameleon 61.8.",
)


@dataclasses.dataclass(frozen=True)
class Beside:
    """One line of the table of reported numbers.

    Attributes:
      name: of the generator in our data set.
      ours: measured row.
      theirs: reported accuracy by ``SOURCES``, per cent; None if not reported.
    """

    name: str
    ours: Row
    theirs: tuple[float | None, ...]


def beside(rows: Sequence[Row]) -> list[Beside]:
    """Our rows next to reported numbers, in the papers' order.

    A generator is matched by the name of its GenImage folder, ignoring case.  The mean is included
    only if exactly the eight generators were tested.

    Args:
      rows: of ``metrics.evaluate``.
    """
    if not rows:
        return []
    known = {name.casefold(): name for name in GENERATORS}
    ours = {known[r.name.casefold()]: r for r in rows[:-1] if r.name.casefold() in known}
    lines = [
        Beside(ours[name].name, ours[name], tuple(s.by_generator.get(name) for s in SOURCES))
        for name in GENERATORS
        if name in ours
    ]
    if len(ours) == len(GENERATORS) == len(rows) - 1:
        lines.append(Beside("mean", rows[-1], tuple(s.mean for s in SOURCES)))
    return lines
