"""The cinemae command: its table of commands, its help, and what it does not import."""

import subprocess
import sys

import pytest

from cinemae_jax import __version__, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in main.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(["--version"])
    assert stop.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_unknown_commands_are_usage_errors() -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(["paint"])
    assert stop.value.code == 2


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
        with pytest.raises(SystemExit) as stop:
            main.main([name, "--help"])
        assert stop.value.code == 0
        assert name in capsys.readouterr().out
