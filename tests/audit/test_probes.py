import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from cinemae_jax.audit import probes
from cinemae_jax.audit.equalise import Equalise, equalise
from cinemae_jax.audit.probes import ProbeResult
from cinemae_jax.data.augment import recompress, resize_short
from cinemae_jax.data.decode import decode
from cinemae_jax.data.inspect import examination
from cinemae_jax.data.inspect.facts import examine_bytes
from cinemae_jax.data.refusal import DecodeError
from cinemae_jax.data.transforms import Crop, MultiCrop
from cinemae_jax.evaluation.bootstrap import Resampling
from tests.helpers.pictures import encoded, gradient, noise, saved
from tests.helpers.planted import planted_set, write_files

RESAMPLING = Resampling(bootstrap=50)


def run(root: Path, train_generators: tuple[str, ...] = ("gen_a",)) -> dict[str, ProbeResult]:
    examined = examination.examine(root, workers=1)
    return probes.probe(examined, train_generators=train_generators, resampling=RESAMPLING)


@pytest.mark.parametrize("splits", [("train", "val"), ("val",)])
def test_a_planted_format_is_found_and_carries_over(
    tmp_path: Path, splits: tuple[str, ...]
) -> None:
    found = run(planted_set(tmp_path, confounded=True, splits=splits))["file facts"]
    assert found.learned == ("train split" if "train" in splits else "cross-validated")
    assert (found.num_nature, found.num_ai) == ((12, 12) if "train" in splits else (24, 24))
    assert [row.name for row in found.rows] == ["gen_a", "gen_b", "mean"]
    for row in found.rows:
        assert row.metrics["accuracy"].value == 1
        assert row.metrics["auc"].value == pytest.approx(1)
    assert (found.rows[0].nature, found.rows[0].ai) == (12, 12)  # no image of train is tested


def test_files_alike_solve_nothing(tmp_path: Path) -> None:
    found = run(planted_set(tmp_path, confounded=False, splits=("train", "val")))
    for row in found["file facts"].rows:
        assert row.metrics["auc"].value == 0.5
        assert row.metrics["accuracy"].value == 0.5
    # 24 images a class, no difference: the standard deviation of such an AUC is 0.08
    assert abs(found["spectrum"].rows[-1].metrics["auc"].value - 0.5) < 0.3


def test_a_planted_spectrum_is_found_by_its_probe_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = {}
    for i in range(16):
        for label, kind in (("nature", gradient), ("ai", noise)):
            image = np.roll(kind(40, 40), rng.integers(40), axis=0)
            files[f"gen_a/imagenet_x/val/{label}/{i}.png"] = encoded(image)
    found = run(write_files(tmp_path, files))
    assert found["spectrum"].rows[0].metrics["auc"].value == pytest.approx(1)
    assert found["file facts"].rows[0].metrics["auc"].value == 0.5


def test_files_that_cannot_be_read_are_counted_and_learnt_from_by_nobody(tmp_path: Path) -> None:
    root = planted_set(tmp_path, confounded=True, splits=("train", "val"))
    write_files(root, {f"gen_a/imagenet_x/{s}/ai/bad.png": b"no image" for s in ("train", "val")})
    for found in run(root).values():
        assert found.num_ai == 12
        assert [row.bad for row in found.rows] == [1, 0, 1]


def test_too_few_images_to_cross_validate_are_undefined_and_do_not_crash(tmp_path: Path) -> None:
    root = planted_set(tmp_path, confounded=True, splits=("val",), count=4)
    for found in run(root).values():
        assert [(row.nature, row.ai, row.bad) for row in found.rows[:2]] == [(0, 0, 8)] * 2
        assert np.isnan(found.rows[-1].metrics["auc"].value)


def test_only_the_named_generators_are_learned_from(tmp_path: Path) -> None:
    root = planted_set(tmp_path, confounded=True, splits=("train", "val"))
    assert run(root, train_generators=("gen_b",))["file facts"].learned == "cross-validated"


def test_images_without_labels_are_refused(tmp_path: Path) -> None:
    root = write_files(
        tmp_path, {"some/1.png": encoded(gradient()), "some/2.png": encoded(noise())}
    )
    with pytest.raises(ValueError, match="no labels"):
        run(root)


# --- spectrum -----------------------------------------------------------------------------------


def test_white_noise_has_its_variance_in_every_ring() -> None:
    """A ring of n frequencies of one image scatters by about 1 / √n; the smallest has 90."""
    rng = np.random.default_rng(0)
    grey = np.clip(np.round(rng.normal(128, 12, (256, 256, 1))), 0, 255).astype(np.uint8)
    power = np.exp(probes.spectrum(Image.fromarray(np.repeat(grey, 3, axis=2))))
    assert power.shape == (24,)
    assert power[2:] == pytest.approx(144, rel=0.25)  # the window leaks the mean into the first two
    assert power.mean() == pytest.approx(144, rel=0.05)


@pytest.mark.parametrize("ring", [3, 12, 22])
def test_a_wave_is_in_the_ring_of_its_frequency_whatever_its_direction(ring: int) -> None:
    frequency = (ring + 0.5) / 48  # cycles a pixel
    rows, columns = np.mgrid[:256, :256]
    for angle in (0.0, 0.6, np.pi / 2):
        phase = 2 * np.pi * frequency * (np.cos(angle) * rows + np.sin(angle) * columns)
        grey = np.round(128 + 50 * np.sin(phase)).astype(np.uint8)
        image = Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
        assert probes.spectrum(image).argmax() == ring


def test_spectra_are_finite_for_any_image_and_nan_for_none() -> None:
    flat = np.full((300, 300, 3), 77, np.uint8)
    files = [encoded(flat), encoded(noise(20, 600)), b"", encoded(noise(), "JPEG")]
    found = probes.spectra(lambda row: files[row], len(files))
    assert np.isnan(found).all(axis=1).tolist() == [False, False, True, False]
    assert found[0] == pytest.approx(np.log(1 / 12))  # no power but that of rounding
    assert probes.spectra(lambda row: b"", 0).shape == (0, 24)


# --- equalise -----------------------------------------------------------------------------------


def test_equalised_files_say_the_same_of_themselves() -> None:
    """Format, mode, size and quality of what was JPEG, PNG with alpha, or grey, large or small."""
    square = Image.fromarray(gradient(300, 300))
    exif = Image.Exif()
    exif[271] = "a camera"
    files = [
        saved(square, "JPEG", quality=35, exif=exif, comment=b"a comment", dpi=(300, 300)),
        saved(square, "PNG"),
        saved(square.convert("RGBA"), "PNG"),
        saved(square.convert("L").resize((90, 90)), "PNG"),
        saved(square.resize((900, 900)), "WEBP"),
    ]
    known = set()
    for data in files:
        again = equalise(data, side=128, quality=80)
        facts = examine_bytes(again, suffix=".jpg")
        known.add((facts.format, facts.mode, facts.width, facts.height, facts.quality))
        with JpegImageFile(io.BytesIO(again)) as image:
            known.add((str(sorted(image.info.items())), str(image.quantization)))
    assert len(known) == 2
    assert ("JPEG", "RGB", 128, 128, 80) in known


def test_equalising_is_a_resize_and_a_recompression_and_nothing_else() -> None:
    image = Image.fromarray(noise(200, 300))
    once = equalise(image, side=100, quality=70)
    assert once == equalise(saved(image, "PNG"), side=100, quality=70)
    expected = recompress(resize_short(image, 100), 70)
    assert np.array_equal(np.asarray(decode(once)), np.asarray(expected))


@pytest.mark.parametrize("then", [Crop(32, resize=48), MultiCrop(32, num_crops=4)])
def test_the_detectors_own_transform_sees_the_equalised_file(then: Crop | MultiCrop) -> None:
    data = encoded(noise(90, 70))
    transform = Equalise(then, side=64, quality=60)
    got = transform(data, np.random.default_rng(0))
    file = equalise(data, side=64, quality=60)
    assert np.array_equal(got, then(file, np.random.default_rng(0)))
    assert np.array_equal(got, transform(data, np.random.default_rng(1)))
    assert got.dtype == np.uint8
    assert transform.shape == got.shape
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.side = 10  # type: ignore[misc]


def test_equalise_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="side"):
        Equalise(Crop(32), side=8)
    with pytest.raises(ValueError, match="quality"):
        Equalise(Crop(32), quality=0)
    with pytest.raises(DecodeError):
        Equalise(Crop(32))(b"nothing", np.random.default_rng(0))


def test_a_planted_format_is_gone_once_files_are_equalised(tmp_path: Path) -> None:
    root = planted_set(tmp_path / "raw", confounded=True, splits=("train", "val"))
    equal = {
        path.relative_to(root).with_suffix(".jpg").as_posix(): equalise(
            path.read_bytes(), side=32, quality=90
        )
        for path in root.rglob("*.*")
        if path.is_file()
    }
    rows = run(write_files(tmp_path / "equal", equal))["file facts"].rows
    assert rows[-1].metrics["accuracy"].value == rows[-1].metrics["auc"].value == 0.5
