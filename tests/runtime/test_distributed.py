"""Runs of several processes: the same result on any hosts and devices, whatever disturbs them.

Processes are real, started by launch/local.sh, and few: each takes seconds to import JAX.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from cinemae_jax import train, typed, weights
from cinemae_jax.data.unread import BadImage, BadImages
from cinemae_jax.detector import loading
from cinemae_jax.model.cinemae import random_backbone
from cinemae_jax.runtime import console, hosts, jobs, preemption
from cinemae_jax.runtime.checkpoints import Checkpoints, Interrupted
from cinemae_jax.runtime.devices import Replicas
from cinemae_jax.runtime.preemption import Preempted
from cinemae_jax.runtime.shard import Shard
from cinemae_jax.settings import PretrainSettings, Settings
from cinemae_jax.training import pretraining
from tests.conftest import SMALL, write_data_set
from tests.helpers.small_run import (
    ROOT,
    as_flags,
    logged,
    small_config,
    small_pretraining,
    spoil,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figures")]

THIN = dataclasses.replace(SMALL, depth=1, decoder_depth=1)  # compiles faster


@dataclasses.dataclass(frozen=True)
class Job:
    """One run's config, and how to start it as several processes."""

    config: Settings
    flags: Sequence[str]
    env: dict[str, str]

    def start(self, workdir: Path, processes: int, devices: int, disturb: str = "") -> Any:
        local = [str(ROOT / "launch/local.sh"), "--processes", str(processes)]
        local += ["--devices", str(devices), "--"]
        command = ["train", "--config=configs/sd14.py", f"--workdir={workdir}", *self.flags]
        return subprocess.Popen(
            [*local, *command],
            cwd=ROOT,
            env=self.env | {"DISTURB": disturb},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, workdir: Path, processes: int, devices: int, disturb: str = "") -> int:
        process = self.start(workdir, processes, devices, disturb)
        output, errors = process.communicate(timeout=600)
        sys.stdout.write(output)
        sys.stderr.write(errors)
        return process.returncode

    def run_all(self, plan: Sequence[Any], processes: int, devices: int) -> None:
        """Several jobs one after the other in the same processes (``tests.helpers.jobs``)."""
        with socket.create_server(("localhost", 0)) as free:
            address = f"localhost:{free.getsockname()[1]}"
        flag = f"--xla_force_host_platform_device_count={devices}"
        env = self.env | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {flag}"}
        command = [sys.executable, "-m", "tests.helpers.jobs", address, str(processes)]
        started = [
            subprocess.Popen([*command, str(i), json.dumps(plan)], cwd=ROOT, env=env)
            for i in range(processes)
        ]
        assert [process.wait(timeout=300) for process in started] == [0] * processes


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Ten parts of a bank, nine steps, a checkpoint at every other; one bad image in each set."""
    root = write_data_set(tmp_path_factory.mktemp("data"), train=12, val=3)
    spoil(root, "train/ai/003.png", "val/nature/001.png")
    backbone = random_backbone(THIN)
    weights.save(root / "thin.safetensors", backbone.config, backbone.params)
    config = small_config(root, root / "thin.safetensors")
    config.train.epochs = 4
    config.eval.batch_size = config.features.batch_size = 8
    config.eval.bootstrap = 5
    config.features.num_runs = 3
    config.features.shard_images = 4
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text("from tests.helpers import mortal\nmortal.disturb()\n")
    env = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}"}
    return Job(typed.read(config.to_dict(), Settings), as_flags(config.to_dict()), env)


@pytest.fixture(scope="module")
def undisturbed(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By one process on one device."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    bad = train.train(job.config, workdir, Replicas(tuple(jax.devices()[:1])))
    assert len(bad) == 2
    return workdir


@pytest.fixture(scope="module")
def pretrain_settings(job: Job) -> PretrainSettings:
    """Seven steps on ten photographs."""
    photos = Path(job.config.data.root, "gen_a/imagenet_ai_test/train/nature")
    return dataclasses.replace(small_pretraining(photos), model=THIN)


@pytest.fixture(scope="module")
def pretrained(
    pretrain_settings: PretrainSettings, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """By one process on one device."""
    workdir = tmp_path_factory.mktemp("pretrained")
    pretraining.pretrain(pretrain_settings, workdir, Replicas(tuple(jax.devices()[:1])))
    return workdir


def assert_same_run(workdir: Path, expected: Path) -> None:
    """Head, log, table, scores, bank and bad images are those of the other run."""
    one, two = (loading.load(path, which="last") for path in (workdir, expected))
    assert one.step == two.step
    # learning rate 1e-2: gradients differ by the order of sums, about 1e-7 of their size
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.heads, two.heads)
    assert [line["step"] for line in logged(workdir)] == [line["step"] for line in logged(expected)]
    for a, b in zip(logged(workdir), logged(expected), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert_same_scores(workdir, expected)
    assert (workdir / "bad_images.csv").read_text() == (expected / "bad_images.csv").read_text()
    assert list(workdir.glob("bad_images.*.csv")) == []
    files = [
        sorted(p.relative_to(path) for p in path.glob("bank/*/*")) for path in (workdir, expected)
    ]
    assert files[0] == files[1]
    assert len(files[0]) == 10
    for name in files[0]:
        a, b = (pq.read_table(path / name) for path in (workdir, expected))
        assert a["path"] == b["path"]
        assert a["error"] == b["error"]
        for x, y in zip(a["mismatch"].to_pylist(), b["mismatch"].to_pylist(), strict=True):
            assert (x or []) == pytest.approx(y or [], rel=1e-5)  # none of what was not read


def assert_same_scores(workdir: Path, expected: Path) -> None:
    """The same table, and every test image scored once."""
    tables = [json.loads((path / "eval.json").read_text()) for path in (workdir, expected)]
    for a, b in zip(*(table["results"] for table in tables), strict=True):
        assert [a[x] for x in ("name", "nature", "ai", "bad")] == [
            b[x] for x in ("name", "nature", "ai", "bad")
        ]
        for name, estimate in a["metrics"].items():
            assert estimate == pytest.approx(b["metrics"][name], abs=1e-5)
    scores = [pyarrow.csv.read_csv(path / "scores.csv") for path in (workdir, expected)]
    assert scores[0]["path"].to_pylist() == scores[1]["path"].to_pylist()
    assert len(set(scores[0]["path"].to_pylist())) == len(scores[0]) == 12
    assert scores[0]["logit"].null_count == 1
    a, b = (table["logit"].drop_null().to_numpy() for table in scores)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_eight_devices_of_one_process_are_one(job: Job, undisturbed: Path, tmp_path: Path) -> None:
    train.train(job.config, tmp_path / "run", Replicas())
    assert_same_run(tmp_path / "run", undisturbed)


def test_two_processes_of_four_devices_are_one(
    job: Job,
    undisturbed: Path,
    pretrain_settings: PretrainSettings,
    pretrained: Path,
    tmp_path: Path,
) -> None:
    """In extraction, in training from that bank, in evaluation alone, and in pre-training."""
    shutil.copytree(undisturbed / "checkpoints", tmp_path / "scored/checkpoints")
    config = dataclasses.asdict(job.config)
    jobs = [
        ("extract", "extract", config, "run"),
        ("train", "train", config, "run"),
        ("evaluate", "evaluate", config, "scored"),
        ("training.pretraining", "pretrain", dataclasses.asdict(pretrain_settings), "pretrained"),
    ]
    job.run_all([(*what, str(tmp_path / where)) for *what, where in jobs], 2, 4)
    assert_same_run(tmp_path / "run", undisturbed)
    assert_same_scores(tmp_path / "scored", undisturbed)
    backbones = (path / "backbone.safetensors" for path in (tmp_path / "pretrained", pretrained))
    one, two = (weights.load(path) for path in backbones)
    # learning rate 3e-3, some steps: as for the head
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one.params, two.params)


def test_four_processes_of_two_devices_are_one(job: Job, undisturbed: Path, tmp_path: Path) -> None:
    assert job.run(tmp_path / "run", 4, 2) == console.SOME_FAILED
    assert_same_run(tmp_path / "run", undisturbed)


def test_whatever_disturbs_a_run_it_ends_as_if_nothing_had(
    job: Job, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed on two hosts in extraction and in training, stopped on one, on two, ended on one."""
    workdir, one = tmp_path / "run", Replicas(tuple(jax.devices()[:1]))
    assert job.run(workdir, 2, 1, "part 2") > 128  # so that launchers start it again
    parts = list(workdir.glob("bank/*/*.parquet"))
    assert 1 <= len(parts) < 10
    before = {path: path.stat().st_mtime_ns for path in parts}
    assert job.run(workdir, 2, 1, "line 2") > 128
    assert {path: path.stat().st_mtime_ns for path in parts} == before
    assert len(logged(workdir)) >= 1
    with monkeypatch.context() as patch:
        patch.setattr(preemption, "asked", Stop(2))
        with pytest.raises(Preempted):
            train.train(job.config, workdir, one)
    process = job.start(workdir, 2, 1, "slow 500")
    for line in process.stdout:
        if line.startswith("resumed"):
            break
    time.sleep(random.Random(0).uniform(0, 0.6))
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == jobs.PREEMPTED, errors
    assert "stopped" in errors
    assert len(train.train(job.config, workdir, one)) == 2
    assert_same_run(workdir, undisturbed)


def test_a_process_that_finds_no_coordinator_says_so_in_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cinemae_jax.train", "--config=configs/sd14.py"]
    where = ["--coordinator=localhost:9", "--num_processes=2", "--process_id=1"]
    begin = time.monotonic()
    process = subprocess.run(
        [*command, f"--workdir={tmp_path}", "--distributed", "--initialization_timeout=1", *where],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == console.USAGE
    assert "within 1 s (coordinator localhost:9, process 1 of 2)" in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    assert time.monotonic() - begin < 90  # most of it imports, on a machine that is busy


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ((None, None, None), "give --coordinator=HOST:PORT"),
        ((None, 2, None), "--num_processes .* give all"),
        (("somewhere", 2, 1), "'somewhere': give HOST:PORT"),
    ],
)
def test_hosts_that_are_half_named_are_refused(
    monkeypatch: pytest.MonkeyPatch, named: tuple[Any, ...], message: str
) -> None:
    def found_nothing(*_: object, **__: object) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", found_nothing)
    with pytest.raises(ValueError, match=message):
        hosts.join(*named, timeout=60)


def test_a_lost_process_is_told_from_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX raises ValueError for both; only a lost process is cured by the same command."""
    broken = "UNKNOWN: Gloo AllGather failed: Connection closed by peer"
    with pytest.raises(ValueError, match="UNKNOWN"), hosts.together():
        raise ValueError(broken)  # of one process: there is none to lose
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(hosts.Lost, match=r"is gone \(UNKNOWN: Gloo"), hosts.together():
        raise ValueError(broken)
    with pytest.raises(ValueError, match="lower"), hosts.together():
        raise ValueError("lower config.train.learning_rate")


# --- one process --------------------------------------------------------------------------------


class Stop:
    """Asks to stop at the n-th time that it is asked whether to."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("source", ["bank", "online"])
def test_stopped_between_any_two_steps_equals_undisturbed(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any
) -> None:
    """While extracting, standardising, training, validating, evaluating; bit for bit."""
    config = job.config
    features = dataclasses.replace(config.features, source=source, bank=str(tmp_path / "bank"))
    config = dataclasses.replace(config, features=features)
    one = Replicas(tuple(jax.devices()[:1]))
    train.train(config, tmp_path / "whole", one)
    stops = 0
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(preemption, "asked", Stop(3 + stops % 5))
            try:
                train.train(config, tmp_path / "run", one)
            except Preempted:
                stops += 1
                continue
        break
    assert stops > 3
    assert logged(tmp_path / "run") == logged(tmp_path / "whole")
    for name in ("scores.csv", "bad_images.csv", "eval.csv"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_sigterm_is_heard_once_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with preemption.listening():
        assert not preemption.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Preempted):
            list(preemption.checked([1]))
    assert signal.getsignal(signal.SIGTERM) is before
    with preemption.listening():
        assert not preemption.asked()


def test_an_interrupted_state_counts_only_while_it_is_the_latest(tmp_path: Path) -> None:
    def accept(_: dict[str, Any]) -> None:
        return

    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        interrupted = Interrupted(checkpoints)
        assert interrupted.resume({"x": np.zeros(2)}, accept) == (0, {}, [])
        checkpoints.save(2, {"x": np.full(2, 2.0)}, {})
        interrupted.save(3, {"x": np.full(2, 3.0)}, {}, [np.float32(0.1)])
        step, saved, losses = interrupted.resume({"x": np.zeros(2)}, accept)
        assert (step, saved["x"][0], losses) == (3, 3.0, [np.float32(0.1)])
        checkpoints.save(4, {"x": np.full(2, 4.0)}, {})
        step, saved, losses = interrupted.resume({"x": np.zeros(2)}, accept)
        assert (step, saved["x"][0], losses) == (4, 4.0, [])


def test_lists_of_bad_images_of_all_hosts_are_read_and_become_one(tmp_path: Path) -> None:
    path = tmp_path / "bad_images.csv"
    first, second = (BadImage(name, "ai", "gen_a", "train", "damaged") for name in "ab")
    BadImages(path, Shard(0, 2)).add([first])
    BadImages(path, Shard(1, 2)).add([second])
    assert (tmp_path / "bad_images.1.csv").exists()
    again = BadImages(path)  # on one host, after a kill
    assert again.listed == [first, second]
    again.add([])
    again.tidy()
    assert [p.name for p in tmp_path.iterdir()] == ["bad_images.csv"]
    assert BadImages(path).listed == [first, second]
