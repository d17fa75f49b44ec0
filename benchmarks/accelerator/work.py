"""One process of ``benchmarks.accelerator``: measures sections and writes every row.

    python -m benchmarks.accelerator.work JSON UNTIL SECTION…

UNTIL is the time (seconds since 1970) after which no further row is started.
"""

import importlib
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from benchmarks.accelerator import store
from benchmarks.accelerator.sections import SECTIONS
from benchmarks.accelerator.sizes import FULL, SMALL, Skipped


def main(argv: list[str]) -> int:
    file, until = Path(argv[0]), float(argv[1])
    for name in argv[2:]:
        if time.time() < until:
            measure(file, name, until)
    return 0


def measure(file: Path, name: str, until: float) -> None:
    """One section; what it raises ends this section only."""
    section, begin = SECTIONS[name], time.time()
    store.put(file, name, status="started", rows=[])
    size = SMALL if store.read(file)["size"] == "small" else FULL
    rows: list[store.Row] = []
    status, reason = "measured", ""
    try:
        module, function = section.code.split(":")
        code = importlib.import_module(f"benchmarks.accelerator.{module}")
        if section.code.partition(":")[0] != "torch_vit":
            note_machine(file)
        found: Iterator[store.Row] = getattr(code, function)(size)
        for row in found:
            rows.append(row)
            print(f"{name:20} {row}", flush=True)
            store.put(file, name, status="started", rows=rows)
            if time.time() > until:
                status, reason = "cut short", "the time of the whole command was over"
                break
            if time.time() > begin + section.seconds * size.patience:
                reason = (
                    f"rows after the first {len(rows)} may be missing: the section took its time"
                )
                break
    except Skipped as why:
        status, reason = "skipped", str(why)
    except Exception as error:  # whatever a compiler or a driver raises: the others go on
        traceback.print_exc()
        status, reason = "failed", f"{type(error).__name__}: {str(error)[:500]}"
    seconds = round(time.time() - begin, 1)
    print(f"{name:20} {status} in {seconds} s {reason}", flush=True)
    store.put(file, name, status=status, reason=reason, seconds=seconds, rows=rows)


def note_machine(file: Path) -> None:
    from benchmarks import measure as machine

    results = store.read(file)
    if "machine" not in results:
        store.write(file, {"machine": machine.machine(), **results})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
