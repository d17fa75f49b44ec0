"""metrics.jsonl: one line per record of a training run."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax

from cinemae_jax.runtime import files, progress


class Metrics:
    """metrics.jsonl of a run: one JSON object a line, with its step."""

    def __init__(self, workdir: Path, start: int) -> None:
        """Opens the log of a run that has taken ``start`` steps; drops the lines of later ones."""
        self.path = workdir / "metrics.jsonl"
        workdir.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0 and self.path.exists():
            with files.replacing(self.path) as partial:
                partial.write_text("".join(f"{line}\n" for line in self._up_to(start)))

    def _up_to(self, step: int) -> Iterator[str]:
        broken = 0
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                written = int(json.loads(line)["step"])
            except (ValueError, KeyError, TypeError):
                broken += 1
                continue
            if written <= step:
                yield line
        if broken > 1:  # a kill tears one
            progress.say(f"caution   {broken} lines of {self.path} were not readable: dropped")

    def write(self, step: int, **values: float) -> None:
        """Adds a line; what is not finite becomes null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        if jax.process_index() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
