"""metrics.jsonl: one line per record of a training run."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import jax

from cinemae_jax.runtime import files


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
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                written = json.loads(line)["step"]
            except (ValueError, KeyError):  # the line that a kill tore
                continue
            if written <= step:
                yield line

    def write(self, step: int, **values: float) -> None:
        """Adds a line; what is not finite becomes null."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        if jax.process_index() == 0:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
