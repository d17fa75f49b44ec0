"""Is the hybrid better than the better of its parts?  Data for that question, and its answer.

    python -m benchmarks.frequency prepare ROOT OUT
    python -m cinemae_jax.ablate --config configs/ablation/frequency.py --workdir RUNS \
        --config.base.data.root=OUT ...
    python -m benchmarks.frequency compare RUNS [--groups F]

``prepare`` equalises a data set (shorter side 256, JPEG 90, both classes alike) and adds every test
image under each of ``CONDITIONS``, as generators NAME__CONDITION.  ``compare`` reads the scores of
the ablation's rows and prints differences of AUC, paired over groups of images.
"""

import argparse
import csv
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cinemae_jax.audit.conditions import sample
from cinemae_jax.audit.corruptions import Blur, Corruption, Jpeg, Resize
from cinemae_jax.audit.equalise import equalise
from cinemae_jax.data import catalog
from cinemae_jax.data.decode import decode
from cinemae_jax.data.records import CLASS_NAMES

CONDITIONS: dict[str, Corruption] = {
    **{f"jpeg{quality}": Jpeg(quality) for quality in (95, 75, 50, 30)},
    "half": Resize(0.5),
    "blur": Blur(1.0),
}
CLEAN = "clean"
SIDE, QUALITY = 256, 90
RESAMPLES, CONFIDENCE = 1000, 0.95
# Folders of the rows of configs/ablation/frequency.py, by what they are compared with.
PARTS = {
    "hybrid_residual": ("cinemae", "residual_alone"),
    "hybrid_blocks": ("cinemae", "blocks_alone"),
    "hybrid_radial": ("cinemae", "radial_alone"),
    "hybrid_random_weights": ("hybrid_residual",),
    "hybrid_shuffled_scores": ("hybrid_residual",),
    "bands": ("hybrid_residual",),
}


def prepare(root: str, out: Path, images: int, conditions: Sequence[str]) -> int:
    """Writes the equalised training images, and the test images under every condition.

    Args:
      root: data set with the splits train and val.
      out: folder to write.
      images: test images per class and generator; 0 for all.
      conditions: some of ``CONDITIONS``.

    Returns:
      Number of files.
    """
    count = 0
    found = catalog.scan(root)
    for split in ("train", "val"):
        kept = sample(found.select(split=split), images if split == "val" else 0)
        changes = {
            CLEAN: None,
            **({c: CONDITIONS[c] for c in conditions} if split == "val" else {}),
        }
        for row in kept.table.to_pylist():
            content = equalise(
                Path(found.root, row["path"]).read_bytes(), side=SIDE, quality=QUALITY
            )
            name = Path(row["path"]).stem + f"_{row['example_id']:x}"
            for condition, change in changes.items():
                generator = row["generator"] + (f"__{condition}" if change else "")
                folder = out / generator / "equalised" / split / CLASS_NAMES[row["label"]]
                folder.mkdir(parents=True, exist_ok=True)
                if change is None:
                    (folder / f"{name}.jpg").write_bytes(content)
                else:
                    rng = np.random.default_rng(row["example_id"])
                    change(decode(content), rng).save(folder / f"{name}.png")
                count += 1
    return count


class Scores:
    """Scores of all rows of an ablation on the same images."""

    def __init__(self, runs: Path, groups: dict[str, str]) -> None:
        names = ("cinemae", *PARTS, "radial_alone", "blocks_alone", "residual_alone")
        self.logits: dict[str, np.ndarray] = {}
        for name in names:
            if not (runs / name / "scores.csv").is_file():
                continue
            with open(runs / name / "scores.csv", newline="") as file:
                rows = [row for row in csv.DictReader(file) if not row["error"]]
            rows.sort(key=lambda row: row["path"])
            heads = [key for key in rows[0] if key == "logit" or key.startswith("logit_")]
            self.logits[name] = np.array([[float(row[h]) for h in heads] for row in rows])
        self.labels = np.array([int(row["label"] in ("1", "ai")) for row in rows])
        where = [row["generator"].partition("__") for row in rows]
        self.generators = np.array([generator for generator, _, _ in where])
        self.conditions = np.array([condition or CLEAN for _, _, condition in where])
        stems = [Path(row["path"]).stem for row in rows]
        self.groups = np.array([groups.get(stem, stem) for stem in stems])

    def auc(self, name: str, rows: np.ndarray) -> float:
        """Mean over heads, by pairs: many times faster on small samples than by a library."""
        logits, labels = self.logits[name][rows], self.labels[rows]
        difference = logits[labels == 1][:, None] - logits[labels == 0][None]
        return float((np.sign(difference).mean() + 1) / 2)

    @functools.cache  # noqa: B019 - a few dozen arrays, as long as the program runs
    def resamples(self, generator: str, condition: str) -> list[np.ndarray]:
        """Rows of the whole sample, then of resamples by group, the same for every condition."""
        here = np.flatnonzero((self.generators == generator) & (self.conditions == condition))
        rng = np.random.default_rng(0)
        members: dict[tuple[int, str], list[int]] = {}
        for row in here:
            members.setdefault((int(self.labels[row]), str(self.groups[row])), []).append(int(row))
        by_class = [[members[k] for k in sorted(members) if k[0] == label] for label in (0, 1)]
        drawn = [here]
        for _ in range(RESAMPLES):
            picked = [g[i] for g in by_class for i in rng.integers(len(g), size=len(g))]
            drawn.append(np.concatenate(picked).astype(int))
        return drawn

    def curve(self, name: str, condition: str) -> np.ndarray:
        """(generators, 1 + resamples) AUC."""
        names = sorted(set(self.generators))
        return np.array(
            [[self.auc(name, rows) for rows in self.resamples(g, condition)] for g in names]
        )


def compare(scores: Scores) -> list[str]:
    """Markdown tables: AUC by row and condition, then differences to the better part."""
    present = [CLEAN, *sorted(set(scores.conditions) - {CLEAN})]
    found = {(n, c): scores.curve(n, c) for n in scores.logits for c in present}
    lines = [f"| row | {' | '.join(present)} |", "| --- |" + " ---: |" * len(present)]
    for name in scores.logits:
        cells = (_interval(found[name, c].mean(axis=0)) for c in present)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| difference | {' | '.join(present)} |", "| --- |" + " ---: |" * len(present)]
    for name, parts in PARTS.items():
        if name in scores.logits and all(part in scores.logits for part in parts):
            cells = (_interval(_gain(found, name, parts, c).mean(axis=0), "+") for c in present)
            lines.append(f"| {name} - {' or '.join(parts)} | {' | '.join(cells)} |")
    return lines


def _gain(
    found: dict[tuple[str, str], np.ndarray], name: str, parts: Sequence[str], condition: str
) -> np.ndarray:
    """AUC minus that of the better part, which is chosen by generator on the whole sample."""
    others = np.stack([found[part, condition] for part in parts])
    better = others[:, :, 0].argmax(axis=0)
    return found[name, condition] - others[better, np.arange(others.shape[1])]


def _interval(values: np.ndarray, sign: str = "") -> str:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[1:], (tail, 1 - tail))
    return f"{values[0]:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.frequency", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("prepare")
    made.add_argument("root")
    made.add_argument("out", type=Path)
    made.add_argument("--images", type=int, default=0, help="test images per class and generator")
    made.add_argument("--conditions", nargs="*", default=list(CONDITIONS), choices=CONDITIONS)
    read = commands.add_parser("compare")
    read.add_argument("runs", type=Path)
    read.add_argument("--groups", type=Path, help="CSV: stem of a file, its group")
    given = parser.parse_args(argv)
    if given.command == "prepare":
        print(prepare(given.root, given.out, given.images, given.conditions), "files")
        return 0
    groups = {}
    if given.groups:
        with open(given.groups, newline="") as file:
            groups = {row[0]: row[1] for row in csv.reader(file)}
    print("\n".join(compare(Scores(given.runs, groups))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
