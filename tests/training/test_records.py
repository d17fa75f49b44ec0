"""What a damaged record of a run costs: a line that names it, never the run."""

import json
from pathlib import Path

import pytest

from cinemae_jax.data.unread import BadImage, BadImages
from cinemae_jax.training.metrics_log import Metrics


def test_broken_lines_of_the_log_are_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1}', '{"step": 2', "[3]", "null", '{"step": "x"}', "\xff", '{"step": 2}']
    path.write_bytes("\n".join(lines).encode("latin-1"))
    Metrics(tmp_path, 2).write(3, loss=0.5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize("torn", [b'path,label\n"a', b"other\nx\n", b"\xff\xfe\n\0", b""])
def test_a_torn_list_of_unread_images_starts_again(
    tmp_path: Path, torn: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad_images.csv"
    path.write_bytes(torn)
    images = BadImages(path)
    assert images.listed == []
    assert str(path) in capsys.readouterr().err
    one = BadImage("a.png", "ai", "gen", "train", "damaged")
    images.add([one])
    assert BadImages(path).listed == [one]
