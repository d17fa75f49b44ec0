"""The wheel: what it installs, and that the commands run from it outside a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.helpers.small_run import ROOT

pytestmark = pytest.mark.slow

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
FEW = 6  # demonstration images per folder
OWN_CONFIG = """
from cinemae_jax.configs.ablation import ablation

def get_config(base="demo"):
    names = "global", "lcas"
    rows = [{"name": name, "overrides": {"detector.fusion": name}} for name in names]
    return ablation("Fusion", rows, base)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", folder)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, ROOT], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment ``env``: the wheel, and the dependencies that are here."""
    outside = tmp_path_factory.mktemp("outside")
    venv.create(outside / "env", symlinks=True)
    options = ("--no-deps", "--no-index", "--quiet")
    pip = (sys.executable, "-m", "pip", "--python", outside / "env/bin/python")
    subprocess.run([*pip, "install", *options, wheel], check=True)
    (packages,) = outside.glob("env/lib/python*/site-packages")
    # of a folder named in a .pth file, Python reads no .pth files: not that of the checkout
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    return outside


def run(folder: Path, program: str, *arguments: str) -> str:
    command = [folder / "env/bin" / program, *arguments]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_installs_two_packages_and_no_configs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"cinemae_jax", "weights_convert"}
    assert "cinemae_jax/configs/ablation/fusion.py" in names


def test_train_predict_and_ablate_run_from_the_wheel(folder: Path) -> None:
    script = "from cinemae_jax.configs import demo; print(demo.get_config().data.root)"
    demo = Path(run(folder, "python", "-c", script).strip())
    assert demo.is_relative_to(folder)
    for images in demo.glob("stable_diffusion/*/*/*"):
        for image in sorted(images.iterdir())[:FEW]:
            copy = folder / "some" / image.relative_to(demo)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, copy)

    def small(config: str) -> list[str]:
        sizes = ("features.batch_size=8", "train.batch_size=8", "eval.batch_size=8")
        least = ("data.root=some", "features.num_runs=2", "train.epochs=1", "eval.bootstrap=5")
        return [f"--{config}.{field}" for field in (*sizes, *least)]

    train = ("-m", "cinemae_jax.train", "--config", "demo", "--workdir", "run")
    run(folder, "python", *train, *small("config"))
    assert (folder / "run/report.html").exists()
    (folder / "own.py").write_text(OWN_CONFIG)
    ablate = ("-m", "cinemae_jax.ablate", "--config=own.py:demo", "--workdir=table")
    run(folder, "python", *ablate, *small("config.base"))
    assert "| lcas |" in (folder / "table/ablation.md").read_text()
    printed = run(folder, "cinemae", "predict", str(image), "--detector", "run", "--format", "csv")
    assert str(image) in printed
