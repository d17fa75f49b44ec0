"""The cinemae command: its table of commands, its help, and what it does not import."""

import subprocess
import sys

import pytest
from absl import flags

from cinemae_jax import __version__, main
from cinemae_jax.runtime import console


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in main.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(["--version"])
    assert stop.value.code == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(("typed", "meant"), [("xyzzy", "doctor"), ("predcit", "predict?")])
def test_unknown_commands_are_usage_errors(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([typed, "--x"]) == 2
    printed = capsys.readouterr().err
    assert typed in printed
    assert meant in printed


@pytest.mark.parametrize("job", ["train", "evaluate", "extract", "pretrain", "ablate"])
def test_jobs_are_commands_and_name_what_is_missing(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main.main([job]) == 2
    finally:
        flags.FLAGS.unparse_flags()
        flags.FLAGS.mark_as_parsed()
    printed = capsys.readouterr().err
    assert "--config" in printed
    assert "None" not in printed
    assert len(printed.splitlines()) == 1


def test_the_package_is_a_command() -> None:
    command = [sys.executable, "-m", "cinemae_jax", "--version"]
    assert __version__ in subprocess.run(command, capture_output=True, text=True).stdout


def test_a_bug_does_not_look_like_an_unread_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = main.Command("cinemae_jax.typed", "a module without main")
    monkeypatch.setitem(main.COMMANDS, "doctor", broken)
    assert main.main(["doctor"]) == console.CRASHED
    assert "Traceback" in capsys.readouterr().err


def test_convert_is_reached(tmp_path: object) -> None:
    assert main.main(["convert", f"{tmp_path}/nothing.pth", "--out", f"{tmp_path}/x"]) == 2


def test_the_installed_command_runs_without_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from cinemae_jax.main import main; main([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_doctor_is_reached(tmp_path: object) -> None:
    assert main.main(["doctor", f"{tmp_path}/nothing"]) == 2


def test_every_command_has_a_module_and_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in main.COMMANDS:
        try:
            code: object = main.main([name, "--help"])
        except SystemExit as stop:  # argparse
            code = stop.code
        assert code == 0
        assert name in capsys.readouterr().out
