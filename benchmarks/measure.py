"""Alternating repetitions, medians, ratios and facts about the machine, for all benchmarks.

A noisy machine slows all contenders alike, so they take turns and are compared within a round.  The
reported ratio is the median over rounds, with the lowest and the highest.
"""

import dataclasses
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Run = Callable[[], Any]  # one repetition; returns once its result is computed
FILE_WIDTH = 120  # characters per line if stdout is not a terminal


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender: its rates, and their ratio to the baseline's.

    Attributes:
      name: name of the contender.
      rate: work units per second of wall clock, median over rounds.
      lowest, highest: smallest and largest rate of a round.
      rate_cpu: work units per second of this process's CPU time, which other jobs disturb less.
      ratio: median over rounds of rate / the baseline's rate in the same round.
      ratio_lowest, ratio_highest: smallest and largest ratio of a round.
      rounds: rate of each round.
    """

    name: str
    rate: float
    lowest: float
    highest: float
    rate_cpu: float
    ratio: float
    ratio_lowest: float
    ratio_highest: float
    rounds: tuple[float, ...]


def compare(
    runs: Mapping[str, tuple[float, Run]], *, baseline: str, rounds: int, cpu_time: bool = True
) -> list[Row]:
    """Times contenders in turn, once per round, after one untimed repetition each.

    Args:
      runs: name → (work units of one repetition, the repetition).
      baseline: name of the contender that ratios refer to.
      rounds: number of timed repetitions.
      cpu_time: False if another process does the work; ``rate_cpu`` is then NaN.
    """
    for _, run in runs.values():
        run()
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (work, run) in runs.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            run()
            wall[name].append(work / (time.perf_counter() - begin))
            cpu[name].append(work / max(time.process_time() - begin_cpu, 1e-9))
    return [
        row(name, rates, wall[baseline], cpu[name] if cpu_time else ())
        for name, rates in wall.items()
    ]


def row(
    name: str, rates: Sequence[float], baseline: Sequence[float], cpu: Sequence[float] = ()
) -> Row:
    """Medians and extremes of a contender's rates and of their ratios to the baseline's."""
    ratios = [a / b for a, b in zip(rates, baseline, strict=True)]
    return Row(
        name,
        statistics.median(rates),
        min(rates),
        max(rates),
        statistics.median(cpu) if cpu else float("nan"),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        tuple(rates),
    )


def ratio(rows: list[Row], name: str, to: str) -> float:
    """Median over rounds of one contender's rate over another's."""
    rounds = {row.name: row.rounds for row in rows}
    return statistics.median(a / b for a, b in zip(rounds[name], rounds[to], strict=True))


def fresh(module: str, *arguments: object, **environment: str) -> Any:
    """The JSON that ``python -m module`` prints, run in its own process.

    Raises:
      CalledProcessError: if it fails; its messages are on the terminal.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def peak_bytes() -> int:
    """Peak memory of this process so far.

    Read from the kernel's high-water mark: on Linux a child's ``ru_maxrss`` starts at its parent's.
    """
    status = Path("/proc/self/status")
    marks = re.findall(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M) if status.exists() else []
    return 1024 * int(marks[0] if marks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def machine() -> dict[str, Any]:
    """Processor, usable cores, load, devices, and versions of JAX and Python."""
    import jax
    import jaxlib

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "devices": [d.device_kind for d in jax.devices()],
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "python": platform.python_version(),
    }


def show(title: str, unit: str, rows: list[Row]) -> None:
    """Prints a comparison as a table."""
    table = Table(title=title)
    for name in ("", f"{unit}/s", "least, most", f"{unit}/CPU s", "ratio", "least, most"):
        table.add_column(name, justify="right" if name else "left")
    for r in rows:
        table.add_row(
            r.name,
            f"{r.rate:.2f}",
            f"{r.lowest:.2f}, {r.highest:.2f}",
            "" if r.rate_cpu != r.rate_cpu else f"{r.rate_cpu:.2f}",
            f"{r.ratio:.2f}",
            f"{r.ratio_lowest:.2f}, {r.ratio_highest:.2f}",
        )
    console = Console()
    Console(width=None if console.is_terminal else FILE_WIDTH).print(table)


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows for ``json``, without NaN."""
    return [{k: v for k, v in dataclasses.asdict(r).items() if v == v} for r in rows]


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Writes results as indented JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
