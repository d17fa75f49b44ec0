"""The benchmark of accelerators at toy size: what it writes, resumes, refuses and advises."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accelerator import advice, right, store, wheels
from benchmarks.accelerator.sections import SECTIONS

ROOT = Path(__file__).parents[1]


def run(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.accelerator", "--small", "--json", str(file)]
    return subprocess.run(
        [*command, "--budget", "3000", *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_section_runs_at_toy_size_and_once(tmp_path: Path) -> None:
    """Two sections alone, then all of them: the two are resumed, not measured again."""
    file = tmp_path / "a.json"
    first = run(file, "--only", "precision", "devices")
    assert first.returncode == 0, first.stderr
    found = json.loads(file.read_text())["sections"]
    assert set(found) == {"precision", "devices"}
    assert all(row["ok"] for row in found["devices"]["rows"])
    assert len(found["devices"]["rows"]) == 3  # shard_map, and both on two devices
    assert "float32 products" in file.with_suffix(".md").read_text()
    process = run(file)
    assert process.returncode == 0, process.stderr
    sections = json.loads(file.read_text())["sections"]
    assert {name: sections[name] for name in found} == found
    assert set(sections) == set(SECTIONS)
    assert all(s["rows"] for s in sections.values() if s["status"] == "measured")
    assert len(sections["profile"]["rows"]) == 5
    assert "detector.attention" in process.stdout


def test_a_section_that_fails_or_exceeds_its_bound_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    wrong = right.row("mismatch", 1.0, 1e-4)
    store.write(file, {"size": "full", "sections": {}})
    store.put(file, "vit_large", status="measured", rows=[wrong])
    store.put(file, "goldens", status="started", rows=[])
    store.fail(file, "goldens", "its process ended with -9")
    found = store.problems(store.read(file), ["vit_large", "goldens", "torch"])
    assert [problem.split(":")[0] for problem in found] == ["vit_large", "goldens", "torch"]
    assert "-9" in found[1]
    assert not store.is_finished(store.read(file), "goldens")


@pytest.mark.parametrize(("error", "kind"), [(4e-7, "float32"), (3e-4, "TF32"), (3e-3, "bfloat16")])
def test_products_are_told_apart_by_their_error(error: float, kind: str) -> None:
    assert right.kind_of(error) == kind


def test_numbers_are_not_compared_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(right, "product_error", lambda precision: 3e-4)
    with pytest.raises(RuntimeError, match="TF32"):
        right.require_float32()


def test_wheels_of_packages_that_are_not_installed_are_unpacked(tmp_path: Path) -> None:
    folder, target = tmp_path / "wheels", tmp_path / "target"
    folder.mkdir()
    for name in ("not_installed_here", "numpy"):
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}/__init__.py", "x = 1")
            archive.writestr(f"{name}-1.0.data/purelib/{name}/more.py", "y = 2")
    assert wheels.unpack(folder, target) == ["not_installed_here"]
    assert (target / "not_installed_here/more.py").exists()
    assert not (target / "numpy").exists()
    with pytest.raises(FileNotFoundError, match="fetch_wheels"):
        wheels.unpack(tmp_path / "empty", target)


def features_row(speed: float, **fields: Any) -> dict[str, Any]:
    row = {"K": 2, "batch": 64, "dtype": "bfloat16", "attention": "plain", "layout": "vmap"}
    return row | {"images/s": speed} | fields


def test_advice_follows_the_measurements() -> None:
    sections = {
        "features": [features_row(100.0), features_row(20.0, dtype="float32")],
        "attention": [features_row(100.0), features_row(150.0, attention="cudnn", ok=True)],
        "flags": [features_row(100.0)],
        "no_triton": [features_row(101.0)],
        "torch": [{"kind": "compiled", "K": 2, "batch": 64, "dtype": "bfloat16", "images/s": 75.0}],
    }
    found = advice.text({"sections": {name: {"rows": rows} for name, rows in sections.items()}})
    assert "use bfloat16 (bfloat16 is 5.00" in found
    assert "use cudnn, vmap (1.50" in found
    assert "no_triton: not worth it" in found
    assert "2.00 times as fast" in found
    wrong = [features_row(100.0), features_row(150.0, attention="cudnn", ok=False)]
    kept = advice.text({"sections": {"attention": {"rows": wrong}}})
    assert "keep plain, vmap" in kept
