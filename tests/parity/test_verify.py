"""PyTorch against JAX, live: goldens, ViT-B and ViT-L with random weights, and the command.

The bounds of docs/weights.md are in units of a stage's largest value; ViT-B and ViT-L also keep
them in absolute terms.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import traverse_util

from cinemae_jax import weights
from cinemae_jax.model.config import MAEConfig, vit_base, vit_large
from weights_convert import goldens, stages, verify
from weights_convert.__main__ import main

pytestmark = pytest.mark.parity

SMALL = MAEConfig(32, 8, 24, 2, 3, 16, 2, 2, target="norm_pix", layer_norm_eps=1e-12)


# Parameters after some steps, as Adam magnifies rounding; variances in squared grey levels, which
# are in the thousands.
NOT_ABSOLUTE = ("trained/", "masks/texture")


def largest(report: verify.Report) -> float:
    """Over all stages but ``NOT_ABSOLUTE``."""
    assert not report.failures
    return max(row.absolute for row in report.rows if not row.stage.startswith(NOT_ABSOLUTE))


@pytest.mark.parametrize("name", sorted(goldens.CASES))
def test_goldens_are_what_the_reference_gives(name: str, tmp_path: Path) -> None:
    """Another torch may sum in another order; other changes mean that the fixtures are stale."""
    stored = goldens.read(goldens.FOLDER / f"{name}.safetensors")
    fresh = goldens.read(goldens.write_one(tmp_path / "g.safetensors", goldens.CASES[name]))
    for ours, theirs in (
        (fresh.weights, stored.weights),
        (fresh.inputs.head, stored.inputs.head),
        ({"images": fresh.inputs.images, "noise": fresh.inputs.noise},
         {"images": stored.inputs.images, "noise": stored.inputs.noise}),
    ):  # fmt: skip
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[k], theirs[k]) for k in theirs)
    assert not [r for r in stages.compare(stored.stages, fresh.stages) if r.exceeds(5e-6)]


def test_vit_base_keeps_the_bound_absolutely(tmp_path: Path) -> None:
    report = verify.verify_random(vit_base(), tmp_path, floor=True)
    print(report.table())
    assert report.bound == 1e-5
    assert largest(report) <= 1e-5
    floors = [v for k, v in report.floors.items() if not k.startswith(NOT_ABSOLUTE)]
    assert max(floors) <= 1e-5, "the reference itself is less accurate than the bound"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT-L with random weights as a facebook file."""
    folder = tmp_path_factory.mktemp("large")
    config = vit_large(layer_norm_eps=1e-6)
    state = {k: v.numpy() for k, v in verify.random_vitmae(config).state_dict().items()}
    facebook = {
        name: torch.from_numpy(value)
        for name, value in goldens.published(state, config, "facebook").items()
    }
    path = folder / "mae_visualize_vit_large.pth"
    torch.save({"model": facebook, "args": argparse.Namespace(norm_pix_loss=False)}, path)
    return path


@pytest.mark.slow
def test_vit_large_is_converted_within_time_and_memory(large: Path) -> None:
    """Under 60 s, and under three times the file's size in memory, libraries included."""
    out = large.with_name("out.safetensors")
    script = (
        "import re, sys; from weights_convert.__main__ import main\n"
        f"assert main(['convert', {str(large)!r}, '--out', {str(out)!r}]) == 0\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())\n"
        "print('peak', peak[1])\n"
    )  # the child reads its own peak: getrusage would report its parent's, across fork and exec
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    seconds = time.monotonic() - begun
    peak = int(done.stdout.split()[-1]) * 1024
    size = large.stat().st_size
    print(f"ViT-L: {size:,} bytes converted in {seconds:.1f} s, peak {peak / size:.2f} of its size")
    assert seconds < 60
    assert peak < 3 * size


@pytest.mark.slow
def test_vit_large_keeps_the_bound_absolutely(large: Path) -> None:
    out = large.with_name("out.safetensors")
    assert main(["convert", str(large), "--out", str(out)]) == 0
    report = verify.verify_file(large, out)
    print(report.table())
    assert report.bound == 5e-5
    assert largest(report) <= 5e-5


def test_command_passes_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify.random_vitmae(SMALL).save_pretrained(tmp_path / "vitmae")
    source, out, log = tmp_path / "vitmae", tmp_path / "o.safetensors", tmp_path / "log.json"
    assert main(["convert", str(source), "--out", str(out)]) == 0
    command = ["verify", str(source), "--converted", str(out), "--floor", "--json", str(log)]
    assert main(command) == 0
    found = json.loads(log.read_text())
    assert found["passed"]
    assert all(row["floor"] <= 5e-6 for row in found["stages"])
    assert {"masked/decoder_1", "terms/mismatch", "trained/mlp/Dense_1/kernel"} <= {
        row["stage"] for row in found["stages"]
    }

    backbone = weights.load(out)
    params = traverse_util.flatten_dict(backbone.params, sep="/")
    kernel = params["decoder_1/attn/out/kernel"]
    params["decoder_1/attn/out/kernel"] = kernel.T
    weights.save(out, backbone.config, traverse_util.unflatten_dict(params, sep="/"))
    assert main(command) == 1
    assert "ABOVE THE BOUND" in capsys.readouterr().out
    above = [row["stage"] for row in json.loads(log.read_text())["stages"] if row["above"]]
    assert above[0] == "masked/decoder_1"
    assert main(["verify", str(source)]) == 2
    other = dataclasses.replace(SMALL, depth=1)
    verify.random_vitmae(other).save_pretrained(tmp_path / "other")
    assert main(["verify", str(tmp_path / "other"), "--converted", str(out)]) == 2
    assert "differ in num_hidden_layers" in capsys.readouterr().err
    assert main(["verify", str(source), "--converted", str(tmp_path / "nowhere")]) == 2
