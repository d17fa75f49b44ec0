"""The command line of jobs: which config ``--config`` names, exit codes, one run per workdir."""

import importlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from cinemae_jax.runtime import console, files, hosts, jobs
from tests.helpers.command_line import called
from tests.helpers.small_run import ROOT

PACKAGED = jobs.packaged_configs()


def config_of(*words: str) -> list[str]:
    return jobs.with_config_files(["job", *words])[1:]


def test_packaged_configs_are_those_of_the_package() -> None:
    assert {"sd14", "demo", "tiny", "pretrain_tiny", "ablation/fusion"} <= PACKAGED.keys()
    for name in PACKAGED:
        module = importlib.import_module(f"cinemae_jax.configs.{name.replace('/', '.')}")
        assert callable(module.get_config)


@pytest.mark.parametrize(
    ("words", "name", "argument"),
    [
        (["--config", "sd14"], "sd14", ""),
        (["--config=tiny", "--config.seed=1"], "tiny", ""),
        (["-config", "ablation/fusion"], "ablation/fusion", ""),
        (["--config=ablation/fusion:demo"], "ablation/fusion", ":demo"),
    ],
)
def test_a_name_finds_the_packaged_config(
    words: list[str],
    name: str,
    argument: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name.split("/")[0]).mkdir()  # a folder is not a config file
    others = [word for word in words if word.startswith("--config.")]
    assert config_of(*words) == [f"--config={PACKAGED[name]}{argument}", *others]


def test_a_file_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd14").write_text("")
    assert config_of("--config", "sd14:a:b") == ["--config=sd14:a:b"]
    monkeypatch.chdir(ROOT)
    assert config_of("--config=configs/sd14.py") == ["--config=configs/sd14.py"]


@pytest.mark.parametrize("name", ["sd15", "sd14.py", "../configs/sd14", "", "ablation"])
def test_an_unknown_name_lists_the_packaged_configs(name: str) -> None:
    with pytest.raises(ValueError, match=f"--config {name}: .*ablation/backbone.*sd14, .*tiny"):
        config_of("--config", name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config():\n    retrun 1\n", ("line 2", "invalid syntax")),
        ("import nowhere_to_be_found\n", ("line 1", "nowhere_to_be_found")),
        ("def get_config():\n    return EPOCHS\n", ("line 2", "EPOCHS")),
        ("def get_config():\n    return {}[0]\n", ("line 2", "KeyError")),
        ("x = 1\n", ("get_config",)),
        ("def get_config():\n    return {'seed': 1}\n", ("get_config", "dict", "ConfigDict")),
    ],
)
def test_an_error_in_a_config_file_is_one_line(
    text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(text)
    script = (
        "import sys; from cinemae_jax.runtime import jobs; "
        "sys.exit(jobs.run_config(['job', *sys.argv[1:]], None, ''))"
    )
    options = [f"--config={tmp_path / 'bad.py'}", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", script, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_never_fails_on_an_encoding(encoding: str, tmp_path: Path) -> None:
    script = (
        "import sys; from cinemae_jax.runtime import jobs; "
        "job = lambda config, folder: print(chr(955), chr(0x5199), chr(0xdcff)) or []; "
        "sys.exit(jobs.run_config(['job', *sys.argv[1:]], job, ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--config=tiny", f"--workdir={tmp_path}"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u03bb" in done.stdout


def test_flag_files_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="--flagfile"):
        config_of("--config=tiny", "--flagfile=flags.txt")


def test_home_is_expanded_where_shells_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for word, expanded in (
        ("--workdir=~/w", "--workdir=/home/me/w"),
        ("~", "/home/me"),
        ("nature=~/a,ai=~/b", "nature=/home/me/a,ai=/home/me/b"),
        ("a~/b", "a~/b"),
        ("./~/w", "./~/w"),
    ):
        assert console.at_home(word) == expanded
    config = ConfigDict({"data": {"root": "~/d", "photos": ("~/p", "q")}, "seed": 1})
    jobs._expand_home(config)
    assert config.data.to_dict() == {"root": "/home/me/d", "photos": ("/home/me/p", "q")}


def ran(job: Callable[[ConfigDict, Path], Sequence[Any]], workdir: Path) -> int:
    def main(argv: list[str]) -> int:
        return jobs.run_config(argv, job, None)

    return called(main, "--config=smoke", f"--workdir={workdir}")


def test_a_bug_has_an_exit_code_of_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def crash(*_: object) -> Sequence[Any]:
        raise RuntimeError("a bug")

    assert ran(crash, tmp_path) == console.CRASHED
    printed = capfd.readouterr().err
    assert "Traceback" in printed
    assert "report" in printed
    assert ran(lambda *_: [], tmp_path) == console.OK
    assert ran(lambda *_: ["an image"], tmp_path) == console.SOME_FAILED


def test_a_workdir_has_one_run_at_a_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def second(*_: object) -> Sequence[Any]:
        assert ran(lambda *_: [], tmp_path) == console.USAGE
        return []

    assert ran(second, tmp_path) == console.OK
    assert f"{tmp_path} is in use by another run (process {os.getpid()}" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from cinemae_jax.runtime import files\n"
        "with files.locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(files.LockedError, match=str(holder.pid)), files.locked(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with files.locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_missing_files_are_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / str(i) for i in range(50)]
    paths[0].touch()
    naps: list[float] = []
    monkeypatch.setattr(hosts.time, "sleep", naps.append)
    assert hosts.unseen(paths) == paths[1:]
    assert not naps  # a single process waits for nobody
    monkeypatch.setattr(hosts.jax, "process_count", lambda: 2)
    clock = iter(range(1000))
    monkeypatch.setattr(hosts.time, "monotonic", lambda: next(clock))
    assert hosts.unseen(paths) == paths[1:]
    assert len(naps) < hosts.VISIBLE


def test_a_busy_port_of_the_coordinator_is_named() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} "):
            hosts.join(f"localhost:{port}", 2, 0, timeout=5)
    with pytest.raises(ValueError, match="port 99999"):
        hosts.join("localhost:99999", 2, 0, timeout=5)
