import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from cinemae_jax.data import decode
from cinemae_jax.data.inspect import facts
from cinemae_jax.data.refusal import DecodeError
from tests.helpers.odd_images import JPEG, ODD, PNG, UNREADABLE, encoded, picture


@pytest.mark.parametrize("name", UNREADABLE)
def test_unreadable_files_have_their_reason(name: str) -> None:
    data, reason = UNREADABLE[name]
    found = facts.examine_bytes(data, suffix=Path(name).suffix)
    assert found.reason == reason
    assert found.error
    assert found.num_bytes == len(data)


@pytest.mark.parametrize(("kind", "name"), [("PNG", "a.PNG"), ("JPEG", "b.JPeG"), ("BMP", "c.bmp")])
def test_sound_files_have_no_reason_and_no_oddity(kind: str, name: str) -> None:
    found = facts.examine_bytes(encoded(picture(), kind), suffix=Path(name).suffix)
    assert (found.reason, found.error, found.wrong_extension) == ("", "", False)
    assert (found.format, found.mode, found.width, found.height) == (kind, "RGB", 80, 64)


def test_a_photograph_with_a_preview_is_a_jpeg() -> None:
    both = encoded(picture(), "MPO", save_all=True, append_images=[picture(1)])
    found = facts.examine_bytes(both, suffix=".jpg")
    assert (found.reason, found.format, found.animated) == ("", "JPEG", False)
    assert not found.wrong_extension


def test_sizes_follow_the_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = facts.examine_bytes(encoded(picture(), "JPEG", exif=exif), suffix=".jpg")
    assert (found.width, found.height) == (64, 80)


def test_jpeg_quality_is_exact_for_every_quality_of_libjpeg() -> None:
    image = picture(width=16, height=16)
    for quality in range(1, 101):
        data = encoded(image, "JPEG", quality=quality)
        assert facts.examine_bytes(data, suffix=".jpg").quality == quality
        table = JpegImageFile(io.BytesIO(data)).quantization[0]
        assert facts.libjpeg_tables()[quality - 1].tolist() == list(table)
    assert facts.examine_bytes(PNG, suffix=".png").quality is None


def test_other_tables_get_the_nearest_quality() -> None:
    data = encoded(picture(), "JPEG", quality=80)
    table = np.array(JpegImageFile(io.BytesIO(data)).quantization[0])
    assert facts.quality_of_table(tuple(table + np.arange(64) % 2)) in (79, 80)


def test_pipes_loops_and_folders_are_reported_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name in ("pipe.jpg", "loop.jpg", "missing.jpg", "."):
        found = facts.examine(tmp_path / name)
        assert found.reason == facts.NO_ACCESS
        assert found.error


def test_oversized_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", len(PNG) - 1)
    (tmp_path / "a.png").write_bytes(PNG)
    found = facts.examine(tmp_path / "a.png")
    assert (found.reason, found.sha256, found.num_bytes) == (facts.TOO_LARGE, b"", len(PNG))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([PNG, JPEG, *(data for data, _ in ODD.values() if len(data) < 20_000)]),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 20_000),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_facts_and_decoder_agree_on_damage_of_any_kind(
    data: bytes, flips: list[tuple[int, int]], length: int
) -> None:
    damaged = bytearray(data)
    for at, value in flips:
        damaged[at % len(damaged)] = value
    cut = bytes(damaged[:length])
    found = facts.examine_bytes(cut, suffix=".png")
    try:
        decode.decode(cut)
    except DecodeError:
        assert found.reason in facts.REASONS
    else:
        assert not found.reason
        assert found.format
